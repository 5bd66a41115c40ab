"""The rate at which one process posts: one by one, and in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell, far, post
from benchmarks.contenders import Contender

_EVENTS = 20_000
_WARM = 200


class Posting:
    """
    Events of 50 bytes, due in a day, from one process that does nothing else.

    One by one means that each post is known to be stored before the next.
    """

    name = "posting"
    title = "posting: events/s of one process"
    main = "events/s"
    more_is_better = True
    unit = "events/s"
    parts: tuple[str, ...] = ("bulk",)

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if self.name in contender.cannot:
            return []
        ways = ["one"] if "bulk" in contender.cannot else ["one", "bulk"]
        return [Cell(self.name, contender, {"way": way}) for way in ways]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench, contender: Contender, *, way: str, share: float = 1.0
) -> dict[str, float]:
    """Measure on the server as it is."""
    count = max(1, int(bench.scale.of(contender, "posting", _EVENTS) * share))
    with bench.poster(contender) as poster:
        poster.ask(post(contender, _WARM, far(), way=way))
        told = poster.ask(post(contender, count, far(), way=way))
    return {"events/s": count / told["seconds"], "µs each": 1e6 * told["seconds"] / count}
