"""Find out whether there are other nodes that could claim this node's events."""

from __future__ import annotations

import time
from collections.abc import Callable

#: The seconds for which a reply is trusted.
_TRUSTED_SECONDS = 1.0


class Peers:
    """
    Asks the store whether there are other nodes, at most once a second.

    Used by one thread at a time.

    Args:
        alone: Asks the store whether no other node has joined.
    """

    def __init__(self, alone: Callable[[], bool]) -> None:
        self._alone = alone
        self._answer = False
        self._trusted_until = 0.0

    def none(self) -> bool:
        """Return whether no other node has joined; False if the store does not answer."""
        if time.monotonic() >= self._trusted_until:
            try:
                self._answer = self._alone()
            except Exception:
                # The next claim fails as well, and reports the error.
                self._answer = False
            self._trusted_until = time.monotonic() + _TRUSTED_SECONDS
        return self._answer

    @property
    def known_none(self) -> bool:
        """True if `none` has returned True within the last second. Asks nothing."""
        return self._answer and time.monotonic() < self._trusted_until
