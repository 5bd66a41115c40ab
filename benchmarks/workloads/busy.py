"""The lateness of 200 events in a process whose other threads compute."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.bench import SETTLE, Bench, Cell, Team, now_us, way_of
from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Handled
from benchmarks.numbers import spread
from benchmarks.workloads.drain import PostedLate

_EVENTS = 200
_SECONDS = 6.6
_LEAD = 1.5  # seconds for posting all events
_LATEST = 8  # seconds after the last due moment, when events without a handler count as missing

#: The numbers of computing threads, and the switch intervals in ms. The default is 5 ms.
_BUSY, _SWITCHES = (0, 1, 4), (5, 0.5)


class Busy:
    """
    The time from the due moment to the call of the handler, beside threads that compute.

    ``busy`` threads run loops of pure Python in the process of the first node, with the switch
    interval ``switch`` (ms). They start before the node joins. Another process posts all events
    before the first is due. With two nodes, the second is an idle process, and ``busy node %`` is
    the share of the events that the busy node started.

    An event that is ``missing`` 8 s after the last was due counts with the lateness that it has
    then. ``early`` must be 0.
    """

    name = "busy"
    title = "busy: due to handler beside threads that compute, ms"
    main = "p50"
    more_is_better = False
    unit = "ms"
    parts: tuple[str, ...] = ("nodes",)

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if not contender.in_process or self.name in contender.cannot:
            return []
        cells: list[dict[str, Any]] = [
            {"nodes": 1, "busy": busy, "switch": switch} for busy in _BUSY for switch in _SWITCHES
        ]
        if "nodes" not in contender.cannot:
            cells.append({"nodes": 2, "busy": _BUSY[-1], "switch": _SWITCHES[0]})
        return [Cell(self.name, contender, params) for params in cells]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench, contender: Contender, *, nodes: int = 1, busy: int = 0, switch: float = 5
) -> dict[str, float]:
    """Measure on the server as it is."""
    count, seconds = size(bench)
    burn = {"threads": busy, "switch": switch / 1000}
    # A contender that posts to itself posts before the threads compute.
    later = contender.posts_from_consumer and not contender.floor
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(bench.team(contender, burn={} if later else burn))
        others = [stack.enter_context(bench.team(contender)) for _ in range(1, nodes)]
        teams = [first, *others]
        with posted(bench, contender, first, count, seconds) as (dues, poster):
            if later:
                poster.ask({"do": "burn", **burn})
            end = dues[-1] + _LATEST * 1_000_000
            wait(teams, count, end)
            return summary([team.journal.read() for team in teams], dues, now_us())


def size(bench: Bench) -> tuple[int, float]:
    """Return the number of events, and the seconds in which they are due."""
    return max(2, int(_EVENTS * bench.scale.factor)), _SECONDS * bench.scale.seconds / 10


@contextlib.contextmanager
def posted(
    bench: Bench, contender: Contender, team: Team, count: int, seconds: float
) -> Iterator[tuple[list[int], Driver]]:
    """
    Post events that are due at random moments; yield the moments, and the process that posted.

    Raises:
        PostedLate: the first event was due before the last was posted.
    """
    with bench.poster(contender, team) as poster:
        time.sleep(SETTLE)
        start = now_us() + round(_LEAD * 1e6)
        dues = sorted(start + round(random.uniform(0, seconds) * 1e6) for _ in range(count))
        poster.tell({"do": "post_at", "dues": dues, "way": way_of(contender), "size": 50})
        # A floor that posts to itself answers when it has waited for the last moment.
        if not (contender.floor and contender.posts_from_consumer):
            poster.answer()
            if now_us() > dues[0]:
                raise PostedLate(contender.id)
        yield dues, poster


def wait(teams: Sequence[Team], count: int, end: int) -> None:
    """Wait until *count* handlers were called, but not longer than *end*."""
    while sum(len(team.journal) for team in teams) < count and now_us() < end:
        time.sleep(0.05)


def summary(nodes: Sequence[Sequence[Handled]], dues: Sequence[int], now: int) -> dict[str, float]:
    """
    Return the figures of the records of each node's handlers; the first node is the busy one.

    *dues* has the due moment of each event by its number, and *now* the moment of reading.
    """
    starts: dict[int, tuple[int, int]] = {}
    for node, handled in enumerate(nodes):
        for one in handled:
            starts[one.number] = min((one.at, node), starts.get(one.number, (one.at, node)))
    late = [(starts.get(n, (now, 0))[0] - due) / 1000 for n, due in enumerate(dues)]
    figures = spread(late)
    del figures["min"]
    figures["early"] = sum(by < 0 for by in late)
    figures["missing"] = len(dues) - len(starts)
    figures["twice"] = sum(map(len, nodes)) - len(starts)
    if len(nodes) > 1 and starts:
        busy = sum(node == 0 for _, node in starts.values())
        figures["busy node %"] = 100 * busy / len(starts)
    return figures
