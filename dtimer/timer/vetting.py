"""
What a node looks at when it joins: is the server fit for it, and may it do what it has to.

Found in the server and not in the program, so it is logged: a warning of Python's would be
shown once and no more, and would end a program that takes its warnings for errors.
"""

from __future__ import annotations

import logging

from dtimer.errors import StoreError
from dtimer.store import access
from dtimer.store.store import Store

log = logging.getLogger("dtimer")


def server(store: Store) -> None:
    """Warn of a server that will lose events, or take none."""
    about = store.about_server()
    policy = about.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log.warning(
            "this Redis evicts keys when its memory is full (maxmemory-policy %s),"
            " and may evict all pending events at once: set it to noeviction",
            policy,
        )
    if about.get("role", "master") != "master":
        log.warning("this Redis is a replica, which takes no posts: connect to its master")
    version = about.get("redis_version", "7").split(".")
    if version[0].isdigit() and [int(n) for n in version[:2] if n.isdigit()] < [6, 2]:
        log.warning("this Redis is version %s; dtimer is made for 6.2 and later", ".".join(version))


def permissions(store: Store) -> None:
    """
    Warn of what the Redis user may not do, where a node can do without.

    Raises:
        StoreError: it cannot; the text names what is missing, and the rule that allows it.
    """
    missing = list(access.missing(store.permissions(), store.ns))
    if fatal := [m for m in missing if m.fatal]:
        rule = " ".join(m.rule for m in fatal)
        told = "; ".join(m.text for m in fatal)
        raise StoreError(f"Redis refuses this client: {told} (ACL SETUSER <user> {rule})")
    for m in missing:
        log.warning("Redis refuses this client: %s (ACL SETUSER <user> %s)", m.text, m.rule)
