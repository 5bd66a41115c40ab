"""How fast a backlog is handled: events that are all due at one moment, and trivial handlers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import SETTLE, Bench, Cell, far, now_us, post
from benchmarks.contenders import Contender
from benchmarks.driver import Handled, NobodyCame
from benchmarks.figures import each_second

_EVENTS = 20_000
_PROBE = 200
_LATEST = 20  # seconds without a handler


class PostedLate(Exception):
    """The moment came before all was posted, so the rate would be that of the posting."""


class Drain:
    """
    From the first handler to the last. Consumers wait before, and all is posted by then.

    ``batch`` is how many events a handler is given at most, where the contender has that.
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
        """See `Work.reference`: a hundred at a time, whatever the peer can."""
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
        # A call an event is what any consumer pays that asks once for each.
        with bench.poster(contender) as poster:
            poster.ask(post(contender, _PROBE, far(), way="one"))
            told = poster.ask(post(contender, count, far(), way="one"))
        return {"events/s": count / told["seconds"]}
    with bench.team(contender, processes, batch) as team, bench.poster(contender, team) as poster:
        time.sleep(SETTLE)
        # The first of them pays for the connection, which says nothing about the rest.
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
    Return the figures of what handlers wrote.

    Raises:
        NobodyCame: they wrote nothing.
    """
    if not handled:
        raise NobodyCame(f"none of {count} events was handled")
    moments = [one.at for one in handled]
    numbers = {one.number for one in handled}
    after_due = (max(moments) - due) / 1e6
    return {
        "events/s": each_second(moments),
        # Some begin before: then there is no such rate.
        **({"from due": len(moments) / after_due} if min(moments) >= due else {}),
        "first ms": (min(moments) - due) / 1000,
        "missing": count - len(numbers),
        "twice": len(handled) - len(numbers),
    }
