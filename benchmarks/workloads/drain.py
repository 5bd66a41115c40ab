"""The rate at which a backlog is handled: all events due at one moment, with trivial handlers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import SETTLE, Bench, Cell, far, now_us, post
from benchmarks.contenders import Contender
from benchmarks.driver import Handled, NothingHandled
from benchmarks.numbers import each_second

_EVENTS = 20_000
_PROBE = 200
_LATEST = 20  # seconds without a handler


class PostedLate(Exception):
    """The due moment came before all events were posted, so the rate would be that of posting."""


class Drain:
    """
    The rate from the first handler to the last.

    All events are posted before they are due, while the consumers wait.

    ``batch`` is the most events that a handler receives, if the contender has that option.
    """

    name = "drain"
    title = "drain: events/s, all due at one moment"
    main = "events/s"
    more_is_better = True
    unit = "events/s"
    parts: tuple[str, ...] = ("nodes",)

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if self.name in contender.cannot:
            return []
        cells = [{"batch": batch, "processes": 1} for batch in contender.batches]
        if not contender.floor and "nodes" not in contender.cannot:
            most = max(contender.batches)
            cells += [{"batch": most, "processes": processes} for processes in (2, 4)]
        return [Cell(self.name, contender, params) for params in cells]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """
        See `Work.reference`: dtimer handles a hundred at a time, independent of the
        peer's batch.
        """
        return params | {"batch": 100}

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench, contender: Contender, *, batch: int = 1, processes: int = 1, share: float = 1.0
) -> dict[str, float]:
    """Measure on the server as it is."""
    count = max(2, int(bench.scale.of(contender, "drain", _EVENTS) * share))
    if contender.options.get("kind") == "call":
        # One call an event is the least cost of a consumer that asks for each event.
        with bench.poster(contender) as poster:
            poster.ask(post(contender, _PROBE, far(), way="one"))
            told = poster.ask(post(contender, count, far(), way="one"))
        return {"events/s": count / told["seconds"]}
    with bench.team(contender, processes, batch) as team, bench.poster(contender, team) as poster:
        time.sleep(SETTLE)
        # The first probe includes the connection, so only the second counts.
        poster.ask(post(contender, _PROBE, far()))
        probe = poster.ask(post(contender, _PROBE, far()))
        due = now_us() + round(1e6 * (1 + 2 * count * probe["seconds"] / _PROBE))
        poster.ask(post(contender, count, due))
        left = (due - now_us()) / 1e6
        if left < 0:
            raise PostedLate(contender.id)
        time.sleep(left)
        team.journal.wait(count, _LATEST)
        handled = team.journal.read()
    return summary(handled, count, due)


def summary(handled: Sequence[Handled], count: int, due: int) -> dict[str, float]:
    """
    Return the figures of the records of handlers.

    Raises:
        NothingHandled: the records are empty.
    """
    if not handled:
        raise NothingHandled(f"none of {count} events was handled")
    moments = [one.at for one in handled]
    numbers = {one.number for one in handled}
    after_due = (max(moments) - due) / 1e6
    return {
        "events/s": each_second(moments),
        # Some contenders start before the due moment: then this rate has no meaning.
        **({"from due": len(moments) / after_due} if min(moments) >= due else {}),
        "first ms": (min(moments) - due) / 1000,
        "missing": count - len(numbers),
        "twice": len(handled) - len(numbers),
    }
