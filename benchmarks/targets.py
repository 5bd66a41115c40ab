"""
The targets of dtimer, and whether results meet them.

A target is judged by the results of one run, if that run has the figures: ratios within rounds, and
other figures by the median of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.contenders.python import PYTHON
from benchmarks.numbers import middle, ratio
from benchmarks.results import Results, Row, key

_OURS = "dtimer/defaults"
_CALL, _NPM = "bare EVALSHA/floor", "npm dtimer/tuned"


@dataclass(frozen=True)
class Target:
    """A bound, and how to read the bounded figure from results: None if they do not have it."""

    what: str
    bound: float
    read: Callable[[Results], float | None]
    most: bool = True  # True for an upper bound, False for a lower one

    def met(self, value: float) -> bool:
        """Return True if a value is within the bound."""
        return value <= self.bound if self.most else value >= self.bound


def _row(results: Results, work: str, who: str, params: dict[str, Any]) -> Row | None:
    return results.rows(work).get(key(who, params))


def _figure(work: str, figure: str, params: dict[str, Any]) -> Callable[..., Any]:
    """Read the median of a figure of dtimer."""

    def read(results: Results) -> float | None:
        row = _row(results, work, _OURS, params)
        rounds = row.rounds(figure) if row else None
        return middle(rounds) if rounds else None

    return read


def _worst(work: str, figure: str, params: dict[str, Any]) -> Callable[..., Any]:
    """Read the highest value of a figure of dtimer in any round."""

    def read(results: Results) -> float | None:
        row = _row(results, work, _OURS, params)
        return max(row.rounds(figure).values(), default=None) if row else None

    return read


def _ratio_to(
    work: str, figure: str, mine: dict[str, Any], other: str, theirs: dict[str, Any]
) -> Callable[..., Any]:
    """Read the ratio of dtimer's figure to another contender's."""

    def read(results: Results) -> float | None:
        row, base = _row(results, work, _OURS, mine), _row(results, work, other, theirs)
        return ratio(row.rounds(figure), base.rounds(figure)) if row and base else None

    return read


def _ratio_to_best(
    work: str, figure: str, mine: dict[str, Any], peers: Callable[[Contender], bool], *, most: bool
) -> Callable[..., Any]:
    """Read the ratio of dtimer's figure to that of the best peer."""

    def read(results: Results) -> float | None:
        row = _row(results, work, _OURS, mine)
        free = {"batch"}  # peers have their own batch sizes
        alike = {name: value for name, value in mine.items() if name not in free}
        found = [
            times
            for other in results.rows(work).values()
            if row
            and peers(other.contender)
            and all(other.params.get(name) == value for name, value in alike.items())
            and (times := ratio(row.rounds(figure), other.rounds(figure))) is not None
            # Early events do not make a contender better.
            and times > 0
        ]
        if not found:
            return None
        return max(found) if most else min(found)

    return read


def _peer(one: Contender) -> bool:
    return not one.ours and not one.floor


def _python(one: Contender) -> bool:
    return one in PYTHON


_ALONE = {"nodes": 1, "stream": 0}
_MANY = {"nodes": 32, "stream": 0}
_ONE_BUSY, _ONE_SHORT, _FOUR_BUSY, _FOUR_SHORT = (
    {"nodes": 1, "busy": busy, "switch": switch} for busy in (1, 4) for switch in (5, 0.5)
)
_BESIDE_IDLE = {"nodes": 2, "busy": 4, "switch": 5}
_ONE, _TEN, _HUNDRED = ({"batch": batch, "processes": 1} for batch in (1, 10, 100))

_RATE = "events/s"

