"""
Check one generation of an event: the claims that followed one post, and how each ended.

A run is a claim that reached a handler. A claim that did not shows only as a missing number among
the attempts. The node confirms an event of a returned handler in its next claim, and the history
does not record that. So a run that returned may or may not have been confirmed. If the event was
delivered again, it was not.
"""

from __future__ import annotations

import itertools

from chaos.clock import Clock
from chaos.history import Operation
from chaos.leave_checker import LeaveChecker
from chaos.troubles import FOREVER, Troubles
from chaos.verdict import CheckContext

_SETTLES = {"bury", "confirm", "release", "retry", "snooze"}
#: Those after which the event is delivered again, and those of them that charge no attempt.
_GIVES_BACK, _CHARGES_NONE = ("release", "retry", "snooze"), ("release", "snooze")
#: Calls of the holder of a claim, and the server's reply to its thread.
_HOLDER_CALLS = {*_SETTLES, "auto", "extend"}
#: The server keeps the last reply of a session for at least this long, in ns.
_MEMO = 60_000_000_000


class Generation:
    """
    The operations that followed one post, or one nominal time of a schedule.

    Args:
        id: The event's id.
        origin: The post, or the declaration of the schedule. None if there is none.
    """

    __slots__ = (
        *("alone", "claims", "first", "id", "letters", "max_retries", "origin", "revived", "runs"),
        "holder_calls",
    )

    def __init__(self, id: str, origin: Operation | None) -> None:
        self.id = id
        self.origin = origin
        self.max_retries: int | None = origin.data.get("max_retries") if origin else None
        #: Sorted by token after `arrange` was called.
        self.runs: list[Operation] = []
        #: The claims of nodes that record them, whether a handler started or not.
        self.claims: list[Operation] = []
        #: By token: the calls that the holder of a claim made about it, such as confirm.
        self.holder_calls: dict[int, list[Operation]] = {}
        self.letters: list[Operation] = []
        self.revived = False
        #: True if no other post of the id can have come after this one, or before it.
        self.alone = True
        self.first = True

    def add(self, op: Operation) -> None:
        """Add an operation on this generation; other kinds are left out."""
        if op.op == "run":
            self.runs.append(op)
        elif op.op == "claim":
            self.claims.append(op)
        elif op.op in _HOLDER_CALLS:
            self.holder_calls.setdefault(op.data["tok"], []).append(op)
        elif op.op in ("dead", "expired"):
            self.letters.append(op)

    def arrange(self) -> None:
        """Put the runs in the order in which they were claimed."""
        if len(self.runs) > 1:
            self.runs.sort(key=token)

    def free(self, run: Operation) -> bool:
        """Return True if a run may have charged no attempt: it was released or snoozed."""
        calls = self.calls_about(run, *_CHARGES_NONE)
        return any(call.op == "release" or call.unknown or accepted(call) for call in calls)

    def calls_about(self, run: Operation, *ops: str) -> list[Operation]:
        """Return the calls of the given kinds that the holder of a run made about it."""
        calls = self.holder_calls.get(run.data["tok"])
        return [call for call in calls if call.op in ops] if calls else []

    def confirmed(self) -> Operation | None:
        """Return an accepted confirmation, by the handler or by its thread, or None."""
        for calls in self.holder_calls.values():
            for call in calls:
                if call.op == "confirm" and accepted(call):
                    return call
                if call.op == "auto" and call.data.get("result") == "DONE" and accepted(call):
                    return call
        return None

    @property
    def handled(self) -> bool:
        """True if the event was handled, as far as the history shows, so nothing need follow."""
        if self.confirmed() or any(
            call.op == "confirm" and call.unknown
            for calls in self.holder_calls.values()
            for call in calls
        ):
            return True
        if not self.runs:
            return False
        # Only the last run counts: the events of all earlier runs were delivered again.
        last = self.runs[-1]
        if last.ph != "ok" or last.end is None:
            return False
        # A buried event must be found as a dead letter.
        returned = any(call.ph == "ok" for call in self.calls_about(last, *_GIVES_BACK, "bury"))
        refused = any(
            # If the session's reply has expired, a repeated confirmation is refused although the
            # first one was accepted.
            call.t - last.end < _MEMO and not accepted(call)
            for call in self.calls_about(last, "auto")
        )
        return not (returned or refused)


