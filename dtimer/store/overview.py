"""Read replies about a namespace as a whole: its statistics and its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtimer.errors import PayloadError
from dtimer.model.ids import LONGEST_ID
from dtimer.model.outcomes import Reason
from dtimer.model.payload import decode
from dtimer.model.records import Cleared, NodeInfo, Stats
from dtimer.store import replies
from dtimer.store.format import text


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


def read_node(incarnation: bytes, registration: bytes, idle: bytes, waiting: bytes) -> NodeInfo:
    """Read one entry of the list of nodes. lua/nodes.lua says what its four parts are."""
    joined, _, info = registration.partition(b"|")
    try:
        about = decode(info)
    except PayloadError:
        about = {}
    return NodeInfo(
        id=str(about.get("id", "?"))[:LONGEST_ID],
        incarnation=text(incarnation),
        host=str(about.get("host", "?"))[:LONGEST_ID],
        pid=pid if isinstance(pid := about.get("pid"), int) else 0,
        joined=replies.integer(joined) / 1000,
        idle_ms=replies.integer(idle) / 1000,
        waiting=waiting == b"1",
        listening=about.get("listening") is not False,
    )
