"""The lateness of 300 events that are due at random moments within ten seconds."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import SETTLE, Bench, Cell, far, now_us, way_of
from benchmarks.contenders import Contender
from benchmarks.driver import Handled
from benchmarks.numbers import spread

_EVENTS = 300
_RATE = 10_000
_LEAD = 1.5  # seconds for posting all events
_LATEST = 15  # seconds without a handler, after which missing events count as lost


class Lateness:
    """
    The time from the due moment to the call of the handler, in ms of the wall clock.

    All events are posted before the first is due. With ``stream``, another process posts up to 10
    000 far events a second meanwhile. ``claim`` is how late the server claimed the event, if the
    contender reports it. ``early`` must be 0.
    """

    name = "lateness"
    title = "lateness: due to handler, ms"
    main = "p50"
    more_is_better = False
    unit = "ms"
    parts: tuple[str, ...] = ("stream",)

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if self.name in contender.cannot:
            return []
        cells = [{"nodes": 1, "stream": 0}]
        if "stream" not in contender.cannot:
            cells.append({"nodes": 1, "stream": _RATE})
        if contender.ours:
            cells += [{"nodes": nodes, "stream": 0} for nodes in (8, 32)]
        return [Cell(self.name, contender, params) for params in cells]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench,
    contender: Contender,
    *,
    nodes: int = 1,
    stream: int = 0,
    share: float = 1.0,
) -> dict[str, float]:
    """Measure on the server as it is, with a *share* of the events and of the time."""
    count = max(2, int(_EVENTS * bench.scale.factor * share))
    seconds = bench.scale.seconds * share
    figures: dict[str, float] = {}
    with bench.team(contender, nodes) as team, bench.poster(contender, team) as poster:
        time.sleep(SETTLE)
        if stream:
            with bench.poster(contender) as other:
                other.tell(_stream(contender, stream, seconds + _LEAD))
                _post(poster, contender, count, seconds)
                team.journal.wait(count, _LATEST)
                told = other.answer()
                figures["streamed/s"] = told["posted"] / told["seconds"]
        else:
            _post(poster, contender, count, seconds)
            team.journal.wait(count, _LATEST)
        handled = team.journal.read()
    return summary(handled, count) | figures


def summary(handled: Sequence[Handled], count: int) -> dict[str, float]:
    """Return the figures of the records of handlers."""
    firsts = {one.number: one for one in reversed(handled)}
    late = [one.late_ms for one in firsts.values()]
    figures = spread(late) if late else {}
    figures["early"] = sum(by < 0 for by in late)
    figures["missing"] = count - len(firsts)
    figures["twice"] = len(handled) - len(firsts)
    claims = [n / 1000 for one in firsts.values() if (n := one.claim_late) is not None]
    if any(claims):
        told = spread(claims)
        figures |= {"claim p50": told["p50"], "claim p99": told["p99"]}
    return figures


def _post(poster: Any, contender: Contender, count: int, seconds: float) -> None:
    start = now_us() + round(_LEAD * 1e6)
    dues = sorted(start + round(random.uniform(0, seconds) * 1e6) for _ in range(count))
    poster.tell({"do": "post_at", "dues": dues, "way": way_of(contender), "size": 50})


def _stream(contender: Contender, rate: int, seconds: float) -> dict[str, Any]:
    how = {"way": way_of(contender), "size": 50, "due": far()}
    return {"do": "stream", "rate": rate, "seconds": seconds, **how}
