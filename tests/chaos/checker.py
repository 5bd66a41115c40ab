"""
Check a recorded history for the promises of dtimer.

    PYTHONPATH=tests python -m chaos.checker FOLDER

The checker reads the history once, one process at a time, and sorts the operations by id, schedule
and key on disk. Then it checks each id, schedule and key by itself. So memory is bounded, and a
million events take a minute or two. `chaos.verdict.INVARIANTS` lists the checks.

The checker reports nothing that a correct library could have done. An operation with an unknown
outcome may or may not have taken effect. Overlapping operations may have acted in either order.

The more a history records, the more the checker can find. `chaos.history` explains the fields that
most records have. Besides calls and runs, the checker reads:

``node`` with ``phase`` ``begin`` or ``end``; at the beginning ``max_run_ms`` and ``timeout_ms``
    How long a handler keeps its lease, and the deadline of the calls of this process (I16).
``post`` with ``generated``, and ``run`` with ``ahead_us``
    The library generated the event's id, so a node may claim the event this long before its due
    time. Without these fields no claim may come before the due time.
``post`` whose end has ``stored``
    False if an existing event was kept. Without it, a post on a condition may have done either.
``clock``, a call that ends with ``srv``, the server's ``TIME`` in µs
    Locates claims in time to within a round trip. Without it, the precision is the shortest time
    from a post to its handler.
``claim``, by a node that records its claims, and ``leave``
    The events that a node had claimed, but not started, when it left properly (I17).
``stall``, ``kill``, ``fault``
    The possible reasons of a redelivery; see `chaos.troubles`.
``extend`` with ``ms``, ``retry``, ``release``, ``confirm``, ``auto``
    How a claim ended. Without them the checker finds less, and reports nothing wrong.
``update`` with ``n`` and ``crc`` (its end with ``updated``), ``drop`` (its end with ``dropped``)
    Required: without them the checker takes their effects for violations.
``post`` with ``max_wait_us``
    The event may become due before its delay is over, and must not become due later than this long
    after the wait began (I18).
``revive``, ``run_now`` (its end with ``occurrence``, the id), ``pause_schedule``, ``unschedule``
    Required: without them the checker takes their effects for violations.
``final``, once, by the program that ends the run
    ``pending`` (all ids, claimed or not), ``dead`` (each with ``id``, ``n``, ``attempt``,
    ``reason``, ``error``) and ``sound``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from chaos.clock import Clock
from chaos.history import NOTES, History, Operation
from chaos.id_checker import IdChecker
from chaos.key_checker import KeyChecker
from chaos.occurrences import OCCURRENCE
from chaos.schedule_checker import ScheduleChecker
from chaos.spill import Key, Spill
from chaos.table import as_json, as_text
from chaos.troubles import SECOND, Troubles
from chaos.verdict import CheckContext, Verdict

#: Calls of the library that have a deadline of one script each.
_CALLS = {
    *("bury", "cancel", "confirm", "drop", "extend", "post", "release", "reschedule", "retry"),
    *("revive", "schedule", "snooze", "unschedule", "update", "write"),
}
_OF_SCHEDULES = {"schedule", "unschedule", "run_now", "pause_schedule", "resume_schedule"}
_COUNTED = _CALLS | {"run_now", "pause_schedule", "resume_schedule"}


def check(
    folder: str | os.PathLike[str],
    *,
    rollback: bool = False,
    partial: bool = False,
    aftermath: float = 2.0,
    slack_ms: float = 100.0,
) -> Verdict:
    """
    Check the history in *folder*.

    Args:
        rollback: A fault that loses acknowledged writes was injected. A violation that such lost
            writes can explain is counted as excused.
        partial: The history may lack its end. The checker then reports no losses.
        aftermath: For how many seconds after its end a fault may still have effects: the longest
            pause between two attempts, a poll, and a call.
        slack_ms: How long after its deadline a call may return.

    Raises:
        HistoryError: The folder has no valid history.
    """
    with _uncollected():
        return _check(History(folder), rollback, partial, aftermath, slack_ms)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the garbage collector off: it would search millions of records without cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _check(
    history: History, rollback: bool, partial: bool, aftermath: float, slack_ms: float
) -> Verdict:
    troubles = Troubles(aftermath=round(aftermath * SECOND))
    clock = Clock()
    context = CheckContext(troubles, rollback=rollback)
    timed: list[Operation] = []
    finals: list[Operation] = []
    with Spill() as spill:
        for op in history.operations():
            troubles.saw(op)
            clock.saw(op)
            if op.op == "final":
                finals.append(op)
            elif op.op == "post" and op.id is None and op.unknown:
                context.nameless[op.data["n"]] = op
            elif op.op == "recovered":
                context.recovered(op)
            elif op.op in _COUNTED:
                context.verdict.counts["unknown outcomes"] += op.unknown
                _overtime(op, troubles, timed, round(slack_ms * 1e6))
            if (key := _key(op)) is not None:
                spill.put(key, op)
        troubles.close()
        clock.close(steps=troubles.steps, ordered=not troubles.rollbacks)
        for final in finals:
            context.ended(final)
        if not finals and not partial:
            context.blame("I12", "", "the history has no end: there is no final record")
        _late_calls(context, timed)
        _check_all(context, clock, spill)
    verdict = context.close()
    _remarks(verdict, history, clock, troubles)
    return verdict


def _key(op: Operation) -> Key | None:
    if op.id is None:
        return None
    if op.data.get("face") == "runat":
        return ("key", op.id)
    if op.op in _OF_SCHEDULES:
        return ("schedule", op.id)
    if op.op in NOTES and op.op not in ("auto", "claim", "dead", "expired"):
        return None
    if match := OCCURRENCE.match(op.id):
        return ("schedule", match[1])
    return ("id", op.id)


def _check_all(context: CheckContext, clock: Clock, spill: Spill) -> None:
    checkers: dict[str, IdChecker | ScheduleChecker | KeyChecker] = {
        "id": IdChecker(context, clock),
        "schedule": ScheduleChecker(context, clock),
        "key": KeyChecker(context, clock),
    }
    unheard = set(context.pending or ()) | set(context.buried)
    schedules = set()
    for (kind, name), operations in spill:
        unheard.discard(name)
        if kind == "schedule":
            schedules.add(name)
        checkers[kind].check(name, operations)
    for id in sorted(unheard):
        match = OCCURRENCE.match(id)
        if not match or match[1] not in schedules:
            context.blame("I3", id, "present at the end, but never posted", context.buried.get(id))


def _overtime(op: Operation, troubles: Troubles, timed: list[Operation], slack: int) -> None:
    """Add a call to *timed* if it exceeded its deadline or never returned."""
    if op.op not in _CALLS or op.data.get("burst"):
        return
    if op.end is None:
        timed.append(op)
        return
    # The first record of a process has its deadline.
    timeout = troubles.lifetimes[op.p].timeout
    if timeout is not None and op.end - op.t > timeout + slack:
        timed.append(op)


def _late_calls(context: CheckContext, timed: list[Operation]) -> None:
    troubles = context.troubles
    for op in timed:
        process = troubles.lifetimes[op.p]
        if op.end is None:
            if process.left is not None and process.killed is None:
                text = f"{op.op} had not returned when its process left"
                context.blame("I16", op.id, text, op)
            continue
        if troubles.halted(op.p, op.t, op.end):
            continue
        text = f"{op.op} took {(op.end - op.t) / 1e6:.0f} ms, the deadline was"
        context.blame("I16", op.id, f"{text} {(process.timeout or 0) / 1e6:.0f} ms", op)


def _remarks(verdict: Verdict, history: History, clock: Clock, troubles: Troubles) -> None:
    verdict.counts["early"] = verdict.broken["I1"]
    verdict.counts["lost"] += 0
    verdict.counts["torn lines"] = history.torn
    verdict.counts["records"] = history.lines
    verdict.counts["processes"] = len(troubles.lifetimes)
    verdict.counts["killed"] = sum(
        process.killed is not None for process in troubles.lifetimes.values()
    )
    if not clock.steady:
        verdict.notes.append(
            "the server's clock and the monotonic clock moved apart, but no fault is recorded that"
            " set one of them: delays are not compared with the monotonic clock"
        )


def main(arguments: list[str] | None = None) -> int:
    """Check a recorded history, print the table, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.checker", description="Check a recorded history."
    )
    parser.add_argument("folder", type=Path, help="the history: a folder of *.jsonl files")
    parser.add_argument(
        "--rollback", action="store_true", help="excuse losses: acknowledged writes were lost"
    )
    parser.add_argument("--partial", action="store_true", help="accept a history without an end")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    verdict = check(options.folder, rollback=options.rollback, partial=options.partial)
    print(as_json(verdict) if options.json else as_text(verdict))  # noqa: T201
    if not verdict.ok:
        print(verdict, file=sys.stderr)  # noqa: T201
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
