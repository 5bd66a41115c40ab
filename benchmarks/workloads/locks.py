"""How often the threads of a consumer acquire the interpreter's lock for an event."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.bench import Bench, Cell, now_us
from benchmarks.contenders import Contender
from benchmarks.driver import Handled
from benchmarks.workloads import busy


class Call(NamedTuple):
    """
    A call that released the interpreter's lock, and acquired it again at its end.

    `waited` is True if the kernel stopped the thread meanwhile.
    """

    at: int
    thread: str
    function: str
    waited: bool


class Locks:
    """
    The calls of C functions that release the interpreter's lock, for each event.

    The events are those of `busy`, but no thread computes. A profiler sees every call of a C
    function on the consumer's threads. ``waits`` stopped the thread, ``short`` calls did not.
    ``due to handler`` is the median of the calls that end between the due moment and the handler,
    on all threads of the consumer, of the events that did not overlap others.
    """

    name = "locks"
    title = "locks: acquisitions of the interpreter's lock an event"
    main = "due to handler"
    more_is_better = False
    unit = "calls"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if not contender.in_process or contender.floor:
            return []
        return [Cell(self.name, contender)]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        calls, handled = observe(bench, cell.contender)
        return summary(calls, handled)


def observe(bench: Bench, contender: Contender) -> tuple[list[Call], list[Handled]]:
    """Return the calls while events were due, and the records of the handlers."""
    count, seconds = busy.size(bench)
    with (
        bench.team(contender, count_calls=True) as team,
        busy.posted(bench, contender, team, count, seconds) as (dues, _),
    ):
        began = now_us()
        busy.wait([team], count, dues[-1] + 8_000_000)
        handled = team.journal.read()
        told = team.drivers[0].ask({"do": "calls"})["calls"]
    calls = (Call(*one) for one in told)
    return [call for call in calls if call.at > began], handled


def on_the_way(calls: Sequence[Call], handled: Sequence[Handled]) -> list[list[Call]]:
    """
    Return the calls that end between the due moment and the handler, for each event that is alone.

    An event is alone if, meanwhile, no other event is due and no other handler is called: otherwise
    the calls of several events cannot be told apart.
    """
    moments = [moment for one in handled for moment in (one.due, one.at)]
    return [
        [call for call in calls if one.due < call.at <= one.at]
        for one in handled
        if one.due < one.at and sum(one.due <= moment <= one.at for moment in moments) == 2
    ]


def summary(calls: Sequence[Call], handled: Sequence[Handled]) -> dict[str, float]:
    """Return the figures of the calls and of the records of handlers."""
    count = max(1, len(handled))
    waits = sum(call.waited for call in calls)
    between = [len(way) for way in on_the_way(calls, handled)]
    return {
        **({"due to handler": statistics.median(between)} if between else {}),
        "waits": waits / count,
        "short": (len(calls) - waits) / count,
    }


def tally(calls: Sequence[Call], count: int) -> dict[tuple[str, str, str], float]:
    """Return the calls per event, by thread, function, and ``wait`` or ``short``."""
    kinds = Counter((c.thread, c.function, "wait" if c.waited else "short") for c in calls)
    return {kind: kinds[kind] / max(1, count) for kind in sorted(kinds)}
