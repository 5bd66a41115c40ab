"""
The steps of a history, for tables of histories in the tests of the checker.

A step is a function of a `Case`: ``post("a", 1)`` calls its method ``post`` with these arguments.
`chaos.history` explains the fields of the records.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chaos.cases import NODE, Case, accepted, caught, server_us

Step = Callable[[Case], object]


def _method(name: str) -> Callable[..., Step]:
    return functools.partial(operator.methodcaller, name)


say, call, post, run, ahead = map(_method, ("say", "call", "post", "run", "ahead"))
claim, leave, holder, cancel = map(_method, ("claim", "leave", "holder", "cancel"))
update, drop = map(_method, ("update", "drop"))
fault, kill, ends = map(_method, ("fault", "kill", "ends"))


def began(id: str, n: int, at: float) -> tuple[str, int, int]:
    """Return the id, the number of the post and the token of a run, for `holder`."""
    return id, n, server_us(at - 1)


def auto(at: float, run: tuple[str, int, int], **more: Any) -> Step:
    """Record what the server replied to the handler thread after the handler had returned."""
    id, n, tok = run
    return say(NODE, at, "auto", id=id, n=n, tok=tok, **more)


def tell(case: Case, steps: Sequence[Step]) -> Case:
    """Record the steps in order, and return the same object."""
    for step in steps:
        step(case)
    return case


def legal(title: str, *steps: Step, redelivered: Any = None, counts: Any = None) -> Any:
    """Return a row of a history that the checker must accept, with figures of its verdict."""
    return pytest.param(steps, (redelivered, counts or {}), id=title)


def check_legal(case: Case, steps: Sequence[Step], figures: tuple[Any, Any]) -> None:
    """Check that the checker accepts the history of a row, with these figures."""
    redelivered, counts = figures
    verdict = accepted(tell(case, steps))
    assert redelivered in (None, verdict.redelivered)
    assert counts == {name: verdict.counts[name] for name in counts}


def illegal(
    title: str,
    invariant: str,
    words: str,
    *steps: Step,
    times: int | None = None,
    redelivered: Any = None,
    counts: Any = None,
) -> Any:
    """
    Return a row of a history that the checker must reject.

    Args:
        title: The fault of the history.
        invariant: The invariant that it breaks.
        words: Part of the text of the violation.
        *steps: The history.
        times: The number of violations of the invariant, if the row states it.
        redelivered: The redeliveries by explanation, if the row states them.
        counts: Some of the counts of the verdict.
    """
    figures = (invariant, words, times, redelivered, counts or {})
    return pytest.param(steps, figures, id=f"{invariant}: {title}")


def check_illegal(case: Case, steps: Sequence[Step], figures: tuple[Any, ...]) -> None:
    """Check that the checker rejects the history of a row for its reason, with these figures."""
    invariant, words, times, redelivered, counts = figures
    verdict = caught(tell(case, steps), invariant, words)
    assert times in (None, verdict.broken[invariant])
    assert redelivered in (None, verdict.redelivered)
    assert counts == {name: verdict.counts[name] for name in counts}
