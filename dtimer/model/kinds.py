"""Kinds of events: the backoff of a kind, and how long events of unknown kinds wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dtimer.model.times import Duration, duration_us

#: A duration, or a function of the failed attempt and its exception that returns one. The
#: exception is None if the handler has called ``ev.retry()``.
KindBackoff = Duration | Callable[[int, BaseException | None], Duration]

# The first pause of an event of an unknown kind, and the longest.
_FIRST_US = 1_000_000
_LONGEST_US = 300_000_000


def kind_wait_us(backoff: KindBackoff, attempt: int, error: BaseException | None) -> int:
    """
    Return how many microseconds to wait after *attempt* has failed with *error*, at least 0.

    Raises:
        OptionError: the user's function did not return a valid duration. Exceptions of the
            function itself are not caught.
    """
    wait = backoff(attempt, error) if callable(backoff) else backoff
    return max(0, duration_us(wait, "backoff"))


@dataclass(frozen=True, slots=True)
class UnknownPolicy:
    """
    The policy of a router for events whose kind it does not know.

    Attributes:
        field: The field of the payload that has the kind.
        longest_us: After this time in µs since its first snooze, the event becomes a dead letter.
    """

    field: str
    longest_us: int

    def pause_us(self, snoozed_for_us: int) -> int | None:
        """
        Return how long to snooze an event; None if it becomes a dead letter instead.

        Each pause is as long as all pauses before it and one second more: 1 s, 2 s, 4 s, at most
        five minutes.

        Args:
            snoozed_for_us: The time since its first snooze; 0 if there was none.
        """
        if snoozed_for_us >= self.longest_us:
            return None
        return min(_LONGEST_US, snoozed_for_us + _FIRST_US)

    def describe(self, kind: object) -> str:
        """Return a text that names a kind and contains no other value of the payload."""
        if isinstance(kind, str):
            return f"the kind {kind!r:.80}"
        if kind is None:
            return f"an event without {self.field!r:.80}"
        return f"an event whose {self.field!r:.80} is a {type(kind).__name__}, not a text"
