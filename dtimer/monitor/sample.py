"""Read the state of a namespace repeatedly, and compute rates from earlier reads."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from typing import Any

from dtimer.model.histogram import increase, percentile
from dtimer.model.records import NodeInfo, Record, Stats
from dtimer.monitor.fields import record_fields, stats_fields
from dtimer.store.admin import AdminStore
from dtimer.store.store import Store

#: Seconds of history that a frame has, if one is read each second.
MINUTE = 60

#: The most leases that are read to count the events in flight of each node. If there are more
#: leases, the counts are estimates.
_MOST_LEASES = 500


@dataclasses.dataclass(frozen=True)
class Frame:
    """
    The state of a namespace at one moment.

    ``rate`` is the number of events confirmed per second since the last frame, and ``history``
    has the rates of the last minute, the latest last. ``held`` has the number of events in flight
    by incarnation. ``now`` is the server's time in ms. ``late`` has p50 and p99 of the lateness
    in the last minute in ms, or None if no event was delivered.
    """

    ns: str
    now: float
    stats: Stats
    nodes: list[NodeInfo]
    held: dict[str, int]
    upcoming: list[Record]
    rate: float
    posted_rate: float
    history: list[float]
    late: tuple[float | None, float | None] = (None, None)

    def for_programs(self) -> dict[str, Any]:
        """Return the frame for JSON."""
        return {
            "ns": self.ns,
            "now": self.now,
            **stats_fields(self.stats),
            "lateness_ms": {"p50": self.late[0], "p99": self.late[1]},
            "events_per_second": round(self.rate, 3),
            "posts_per_second": round(self.posted_rate, 3),
            "history": [round(rate, 3) for rate in self.history],
            "nodes": [
                dataclasses.asdict(node) | {"in_flight": self.held.get(node.incarnation, 0)}
                for node in self.nodes
            ],
            "upcoming": [record_fields(record) for record in self.upcoming],
        }


class Sampler:
    """Reads frames, and keeps the history of a minute."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._before: tuple[float, Stats] | None = None
        self._history: deque[float] = deque(maxlen=MINUTE)
        self._lateness: deque[tuple[int, ...]] = deque(maxlen=MINUTE + 1)

    def look(self, upcoming: int) -> Frame:
        """Read one frame. That takes five calls, however many events there are."""
        stats = self._store.stats()
        at = time.monotonic()
        rate = posted = 0.0
        if self._before is not None:
            then, old = self._before
            seconds = max(at - then, 1e-3)
            rate = self._grown(stats, old, "confirmed") / seconds
            posted = self._grown(stats, old, "posted") / seconds
            self._history.append(rate)
        self._before = at, stats
        self._lateness.append(stats.lateness)
        recent = increase(stats.lateness, self._lateness[0])
        held = AdminStore(self._store).holders(_MOST_LEASES)
        leases_read = sum(held.values())
        if 0 < leases_read < stats.in_flight:
            # Only a sample was read: scale its counts to all the events in flight.
            held = {name: round(n * stats.in_flight / leases_read) for name, n in held.items()}
        return Frame(
            ns=self._store.ns,
            now=self._store.namespace.server_now() / 1000,
            stats=stats,
            nodes=sorted(self._store.nodes(), key=lambda node: (node.id, node.incarnation)),
            held=held,
            upcoming=list(itertools.islice(self._store.upcoming("-inf", "+inf"), upcoming)),
            rate=rate,
            posted_rate=posted,
            history=list(self._history),
            late=(percentile(recent, 0.5), percentile(recent, 0.99)),
        )

    @staticmethod
    def _grown(new: Stats, old: Stats, name: str) -> int:
        # A server that has lost its data counts from zero again.
        return max(0, new.totals.get(name, 0) - old.totals.get(name, 0))
