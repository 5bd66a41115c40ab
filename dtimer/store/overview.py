"""Read replies about a namespace as a whole: its statistics and its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtimer.errors import PayloadError
from dtimer.model.ids import LONGEST_ID
from dtimer.model.outcomes import Reason
from dtimer.model.overviews import DueCount, InFlight
from dtimer.model.payload import decode
from dtimer.model.records import Cleared, NodeInfo, Stats
from dtimer.store import replies
from dtimer.store.format import read_registration, text


def read_stats(reply: Sequence[Any]) -> Stats:
    """Read the statistics of a namespace."""
    now, pending, leased, due, earliest, dead, nodes, paused, flat, lateness = reply
    late = (int(now) - int(earliest)) / 1000 if int(earliest) >= 0 else 0.0
    return Stats(
        scheduled=int(pending) - int(leased),
        in_flight=int(leased),
        overdue=int(due),
        oldest_overdue_ms=max(0.0, late),
        dead=int(dead),
        nodes=int(nodes),
        paused=paused == b"1",
        lateness=tuple(map(replies.integer, lateness)),
        totals=_totals(flat),
    )


def _totals(flat: Sequence[bytes]) -> dict[str, int]:
    """Return the totals by name, with the sum of all dead letters and the number of expired."""
    totals = {text(flat[i]): replies.integer(flat[i + 1]) for i in range(0, len(flat), 2)}
    died = sum(number for name, number in totals.items() if name.startswith("died:"))
    return totals | {"died": died, "expired": totals.get(f"died:{Reason.EXPIRED}", 0)}


def read_cleared(reply: bytes) -> Cleared:
    """Read how much was deleted from a namespace."""
    return Cleared(*map(int, reply.split(b";")))


def read_nodes(flat: Sequence[Any]) -> list[NodeInfo]:
    """Read the list of nodes."""
    return [read_node(*flat[i : i + 4]) for i in range(0, len(flat), 4)]


def read_ahead(reply: Sequence[Any], period_us: int) -> list[DueCount]:
    """Read how many events fall due in each of the next periods."""
    now, counts = int(reply[0]), reply[1]
    return [DueCount((now + i * period_us) / 1000, int(n)) for i, n in enumerate(counts)]


def read_in_flight(flat: Sequence[Any]) -> list[InFlight]:
    """Read the events in flight, the oldest claim first."""
    found = []
    for i in range(0, len(flat), 8):
        id, token, attempt, due, cancelled, holder, ends, registration = flat[i : i + 8]
        held = InFlight(
            id=text(id),
            node=read_node(holder, registration, b"0", b"0").id if registration else "",
            incarnation=text(holder),
            attempt=int(attempt),
            due=replies.integer(due) / 1000,
            # A token is the time of the claim, or the next number after that of another claim.
            claimed=replies.integer(token) / 1000,
            lease_ends=replies.integer(ends) / 1000,
            cancelled=cancelled == b"1",
        )
        found.append(held)
    return sorted(found, key=lambda held: (held.claimed, held.id))


def read_node(incarnation: bytes, registration: bytes, idle: bytes, waiting: bytes) -> NodeInfo:
    """Read one entry of the list of nodes. lua/nodes.lua says what its four parts are."""
    joined, info = read_registration(registration)
    try:
        about = decode(info)
    except PayloadError:
        about = {}
    return NodeInfo(
        id=str(about.get("id", "?"))[:LONGEST_ID],
        incarnation=text(incarnation),
        host=str(about.get("host", "?"))[:LONGEST_ID],
        pid=pid if isinstance(pid := about.get("pid"), int) else 0,
        joined=joined / 1000,
        idle_ms=replies.integer(idle) / 1000,
        waiting=waiting == b"1",
        listening=about.get("listening") is not False,
        version=str(about.get("version", ""))[:LONGEST_ID],
        threads=_count(about, "threads") or 0,
        used=_count(about, "used") or 0,
        deaf=about.get("deaf") is True,
        stuck=_count(about, "stuck") or 0,
        restarts=_count(about, "restarts") or 0,
        rss=_count(about, "rss"),
        rtt_ms=None if (rtt := _count(about, "rtt")) is None else rtt / 1000,
    )


def _count(about: dict[str, Any], name: str) -> int | None:
    """Return a number that a node says about itself; None if it is missing or not a count."""
    value = about.get(name)
    return value if type(value) is int and 0 <= value < 2**53 else None
