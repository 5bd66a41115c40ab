"""The recovery after an outage of all consumers: its duration, and its effect on other clients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell, now_us, post
from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Journal, NothingHandled
from benchmarks.environments import ENVIRONMENTS

_EVENTS = 100_000
_LATEST = 20  # seconds without a handler


class Recovery:
    """
    100 000 events (fewer for slow contenders) are overdue when one consumer starts.

    ``seconds`` is the time from the moment when the consumer is ready to the last handler. ``GET``
    is the round trip of another client of the same server during the recovery, and ``before`` the
    same before it. That client asks a thousand times a second.
    """

    name = "recovery"
    title = "recovery: a backlog after an outage of all consumers"
    main = "events/s"
    more_is_better = True
    unit = "events/s"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if self.name in contender.cannot:
            return []
        batches = sorted({contender.batches[0], contender.batches[-1]})
        return [Cell(self.name, contender, {"batch": batch}) for batch in batches]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return {"batch": 100}

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        contender = cell.contender
        count = bench.scale.of(contender, self.name, _EVENTS)
        with bench.poster(contender) as poster:
            # Due in 2 s: overdue by the time the last one is posted.
            poster.ask(post(contender, count, now_us() + 2_000_000))
        time.sleep(2.1)
        journal = Journal()
        home, settings = ENVIRONMENTS["dtimer"], {"url": bench.server.url}
        with Driver("foreign.py", home, settings, journal.path) as foreign:
            time.sleep(0.5)
            before = foreign.ask({})
            with bench.team(contender, 1, cell.params["batch"]) as team:
                ready = team.ready
                team.journal.wait(count, _LATEST)
                meanwhile = foreign.ask({})
                handled = team.journal.read()
        journal.close()
        if not handled:
            raise NothingHandled(f"none of {count} events was handled")
        last = max(one.at for one in handled) / 1e6
        # A consumer may have started before it reported so.
        seconds = max(1e-3, last - min(ready, min(one.at for one in handled) / 1e6))
        return {
            "events": count,
            "seconds": seconds,
            "events/s": len(handled) / seconds,
            "GET p99 ms": meanwhile["p99"],
            "GET max ms": meanwhile["max"],
            "before p99 ms": before["p99"],
            "missing": count - len({one.number for one in handled}),
        }
