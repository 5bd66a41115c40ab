"""What a node says of its contact with Redis: that it answers, and that wakes arrive."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.errors import StoreError
from dtimer.store import access
from dtimer.store.store import Store


class Contact:
    """
    Args:
        store: Tells where it is, and what its errors want.
        announce: Has something emitted soon.
        answered: When a turn was last answered, on the monotonic clock; None for never.
        deaf_since: Since when wakes do not arrive; None while they do.
    """

    def __init__(
        self,
        store: Store,
        announce: Callable[..., None],
        answered: Callable[[], float | None],
        deaf_since: Callable[[], float | None],
    ) -> None:
        self._store = store
        self._announce = announce
        self._answered = answered
        self._deaf_since = deaf_since
        self._reachable = True
        self._deafness: BaseException | None = None
        self._deaf_told = False

    def reach_changed(self, error: Exception | None) -> None:
        """Say that Redis answers, or that it does not, for this *error*."""
        if error is None:
            self._announce("connected")
            self._reachable = True
        else:
            if self._reachable:
                self._announce("disconnected", error)
            self._reachable = False
            self._complain(
                error, f"Redis at {self._store.place} does not answer; the node keeps trying"
            )

    def hearing_changed(self, error: BaseException | None) -> None:
        """Say that wakes do not arrive, for this *error*; None: they do."""
        self._deafness = error
        if error is None:
            self._deaf_told = False
            return
        # Where Redis does not answer either, that is what there is to say, and the claimer
        # says it. So this waits for a turn that was answered since.
        answered, since = self._answered(), self._deaf_since()
        if answered is None or since is None or answered < since:
            return
        if not self._deaf_told:
            self._deaf_told = True
            self._complain(error, "wakes do not arrive; events come by the poll")

    def say_if_deaf(self) -> None:
        """Say of a deafness that came before the first turn what could not be said then."""
        if self._deafness is not None:
            self.hearing_changed(self._deafness)

    def _complain(self, error: BaseException, what: str) -> None:
        rule = access.remedy(str(error), self._store.ns)
        complaint = StoreError(f"{what}: {error}{f' ({rule})' if rule else ''}")
        complaint.__cause__ = error
        self._announce("error", complaint)
