"""
Check one id: its posts, cancels and moves, and the generations that the posts made.

Calls overlap, so the server may have executed them in one of many orders. A violation is reported
only if it is one in every order. A call came before another only if it had returned before the
other began. A claim came after a call only if it cannot have been made before.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Iterable, Iterator

from chaos.change_checker import ChangeChecker
from chaos.clock import Clock
from chaos.history import Operation
from chaos.id_history import IdHistory
from chaos.lease_checker import Generation, LeaseChecker, accepted, stale_calls, token
from chaos.troubles import FOREVER
from chaos.verdict import CheckContext

#: With these policies a post stores the event or raises, with or without an existing event.
_DEFINITE = {"replace", "error"}
#: A claim may seem earlier than it was by this many ns: the two clocks may drift apart.
_DRIFT = 1_000_000


class IdChecker:
    """Checks each id for I1, I2, I3, I6, I10 and I12, and each of its generations by itself."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._lease_checker = LeaseChecker(context, clock)
        self._change_checker = ChangeChecker(context, clock)
        self._latest = context.troubles.latest

    def check(self, id: str, operations: list[Operation]) -> None:
        history = IdHistory(id, operations, self._context.nameless)
        for op in history.strays:
            self._report_stray(history, op)
        gens = list(history.generations.values())
        if (letter := self._context.buried.get(id)) is not None:
            history.bury(letter)
        for gen in gens:
            gen.arrange()
            if gen.letters and gen.origin and gen.origin.ph == "no":
                text = "a refused post became a dead letter"
                self._context.blame("I3", id, text, gen.origin, *gen.letters)
            gen.revived = any(op.ph != "no" for op in history.revivals)
        if len(gens) > 1:
            self._check_order(history, gens)
        for gen in gens:
            if gen.origin and gen.origin.data.get("stored") is False:
                self._check_reported_as_stored(history, gen, gens)
        stale_calls(self._context, id, gens)
        for gen in gens:
            self._lease_checker.check(gen)
            self._check_deliveries(history, gen)
            if history.cancels:
                self._check_cancels(history, gen)
            self._count_end(history, gen)
        self._change_checker.check(history, gens)
        if self._context.pending is not None and id in self._context.pending:
            self._check_pending(history, gens)

    def _report_stray(self, history: IdHistory, op: Operation) -> None:
        what = "was delivered" if op.op == "run" else "died"
        text = f"n={op.data.get('n')!r} {what}, which was never posted under this id"
        self._context.blame("I3", history.id, text, op)

    # -------------------------------------------------------------- the order of the generations

    def effect(self, gen: Generation) -> int:
        """Return the latest moment at which the server can have executed a generation's post."""
        assert gen.origin
        first = min((run.t for run in gen.runs), default=FOREVER)
        return min(self._latest(gen.origin), first)

    @staticmethod
    def _stored(gen: Generation) -> bool:
        """Return True if a generation was certainly stored."""
        post = gen.origin
        assert post
        definite = gen.first or post.data.get("if_exists", "replace") in _DEFINITE
        definite = post.data.get("stored", definite)
        return (post.ph == "ok" and bool(definite)) or bool(gen.runs or gen.letters)

    def _check_order(self, history: IdHistory, gens: list[Generation]) -> None:
        """Find generations delivered after a later one had been acknowledged: I10."""
        gens = [gen for gen in gens if gen.origin and may_be_stored(gen.origin)]
        done = {gen: self.effect(gen) for gen in gens}
        if len(gens) < 2:
            return
        second, last = heapq.nlargest(2, gens, key=done.__getitem__)
        gens.sort(key=lambda gen: gen.origin.t if gen.origin else 0)
        begins = [gen.origin.t for gen in gens if gen.origin]
        for i, gen in enumerate(gens):
            gen.first = not i and begins[1] > done[gen]
        # For each generation: of it and those after it, the stored one whose post ended first.
        soonest: list[tuple[int, Generation | None]] = [(FOREVER, None)]
        for gen in reversed(gens):
            this = (done[gen], gen) if self._stored(gen) else (FOREVER, None)
            soonest.append(min(this, soonest[-1], key=lambda pair: pair[0]))
        soonest.reverse()
        for gen in gens:
            assert gen.origin
            gen.alone = max(done[g] for g in (last, second) if g is not gen) < gen.origin.t
            at, newer = soonest[bisect.bisect_right(begins, done[gen])]
            if newer is None:
                continue
            for run in gen.runs:
                if self._clock.claimed(run)[0] > at:
                    text = "an older generation was delivered after a newer one was stored"
                    proof = (gen.origin, newer.origin, *newer.runs[:1], run)
                    self._context.blame("I10", history.id, text, *proof)
        self._check_alternation(history, gens, done)

    def _check_alternation(
        self, history: IdHistory, gens: list[Generation], done: dict[Generation, int]
    ) -> None:
        """Find generations that were claimed alternately: in any order, each is current once."""
        claims = sorted(
            ((token(run), i, run) for i, gen in enumerate(gens) for run in gen.runs),
            key=lambda claim: claim[0],
        )
        over: dict[int, Operation] = {}
        newest: Operation | None = None
        for (_, before, last), (_, i, run) in itertools.pairwise(claims):
            if before == i:
                continue
            over[before] = last
            post = gens[before].origin
            if newest is None or (post and post.t > newest.t):
                newest = post
            mine = gens[i].origin
            if i in over:
                text = "a generation came back after another had been delivered"
                self._context.blame("I10", history.id, text, over[i], last, run)
            elif newest and done[gens[i]] < newest.t:
                text = "an older generation was claimed after a newer one"
                self._context.blame("I10", history.id, text, mine, newest, last, run)

    def _check_reported_as_stored(
        self, history: IdHistory, gen: Generation, gens: list[Generation]
    ) -> None:
        """Find posts that were dropped, or stored, although they reported otherwise: I2."""
        post = gen.origin
        assert post
        assert post.end is not None
        if gen.runs or gen.letters:
            text = "reported as not stored, but it was"
            self._context.blame("I2", history.id, text, post, *gen.runs, *gen.letters)
        policy = post.data.get("if_exists", "replace")
        before = [g.origin for g in gens if g is not gen and g.origin and may_be_stored(g.origin)]
        if policy in _DEFINITE or not any(other.t < post.end for other in before):
            self._context.blame("I2", history.id, "dropped for an event that cannot exist", post)
        if policy in ("earliest", "latest"):
            for run, confirm in held_throughout(self._clock, gens, post):
                text = "dropped for an event in flight, whose confirm ended both"
                self._context.blame("I2", history.id, text, post, run, confirm)

    def _check_cancels(self, history: IdHistory, gen: Generation) -> None:
        """Find claims after a cancel had returned, with any outcome: I6."""
        post = gen.origin
        if post is None or post.ph != "ok" or post.end is None or gen.revived:
            return
        for cancel in history.cancels:
            if cancel.ph != "ok" or cancel.end is None or cancel.t <= post.end:
                continue
            outcome = cancel.data.get("outcome")
            for run in gen.runs:
                if claimed_after(self._clock, run, cancel):
                    text = f"delivered after cancel had returned {outcome}"
                    self._context.blame("I6", history.id, text, post, cancel, run)
            buried = [letter for letter in gen.letters if letter.op == "buried"]
            if cancel.data.get("outcome") == "CANCELLED" and buried:
                text = "cancelled, but a dead letter at the end"
                self._context.blame("I6", history.id, text, post, cancel, *buried)

    # -------------------------------------------------------------------------------- deliveries

    def _check_deliveries(self, history: IdHistory, gen: Generation) -> None:
        post = gen.origin
        assert post
        for run in gen.runs:
            if post.ph == "no":
                self._context.blame("I3", history.id, "a refused post was delivered", post, run)
            elif run.t < post.t:
                self._context.blame("I3", history.id, "delivered before it was posted", post, run)
        if gen.runs and not gen.revived and self._clock.kept_pace(post.t, gen.runs[0].t):
            self._check_delay(history, gen, post)
        expires = post.data.get("expires_us")
        if expires is not None and not gen.revived:
            self._check_expiry(history, gen, post, expires)

    def _check_delay(self, history: IdHistory, gen: Generation, post: Operation) -> None:
        """Find handlers that began before the delay was over by the monotonic clock."""
        run = gen.runs[0]
        delay = post.data.get("delay_us")
        # The limit of a debounce may make the event due before the delay is over.
        if run.data["att"] != 1 or delay is None or "max_wait_us" in post.data:
            return
        setters = [post, *(m for m in history.moves if m.ph != "no" and m.data.get("moved", True))]
        claimed, _ = self._clock.claimed(run)
        certain = [op.t for op in setters if op.ph == "ok" and (op.end or 0) < claimed]
        last = max(certain, default=0)
        dues = [
            op.t + max(0, op.data.get("delay_us") or 0) * 1000
            for op in setters
            if self._latest(op) >= last and op.t <= run.t
        ]
        if not dues:
            return
        # The server's clock may run faster by one part in a thousand.
        early = min(dues) - run.t
        if early > _DRIFT + (run.t - post.t) // 1000:
            text = f"its handler began {early / 1e6:.1f} ms before the delay was over"
            self._context.blame("I1", history.id, text, post, *history.moves, run)

    def _check_expiry(
        self, history: IdHistory, gen: Generation, post: Operation, expires: int
    ) -> None:
        for run in gen.runs:
            # After a lost reply, the server sends the claim again. The token has the time of the
            # first reply.
            at = min(run.data["srv"], token(run)) * 1000
            if self._clock.shown_us(run) < run.data["due"]:
                # The node keeps an event that was claimed ahead until it is due.
                at = run.data["due"] * 1000
            if post.ph != "ok" or post.end is None:
                continue
            if not self._clock.kept_pace(post.t, run.t):
                continue
            if at > self._clock.latest_ns(post.end) + expires * 1000 + 10 * _DRIFT:
                self._context.blame("I3", history.id, "delivered after it had expired", post, run)
        for letter in gen.letters:
            early = post.t + expires * 1000 - letter.t
            expired = letter.op == "expired" or letter.data.get("reason") == "expired"
            if expired and early > _DRIFT and self._clock.kept_pace(post.t, letter.t):
                self._context.blame("I1", history.id, "expired too early", post, letter)

    # ------------------------------------------------------------------- the end of a generation

    def _count_end(self, history: IdHistory, gen: Generation) -> None:
        counts = self._context.verdict.counts
        post = gen.origin
        assert post
        if post.ph == "no":
            counts["refused"] += 1
            return
        if post.unknown and not (gen.runs or gen.letters):
            return
        if post.unknown:
            counts["recovered"] += 1
        counts["posted"] += 1
        if gen.handled:
            counts["handled"] += 1
        elif gen.letters:
            reasons = {letter.data.get("reason") or letter.op for letter in gen.letters}
            counts["expired" if "expired" in reasons else "dead"] += 1
        elif self._may_be_cancelled(history, post):
            counts["cancelled"] += 1
        elif any(d.ph != "no" and d.data.get("dropped") is not False for d in history.drops):
            counts["dropped"] += 1
        elif not gen.alone or not self._stored(gen):
            counts["superseded"] += 1
        elif self._context.pending is None or history.id in self._context.pending:
            counts["pending"] += 1
        else:
            counts["lost"] += 1
            text = "acknowledged, but at the end neither done, dead, cancelled nor pending"
            if gen.runs:
                text += f"; started {len(gen.runs)} times"
            self._context.blame("I2", history.id, text, post, *gen.runs, *history.cancels)

    def _may_be_cancelled(self, history: IdHistory, post: Operation) -> bool:
        return any(
            cancel.ph != "no"
            and cancel.data.get("outcome") != "NOT_FOUND"
            and self._latest(cancel) >= post.t
            for cancel in history.cancels
        )

    def _check_pending(self, history: IdHistory, gens: Iterable[Generation]) -> None:
        """Find ids that are pending at the end although all of their posts have ended: I12."""
        if history.revivals:
            return
        over: list[Operation | None] = []
        for gen in gens:
            post = gen.origin
            assert post
            confirm = gen.confirmed()
            buried = [letter for letter in gen.letters if letter.op == "buried"]
            cancels = [
                cancel
                for cancel in history.cancels
                if cancel.ph == "ok" and post.end is not None and cancel.t > post.end
                if cancel.data.get("outcome") != "IN_FLIGHT"
            ]
            if post.ph == "no":
                continue
            if confirm is None and not buried and (post.ph != "ok" or not cancels):
                return
            over += [post, confirm, *buried, *cancels]
        text = "pending at the end, although all of its posts have ended"
        self._context.blame("I12", history.id, text, *over)


def may_be_stored(post: Operation) -> bool:
    """Return True unless a post was refused, or certainly kept an existing event."""
    return post.ph != "no" and post.data.get("stored") is not False


def held_throughout(
    clock: Clock, gens: Iterable[Generation], post: Operation
) -> Iterator[tuple[Operation, Operation]]:
    """
    Yield the claims that lasted throughout a post, each with the confirmation that proves it.

    The server accepts a confirmation only from the holder of the last claim, and an id is in one
    state at a time.
    """
    for gen in gens:
        for run in gen.runs:
            if clock.claimed(run)[1] < post.t:
                for confirm in gen.calls_about(run, "confirm"):
                    if accepted(confirm) and post.end is not None and confirm.t > post.end:
                        yield run, confirm


def claimed_after(clock: Clock, run: Operation, cancel: Operation) -> bool:
    """Return True if a claim came after the reply to a cancel, which should have prevented it."""
    if cancel.end is None:
        return False
    # An event in flight stays in flight, even if the reply to its claim was lost and sent again.
    in_flight = cancel.data.get("outcome") == "IN_FLIGHT"
    since = clock.first_claimed(run) if in_flight else clock.claimed(run)[0]
    return since > cancel.end
