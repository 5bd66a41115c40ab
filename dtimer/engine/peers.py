"""Whether other nodes could take what this one keeps."""

from __future__ import annotations

import time
from collections.abc import Callable

#: For so many seconds an answer is believed.
_BELIEVED = 1.0


class Peers:
    """
    For one thread at a time.

    Args:
        alone: Asks the store whether no other node has joined.
    """

    def __init__(self, alone: Callable[[], bool]) -> None:
        self._alone = alone
        self._answer = False
        self._believed_until = 0.0

    def none(self) -> bool:
        """Tell whether no other node has joined. False if the store does not answer."""
        if time.monotonic() >= self._believed_until:
            try:
                self._answer = self._alone()
            except Exception:
                # The next turn tells what is wrong.
                self._answer = False
            self._believed_until = time.monotonic() + _BELIEVED
        return self._answer

    @property
    def known_none(self) -> bool:
        """True if `none` was true, and is still believed. Asks nothing."""
        return self._answer and time.monotonic() < self._believed_until
