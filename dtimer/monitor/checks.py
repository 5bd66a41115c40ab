"""The checks that call Redis. Each yields findings; errors of Redis become findings too."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator

from dtimer.errors import NamespaceCorrupt, StoreError
from dtimer.model.ids import incarnation
from dtimer.monitor import server_info
from dtimer.monitor.findings import Finding, Level, error, ok, warning
from dtimer.store import acl
from dtimer.store.admin import AdminStore, Audit
from dtimer.store.connection.sources import redacted
from dtimer.store.failures import message, names, needs_operator
from dtimer.store.format import text
from dtimer.store.store import Store

#: The clock difference that is reported, and the wait for a published message, in seconds.
_SKEW, _PUBSUB_WAIT = 1.0, 2.0

_STRAYS = {
    "no_body": "scheduled, but without a payload: it becomes a dead letter when it is due",
    "no_due": "stored, but never due",
    "no_grave": "a dead letter that is not on the list",
    "no_letter": "on the list of dead letters, but not stored",
    "no_event": "leased, but the event does not exist",
}


def examine(store: Store, url: str) -> Iterator[Finding]:
    """Check the server and the namespace. Without a connection only that is reported."""
    found = connection(store, url)
    yield found
    if found.level is Level.ERROR:
        return
    info = store.server.info()
    if info:
        yield server_info.version(info)
        yield server_info.role(info)
        yield from server_info.persistence(info, _settings(store))
        yield server_info.memory(info)
    else:
        yield warning(
            "version",
            "this client may not run INFO: version, role, persistence and eviction are unknown",
            "ACL SETUSER <user> +info, or check them on the server",
        )
    yield pubsub(store)
    found = schema(store)
    yield found
    if found.level is Level.ERROR and acl.refusal(found.text) is None:
        return
    yield from permissions(store)
    if found.level is Level.ERROR:
        return
    yield skew(store)
    yield from schedules(store)
    yield from orphans(store)


def connection(store: Store, url: str) -> Finding:
    """Check that a server answers, and accepts this client."""
    place = redacted(url)
    began = time.perf_counter()
    try:
        store.server.source.command("PING")
    except Exception as e:
        if "NOPERM" in message(e) or "NoPermissionError" in names(e):
            return ok("connection", f"{place} answers, though not to PING")
        if needs_operator(e):
            remedy = "put user and password into the URL: redis://user:password@host:6379"
            return error("connection", f"{place} refuses this client: {message(e)}", remedy)
        remedy = "is the server running, is the URL right, is there a firewall in between?"
        return error("connection", f"{place} does not answer: {e}", remedy)
    return ok("connection", f"{place} answers in {(time.perf_counter() - began) * 1000:.1f} ms")


def _settings(store: Store) -> dict[str, str]:
    settings = {}
    for name in ("save", "appendfsync"):
        with contextlib.suppress(Exception):  # Hosted servers have no CONFIG; INFO has the rest.
            flat = store.server.source.command("CONFIG", "GET", name)
            if isinstance(flat, list) and len(flat) == 2:
                settings[name] = text(flat[1])
    return settings


def pubsub(store: Store) -> Finding:
    """Check that a published message arrives."""
    receiver = incarnation()
    subscription = store.subscription(receiver)
    remedy = "without pub/sub, events are late by up to poll_interval (1 s), but not lost; "
    began = time.perf_counter()
    try:
        subscription.open()
        # The wait needs a descriptor that may interrupt it. This one never does.
        reading, writing = os.pipe()
        try:
            store.server.source.command("PUBLISH", store.keys.echo(receiver), "")
            arrived = subscription.wait(_PUBSUB_WAIT, reading) and bool(subscription.hear())
        finally:
            os.close(reading)
            os.close(writing)
    except Exception as e:
        remedy += acl.remedy(message(e), store.ns)
        return warning("pub/sub", f"refused: {message(e)}", remedy)
    finally:
        subscription.close()
    if not arrived:
        remedy += "is there a proxy in between that does not support pub/sub?"
        return warning("pub/sub", f"no message arrived within {_PUBSUB_WAIT:.0f} s", remedy)
    took = (time.perf_counter() - began) * 1000
    return ok("pub/sub", f"a message comes back in {took:.1f} ms")


def schema(store: Store) -> Finding:
    """Check that the namespace is dtimer's, and of this version."""
    try:
        there = store.namespace.exists()
    except NamespaceCorrupt as e:
        remedy = "choose another --ns, or upgrade dtimer if the version is the reason"
        return error("schema", str(e), remedy)
    except StoreError as e:
        return error("schema", str(e), _remedy(store, str(e)))
    if not there:
        return ok("schema", "the namespace does not exist yet: nothing was posted to it")
    return ok("schema", "the namespace has the version that this dtimer supports")


