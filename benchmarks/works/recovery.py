"""After an outage of all consumers: how long until the backlog is gone, and who else feels it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell, now_us, post
from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Journal, NobodyCame

_EVENTS = 100_000
_LATEST = 20  # seconds without a handler


class Recovery:
    """
    100 000 events (fewer for the slow) are overdue when one consumer starts.

    ``seconds`` is from its being ready to the last handler, ``GET`` the round trip of another
    client of the same server, that asks a thousand times a second: meanwhile, and just before.
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
            # As soon as can be: they are overdue by the time that the last is posted.
            poster.ask(post(contender, count, now_us() + 2_000_000))
        time.sleep(2.1)
        journal = Journal()
        with Driver("foreign.py", "dtimer", {"url": bench.server.url}, journal.path) as foreign:
            time.sleep(0.5)
            before = foreign.ask({})
            with bench.team(contender, 1, cell.params["batch"]) as team:
                ready = team.ready
                team.journal.wait(count, _LATEST)
                meanwhile = foreign.ask({})
                handled = team.journal.read()
        journal.close()
        if not handled:
            raise NobodyCame(f"none of {count} events was handled")
        last = max(one.at for one in handled) / 1e6
        # A consumer may have begun before it said so.
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
