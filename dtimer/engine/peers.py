"""Find out whether this node should keep events that it has claimed and cannot start yet."""

from __future__ import annotations

import time

from dtimer.engine.ports import ClaimStore


class Peers:
    """
    Asks the store whether the node should keep its events, at most once in *trusted_seconds*.

    Used by one thread at a time.

    Args:
        store: Knows whether another node has joined, and whether the namespace is paused.
        trusted_seconds: How long a reply is trusted. Events may still start for that long after the
            namespace is paused.
    """

    def __init__(self, store: ClaimStore, trusted_seconds: float) -> None:
        self._store = store
        self._answer = False
        self._trusted_seconds = trusted_seconds
        #: When the store must be asked again, on the monotonic clock.
        self.trusted_until: float = 0.0

    def is_alone(self) -> bool:
        """Return the reply of the store; False if it does not answer."""
        if time.monotonic() >= self.trusted_until:
            try:
                self._answer = self._store.alone()
            except Exception:
                # The next claim fails as well, and reports the error.
                self._answer = False
            self.trusted_until = time.monotonic() + self._trusted_seconds
        return self._answer

    @property
    def known_alone(self) -> bool:
        """True if `is_alone` has returned True a short time ago. Does not ask the store."""
        return self._answer and time.monotonic() < self.trusted_until