TARGETS = (
    Target("lateness p50, ms", 0.8, _figure("lateness", "p50", _ALONE)),
    Target("lateness p99, ms", 2.5, _figure("lateness", "p99", _ALONE)),
    Target("early events", 0, _worst("lateness", "early", _ALONE)),
    *(
        Target(
            f"lateness {part}, ratio to the best peer's",
            1,
            _ratio_to_best("lateness", part, _ALONE, _peer, most=True),
        )
        for part in ("p50", "p99")
    ),
    *(
        Target(
            f"lateness {part} with 32 nodes, ratio to one node",
            1.5,
            _ratio_to("lateness", part, _MANY, _OURS, _ALONE),
        )
        for part in ("p50", "p99")
    ),
    *(
        Target(f"busy {figure}, {what}, ms", bound, _figure("busy", figure, params))
        for what, params, bounds in (
            ("1 thread", _ONE_BUSY, {"p50": 8, "p99": 25}),
            ("1 thread, switch 0.5 ms", _ONE_SHORT, {"p50": 1.5}),
            ("4 threads", _FOUR_BUSY, {"p50": 150}),
            ("4 threads, switch 0.5 ms", _FOUR_SHORT, {"p50": 8}),
            ("4 threads in one of 2 nodes", _BESIDE_IDLE, {"p50": 3, "p99": 100}),
        )
        for figure, bound in bounds.items()
    ),
    Target("busy, early events, 4 threads", 0, _worst("busy", "early", _FOUR_BUSY)),
    Target("busy, missing events, 4 threads", 0, _worst("busy", "missing", _FOUR_BUSY)),
    Target(
        "posting one by one, ratio to a bare EVALSHA",
        0.8,
        _ratio_to("posting", _RATE, {"way": "one"}, _CALL, {"way": "one"}),
        most=False,
    ),
    Target(
        "posting in bulk, events/s", 40_000, _figure("posting", _RATE, {"way": "bulk"}), most=False
    ),
    Target(
        "posting in bulk, ratio to the best Python peer",
        8,
        _ratio_to_best("posting", _RATE, {"way": "bulk"}, _python, most=False),
        most=False,
    ),
    Target(
        "drain one at a time, ratio to a bare EVALSHA",
        0.55,
        _ratio_to("drain", _RATE, _ONE, _CALL, _ONE),
        most=False,
    ),
    Target("drain by 10, events/s", 20_000, _figure("drain", _RATE, _TEN), most=False),
    Target("drain by 100, events/s", 30_000, _figure("drain", _RATE, _HUNDRED), most=False),
    Target(
        "drain by 100, ratio to a bare EVALSHA",
        3.5,
        _ratio_to("drain", _RATE, _HUNDRED, _CALL, _ONE),
        most=False,
    ),
    Target(
        "drain by 100, ratio to npm dtimer with confirms",
        3,
        _ratio_to("drain", _RATE, _HUNDRED, _NPM, _HUNDRED),
        most=False,
    ),
    Target(
        "drain by 100, ratio to the best Python peer",
        15,
        _ratio_to_best("drain", _RATE, _HUNDRED, _python, most=False),
        most=False,
    ),
    Target(
        "bytes over the payload, 1 M pending",
        200,
        _figure("memory", "over the payload", {"pending": 1_000_000, "size": 50}),
    ),
    Target("idle, commands of the node a second", 2, _figure("idle", "calls/s", {"nodes": 1})),
    Target("idle, all commands a second", 12, _figure("idle", "commands/s", {"nodes": 1})),
    Target("idle, % of a core", 0.5, _figure("idle", "cpu %", {"nodes": 1})),
    *(
        Target(
            f"growth: {figure} at 5 M pending, ratio to 1 k",
            0.5,
            _ratio_to("growth", figure, {"pending": 5_000_000}, _OURS, {"pending": 1_000}),
            most=False,
        )
        for figure in ("post/s", "drain 1/s", "drain 100/s")
    ),
    Target("recovery of 100 000, s", 8, _figure("recovery", "seconds", {"batch": 100})),
    Target(
        "a foreign GET meanwhile, p99 ms", 10, _figure("recovery", "GET p99 ms", {"batch": 100})
    ),
    Target("import dtimer, ratio to import redis", 1.3, _figure("startup", "of import redis", {})),
    Target("dtimer --version, ms", 150, _figure("startup", "dtimer --version", {})),
)


def judge(results: Results) -> list[tuple[Target, float]]:
    """Return the targets that these results have figures for, each with its figure."""
    values = ((target, target.read(results)) for target in TARGETS)
    return [(target, value) for target, value in values if value is not None]
