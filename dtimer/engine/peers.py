"""Find out whether this node should keep events that it has claimed and cannot start yet."""

from __future__ import annotations

import time
from collections.abc import Callable


class Peers:
    """
    Asks the store whether the node should keep its events, at most once in *trusted_seconds*.

    Used by one thread at a time.

    Args:
        alone: Asks the store. Returns True if no other node has joined and the namespace is not
            paused.
        trusted_seconds: How long a reply is trusted. Events may still start for that long after the
            namespace is paused.
    """

    def __init__(self, alone: Callable[[], bool], trusted_seconds: float) -> None:
        self._alone = alone
        self._answer = False
        self._trusted_seconds = trusted_seconds
        #: When the store must be asked again, on the monotonic clock.
        self.trusted_until: float = 0.0

    def is_alone(self) -> bool:
        """Return the reply of the store; False if it does not answer."""
        if time.monotonic() >= self.trusted_until:
            try:
                self._answer = self._alone()
            except Exception:
                # The next claim fails as well, and reports the error.
                self._answer = False
            self.trusted_until = time.monotonic() + self._trusted_seconds
        return self._answer

    @property
    def known_alone(self) -> bool:
        """True if `is_alone` has returned True a short time ago. Does not ask the store."""
        return self._answer and time.monotonic() < self.trusted_until