def _remedy(store: Store, refused: str) -> str:
    return acl.remedy(refused, store.ns) or "look at the server's message"


def permissions(store: Store) -> Iterator[Finding]:
    """Check that this client may run each command that the scripts use, by trying each."""
    check = "permissions"
    try:
        refused = store.server.permissions()
    except StoreError as e:
        yield error(check, f"the commands cannot be tried: {e}", _remedy(store, str(e)))
        return
    missing = list(acl.missing(refused, store.ns))
    for m in missing:
        # Without the permission to send wakes events are late; without any other, calls fail.
        finding = error if m.fatal or not m.late else warning
        yield finding(check, m.text, f"ACL SETUSER <user> {m.rule}")
    for command, reason in refused.items():
        if acl.refusal(reason) is None:
            yield error(check, f"{command}: {reason}", "look at the server's message")
    if not refused:
        yield ok(check, "this client may run every command that the scripts use")


def skew(store: Store) -> Finding:
    """Check the difference between the server's clock and this machine's."""
    before = time.time()
    try:
        now = store.namespace.server_now() / 1e6
    except StoreError as e:
        return warning("clock", f"the server's time cannot be read: {e}", _remedy(store, str(e)))
    after = time.time()
    apart = now - (before + after) / 2
    side = "ahead of" if apart > 0 else "behind"
    summary = f"the server's is {abs(apart) * 1000:.0f} ms {side} this machine's"
    if abs(apart) - (after - before) / 2 > _SKEW:
        remedy = "run NTP on both: moments (--at) are wrong by as much, delays are not"
        return warning("clock", summary, remedy)
    return ok("clock", summary)


def schedules(store: Store) -> Iterator[Finding]:
    """Check that each schedule can be read; yield nothing if all can."""
    try:
        for id in store.schedules.ids():
            try:
                store.schedules.get(id)
            except NamespaceCorrupt as e:
                yield error("schedules", str(e), f"dtimer unschedule {shlex.quote(id)} --yes")
    except StoreError as e:
        yield warning("schedules", f"not checked: {e}", _remedy(store, str(e)))


def orphans(store: Store) -> Iterator[Finding]:
    """Check that the keys agree with each other."""
    check = "orphans"
    try:
        audit = AdminStore(store).audit()
    except StoreError as e:
        yield warning(check, f"not checked: {e}", "the check needs a server of 6.2 or later")
        return
    if audit.sound:
        yield ok(check, f"none among {audit.due} events and {audit.dead} dead letters")
        return
    for what, summary in _STRAYS.items():
        ids = [id for kind, id in audit.strays if kind == what]
        if ids:
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            yield warning(check, f"{ids[0]!r}{more}: {summary}", _fix(store, what, ids[0]))
    if not audit.strays:
        yield warning(
            check, _disagreement(audit), "another program writes to these keys; find out which"
        )


def _fix(store: Store, what: str, id: str) -> str:
    keys = store.keys
    command = {
        "no_body": f"dtimer cancel {id}",
        "no_due": f"HDEL {keys.body} {id}, or post it again",
        "no_grave": f"HDEL {keys.dead} {id}",
        "no_letter": f"ZREM {keys.graves} {id}",
        "no_event": f"HDEL {keys.lease} {id}",
    }[what]
    return f"another program has written to these keys; {command}"


def _disagreement(audit: Audit) -> str:
    return (
        f"{audit.due} scheduled and {audit.bodies} stored, {audit.leases} leased;"
        f" {audit.dead} dead letters and {audit.graves} on their list;"
        f" {audit.schedules} schedules and {audit.plans} of their payloads"
    )
