"""
Check, when a node joins, the server's settings and the permissions of the Redis user.

Problems are logged, because they are faults of the server, not of the program. A Python warning
would appear only once, and would end a program that turns warnings into errors.
"""

from __future__ import annotations

from dtimer import log as messages
from dtimer.errors import StoreError
from dtimer.log import Log
from dtimer.store import acl
from dtimer.store.store import Store


def check_server(store: Store, log: Log) -> bool:
    """Warn if the server may lose events or will reject posts; return False if it does not say."""
    about = store.server.info()
    policy = about.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log.add(messages.EVICTS, policy)
    if about.get("role", "master") != "master":
        log.add(messages.REPLICA)
    version = about.get("redis_version", "7").split(".")
    if version[0].isdigit() and [int(n) for n in version[:2] if n.isdigit()] < [6, 2]:
        log.add(messages.OLD_SERVER, ".".join(version))
    return bool(about)


def check_permissions(store: Store, log: Log) -> None:
    """
    Warn about missing permissions of the Redis user that a node can do without.

    Raises:
        StoreError: a permission that the node needs is missing. The message names it, and the
            ACL rule that grants it.
    """
    for m in require_permissions(store):
        log.add(messages.REFUSED, m.text, m.rule)


def require_permissions(store: Store) -> list[acl.Missing]:
    """
    Return the missing permissions that a node can do without.

    Raises:
        StoreError: see `check_permissions`.
    """
    missing = list(acl.missing(store.server.permissions(), store.ns))
    if fatal := [m for m in missing if m.fatal]:
        rule = " ".join(m.rule for m in fatal)
        missing_texts = "; ".join(m.text for m in fatal)
        raise StoreError(f"Redis refuses this client: {missing_texts} (ACL SETUSER <user> {rule})")
    return missing