def token(run: Operation) -> int:
    tok: int = run.data["tok"]
    return tok


def accepted(call: Operation) -> bool:
    """Return True if the server certainly accepted a holder's call."""
    return call.ph == "ok" and bool(call.data.get("accepted"))


class LeaseChecker:
    """Checks generations for I4, I5, I7, I8, I9, I13 and I17, and for claims that are too early."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._troubles: Troubles = context.troubles
        self._leave_checker = LeaveChecker(context, clock)

    def check(self, gen: Generation) -> None:
        runs = gen.runs
        for run in runs:
            if (ahead := run.data["due"] - self._clock.shown_us(run)) > 0:
                self._check_ahead(gen, run, ahead)
            self._context.late(run)
        if len(runs) > 1:
            for earlier, run in itertools.pairwise(runs):
                self._check_redelivery(gen, earlier, run)
        if runs and (runs[0].data["att"] > 1 and not gen.revived):
            self._check_unseen_attempt(gen, None, runs[0])
        if runs:
            self._check_attempts(gen)
        if gen.holder_calls:
            self._check_calls(gen)
        if gen.letters:
            self._check_dead_letters(gen)
        if gen.claims:
            self._leave_checker.check(gen)

    def _check_ahead(self, gen: Generation, run: Operation, ahead: int) -> None:
        """Check a claim that was made *ahead* µs before the event was due."""
        context, due = self._context, run.data["due"]
        context.verdict.counts["claimed ahead"] += 1
        if gen.origin is None or not gen.origin.data.get("generated"):
            # A user may replace an event with an id of their own until it is due.
            context.blame("I1", gen.id, "claimed before it was due", gen.origin, run)
        elif ahead > run.data.get("ahead_us", 0):
            text = f"claimed {ahead / 1000:.1f} ms before it was due, which is too far ahead"
            context.blame("I1", gen.id, text, gen.origin, run)
        left = due * 1000 - self._clock.latest_ns(run.t)
        if left > 0 and self._clock.kept_pace(self._clock.claimed(run)[0], run.t):
            text = f"its handler began {left / 1e6:.1f} ms before it was due by the server's clock"
            context.blame("I1", gen.id, text, gen.origin, run)

    # ------------------------------------------------------------------- one claim after another

    def _check_redelivery(self, gen: Generation, earlier: Operation, run: Operation) -> None:
        context = self._context
        if token(earlier) == token(run):
            context.verdict.redelivered["unexplained"] += 1
            context.blame("I5", gen.id, "one claim was started twice", earlier, run)
            return
        if gen.revived:
            context.verdict.redelivered["revived"] += 1
            return
        snoozed = any(accepted(call) for call in gen.calls_about(earlier, "snooze"))
        skipped = run.data["att"] - earlier.data["att"] > 1 - snoozed
        reason = self._given_back_by(gen, earlier, run)
        if reason is None:
            # Only the end of its lease can have made the event available.
            reason = self._expired_by(gen, earlier, run)
            if not skipped and self._clock.shown_us(run) < run.data["due"]:
                text = "claimed ahead of the end of the previous lease"
                context.blame("I4", gen.id, text, earlier, run)
        elif skipped:
            self._check_unseen_attempt(gen, earlier, run)
        context.verdict.redelivered[reason or "unexplained"] += 1
        if reason is None:
            calls = gen.holder_calls.get(token(earlier), ())
            if earlier.end is None or run.t < earlier.end:
                text = "delivered while its handler ran, and nothing prevented a renewal"
                context.blame("I13", gen.id, text, gen.origin, earlier, run, *calls)
            else:
                text = "delivered again, and nothing explains why"
                context.blame("I4", gen.id, text, gen.origin, earlier, run, *calls)

    @staticmethod
    def _given_back_by(gen: Generation, earlier: Operation, run: Operation) -> str | None:
        calls = [
            call
            for call in gen.calls_about(earlier, *_GIVES_BACK)
            # A refused call had no effect, so the handler's failure counts.
            if call.t <= run.t and call.ph != "no"
        ]
        if any(call.op == "release" for call in calls):
            return "released"
        if any(call.op == "snooze" and (call.unknown or accepted(call)) for call in calls):
            return "snoozed"
        failed = earlier.ph == "no" and earlier.end is not None and earlier.end <= run.t
        if any(call.unknown or accepted(call) for call in calls):
            return "failed" if failed else "retried"
        # If the handler made one of these calls, only the call counts, not the handler's failure.
        return "failed" if failed and not calls else None

    def _expired_by(self, gen: Generation, earlier: Operation, run: Operation) -> str | None:
        over = FOREVER if earlier.end is None else earlier.end
        # While the handler runs, an extension never shortens the lease.
        lease = min(
            [earlier.data["lease_us"]]
            + [
                call.data["ms"] * 1000
                for call in gen.calls_about(earlier, "extend")
                if "ms" in call.data and call.t >= over
            ]
        )
        since, _ = self._clock.claimed(earlier)
        ends = earlier.data["srv"] + lease
        # If its clock was set back, the server measured the rest of the lease again.
        if run.data["srv"] < ends and not self._troubles.stepped_in(since, run.t):
            short = (ends - run.data["srv"]) / 1000
            text = f"claimed {short:.1f} ms before the previous lease could have expired"
            self._context.blame("I4", gen.id, text, earlier, run)
        until = run.t
        if earlier.end is not None:
            # The node reported the handler's outcome at once, before the lease expired.
            until = min(until, earlier.end + earlier.data["lease_us"] * 1000)
        met = self._troubles.met(earlier.p, since, until)
        limit = self._troubles.lifetimes[earlier.p].max_run
        if limit is None or run.t - earlier.t < limit or met in ("killed", "left"):
            return met
        if earlier.end is None or earlier.end - earlier.t >= limit:
            return "overran"
        return met or "overran"

    def _check_unseen_attempt(
        self, gen: Generation, earlier: Operation | None, run: Operation
    ) -> None:
        since = earlier.t if earlier else gen.origin.t if gen.origin else 0
        if self._troubles.anywhere(since, run.t) is None:
            text = "a counted attempt reached no handler, and nothing explains why"
            self._context.blame("I4", gen.id, text, gen.origin, earlier, run)

    # -------------------------------------------------------------------------------- how often

    def _check_attempts(self, gen: Generation) -> None:
        runs, most = gen.runs, gen.max_retries
        if gen.revived:
            return
        for earlier, run in itertools.pairwise(runs):
            free = int(gen.free(earlier))
            if run.data["att"] < earlier.data["att"] + 1 - free and token(earlier) != token(run):
                self._context.blame("I8", gen.id, "attempts do not grow", earlier, run)
        if most is None:
            return
        charged = [run for run in runs if not gen.free(run)]
        highest = max(runs, key=lambda run: run.data["att"])
        if len(charged) > most + 1 or highest.data["att"] > most + 1:
            text = f"started {len(runs)} times, with max_retries={most}"
            self._context.blame("I8" if most else "I9", gen.id, text, gen.origin, *runs[:10])

    def _check_dead_letters(self, gen: Generation) -> None:
        context = self._context
        confirm = gen.confirmed()
        for letter in gen.letters:
            reason = letter.data.get("reason")
            attempt = letter.data.get("attempt", letter.data.get("att"))
            if gen.revived:
                continue
            if (
                reason in ("failed", "lease_lost")
                and attempt is not None
                and gen.max_retries is not None
                and attempt != gen.max_retries + 1
            ):
                text = f"dead after attempt {attempt}, with max_retries={gen.max_retries}"
                context.blame("I8", gen.id, text, gen.origin, *gen.runs, letter)
            for run in gen.runs:
                if letter.op in ("dead", "expired") and self._clock.claimed(run)[0] > letter.t:
                    context.blame("I8", gen.id, "delivered after its death", letter, run)
        if confirm is not None and gen.letters and not gen.revived:
            context.blame("I7", gen.id, "confirmed, but also a dead letter", confirm, *gen.letters)

    # -------------------------------------------------------------------- the calls of the holders

    def _check_calls(self, gen: Generation) -> None:
        context = self._context
        confirm = gen.confirmed()
        if confirm is not None:
            later = [run for run in gen.runs if token(run) > confirm.data["tok"]]
            if later:
                context.blame("I7", gen.id, "confirmed, and claimed once more", confirm, *later)
        for calls in gen.holder_calls.values():
            for call in calls:
                result = "DEAD" if call.op == "bury" else call.data.get("result")
                over = result in ("DEAD", "CANCELLED") and accepted(call)
                later = [r for r in gen.runs if over and token(r) > call.data["tok"]]
                if later and not gen.revived:
                    text = f"{call.op} came to {result}, and it was claimed once more"
                    context.blame("I8", gen.id, text, call, *later)
        counted: set[int] = set()
        for tok, calls in gen.holder_calls.items():
            settled = {call.op for call in calls if call.op in _SETTLES and accepted(call)}
            if "confirm" in settled:
                counted.add(tok)
            if len(settled) > 1:
                text = "one claim was settled in two ways"
                context.blame("I7", gen.id, text, *calls)
            run = next((run for run in gen.runs if token(run) == tok), None)
            if run is None:
                context.blame("I5", gen.id, "a call with the token of an unknown claim", *calls)
                continue
            for call in calls:
                if call.ph == "ok" and not accepted(call):
                    self._check_refusal(gen, run, call)
        if len(counted) > 1:
            calls = [w for tok in counted for w in gen.holder_calls[tok] if accepted(w)]
            context.blame("I7", gen.id, "confirmed by two holders", *calls)

    def _check_refusal(self, gen: Generation, run: Operation, call: Operation) -> None:
        """Find a refused call of a holder that was certainly the newest."""
        until = call.end if call.end is not None else call.t
        late = run.end is not None and run.end <= until
        if call.op in ("bury", "retry", "snooze") or (late and call.op != "auto") or not gen.alone:
            # This may have been the last attempt, the event was cancelled, or the library had
            # already settled it.
            return
        others = [w for w in gen.holder_calls[token(run)] if w is not call and w.op in _SETTLES]
        if any(w.t <= until for w in others) or any(r.t > run.t for r in gen.runs):
            return
        since, _ = self._clock.claimed(run)
        process = self._troubles.lifetimes[run.p]
        if process.max_run is not None and until - run.t >= process.max_run:
            return
        if self._troubles.met(run.p, since, until) or self._troubles.anywhere(since, until):
            return
        if gen.letters or gen.revived:
            return
        text = f"{call.op} was refused to the only holder, for no reason"
        self._context.blame("I5", gen.id, text, gen.origin, run, call)


def stale_calls(context: CheckContext, id: str, gens: list[Generation]) -> None:
    """Find calls of a holder that were accepted after a newer claim of the id had begun: I5."""
    if not any(gen.holder_calls for gen in gens):
        return
    runs = sorted((run for gen in gens for run in gen.runs), key=token)
    soonest = FOREVER
    first: Operation | None = None
    newer: dict[int, Operation] = {}
    for run in reversed(runs):
        if first is not None:
            newer[token(run)] = first
        if run.t < soonest:
            soonest, first = run.t, run
    for gen in gens:
        for tok, calls in gen.holder_calls.items():
            for call in calls:
                by, since = newer.get(tok), call.t
                if call.op == "auto":
                    # It is recorded when the reply has arrived, but was sent when the run ended.
                    since = next((r.end or r.t for r in gen.runs if token(r) == tok), 0)
                if accepted(call) and by is not None and by.t < since:
                    text = f"{call.op} accepted after a newer claim"
                    context.blame("I5", id, text, call, by)
