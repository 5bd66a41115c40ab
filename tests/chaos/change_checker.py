"""
Check the calls that change a stored event in place: updates, dropped dead letters, and debounces.

A debounce is a post with a limit: the event is due at most that long after the first post of a
sequence that found the event waiting for its first start.
"""

from __future__ import annotations

from collections.abc import Sequence

from chaos.clock import Clock
from chaos.history import Operation
from chaos.id_history import IdHistory
from chaos.lease_checker import Generation, accepted
from chaos.verdict import CheckContext

#: The two clocks may drift apart by this many ns.
_DRIFT = 10_000_000


class ChangeChecker:
    """Checks the payloads of updated events, dropped dead letters, and debounces: I8, I10, I18."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock

    def check(self, history: IdHistory, gens: Sequence[Generation]) -> None:
        for gen in gens:
            self._check_payloads(history, gen)
            self._check_updates(history, gen)
        if history.drops and len(gens) == 1 and not history.revivals:
            self._check_drops(history, gens[0])
        if not (history.moves or history.cancels or history.revivals):
            self._check_limits(history, gens)

    # ------------------------------------------------------------------------------- updates

    @staticmethod
    def _updates(history: IdHistory, gen: Generation) -> list[Operation]:
        """Return the updates of a generation that may have taken effect."""
        assert gen.origin
        n = gen.origin.data.get("n")
        return [
            update
            for update in history.updates
            if update.data.get("n") == n
            if update.ph != "no" and update.data.get("updated") is not False
        ]

    def _check_payloads(self, history: IdHistory, gen: Generation) -> None:
        """Find payloads that are neither the posted one nor that of a current update."""
        post = gen.origin
        assert post
        if post.data.get("crc") is None:
            return
        updates = self._updates(history, gen)
        for run in gen.runs:
            if run.data.get("crc") not in self._current(post, updates, run):
                text = "another payload than the posted one"
                self._context.blame("I10", history.id, text, post, *updates, run)

    def _current(
        self, post: Operation, updates: list[Operation], run: Operation
    ) -> set[int | None]:
        """Return the checksums of the payloads that a run may have."""
        claimed, _ = self._clock.claimed(run)
        certain = [op.t for op in updates if op.ph == "ok" and (op.end or 0) < claimed]
        last = max(certain, default=0)
        latest = self._context.troubles.latest
        setters = [op for op in (post, *updates) if latest(op) >= last and op.t <= run.t]
        return {op.data.get("crc") for op in setters}

    def _check_updates(self, history: IdHistory, gen: Generation) -> None:
        """Find updates that succeeded although a node held the event all the time."""
        for update in self._updates(history, gen):
            if update.ph != "ok" or update.end is None:
                continue
            for run in gen.runs:
                held = self._clock.claimed(run)[1] < update.t
                for confirm in gen.calls_about(run, "confirm"):
                    if held and accepted(confirm) and confirm.t > update.end:
                        text = "an event in flight was updated"
                        self._context.blame("I10", history.id, text, update, run, confirm)

    # --------------------------------------------------------------------------------- drops

    def _check_drops(self, history: IdHistory, gen: Generation) -> None:
        """Find dead letters that are still there, or are delivered, although they were dropped."""
        for drop in history.drops:
            if drop.ph != "ok" or drop.end is None or not drop.data.get("dropped"):
                continue
            after = [run for run in gen.runs if self._clock.claimed(run)[0] > drop.end]
            kept = [letter for letter in gen.letters if letter.op == "buried"]
            if after or kept:
                text = "dropped, and still there"
                self._context.blame("I8", history.id, text, gen.origin, drop, *after, *kept)

    # ------------------------------------------------------------------------------- debounces

    def _check_limits(self, history: IdHistory, gens: Sequence[Generation]) -> None:
        """Find events that posts have delayed for longer than their limit."""
        posts = sorted(
            ((gen.origin, gen) for gen in gens if gen.origin and gen.origin.ph != "no"),
            key=lambda pair: pair[0].t,
        )
        latest = self._context.troubles.latest
        unknown = [(post.t, latest(post)) for post, _ in posts if post.ph != "ok"]
        # The first post of the current wait; None if it is not certain.
        first: Operation | None = None
        before: tuple[Operation, Generation] | None = None
        for post, gen in posts:
            limited = post.ph == "ok" and post.data.get("max_wait_us") is not None
            if not limited:
                first = None
            elif before is None or self._begins_wait(before, post):
                first = post
            elif first is not None and not self._continues_wait(first, before[0], post):
                first = None
            before = post, gen
            for run in gen.runs[:1]:
                in_doubt = first is None or any(
                    begun <= run.t and over >= first.t for begun, over in unknown
                )
                if first is not None and not in_doubt and run.data["att"] == 1:
                    self._check_limit(history, first, post, run)

    def _begins_wait(self, before: tuple[Operation, Generation], post: Operation) -> bool:
        """Return True if a post certainly begins a wait, because of the post before it."""
        earlier, gen = before
        if earlier.ph != "ok" or earlier.end is None or earlier.end > post.t:
            return False
        if earlier.data.get("max_wait_us") is None and earlier.data.get("stored", True):
            return True
        return any(self._clock.claimed(run)[1] < post.t for run in gen.runs)

    @staticmethod
    def _continues_wait(first: Operation, before: Operation, post: Operation) -> bool:
        """Return True if no node can have claimed the event of the post before this one."""
        if before.end is None or before.end > post.t or post.end is None:
            return False
        due = min(
            before.t + before.data["delay_us"] * 1000, first.t + before.data["max_wait_us"] * 1000
        )
        return post.end + _DRIFT < due

    def _check_limit(
        self, history: IdHistory, first: Operation, post: Operation, run: Operation
    ) -> None:
        assert first.end is not None
        assert post.end is not None
        if not self._clock.kept_pace(first.t, run.t):
            return
        self._context.verdict.counts["debounced"] += first is not post
        ends = self._clock.latest_ns(first.end) + post.data["max_wait_us"] * 1000
        # If the wait is over already, the event is due at the time of the post.
        late = run.data["due"] * 1000 - max(ends, self._clock.latest_ns(post.end))
        if late > _DRIFT:
            text = f"due {late / 1e6:.1f} ms after the end of its wait"
            self._context.blame("I18", history.id, text, first, post, run)
