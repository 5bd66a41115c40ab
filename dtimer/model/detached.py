"""Pickled and deep-copied events, which come back without a lease."""

from __future__ import annotations

from dtimer.errors import UsageError
from dtimer.model.times import Duration


class _NoLease:
    """Stands for the missing lease of a copy. See `dtimer.model.event.Holder`."""

    def confirm(self) -> bool:
        """See `Holder.confirm`."""
        raise self._error()

    def retry(self, delay: Duration | None) -> bool:
        """See `Holder.retry`."""
        del delay
        raise self._error()

    def extend(self, ms: Duration) -> bool:
        """See `Holder.extend`."""
        del ms
        raise self._error()

    def lost(self) -> bool:
        """See `Holder.lost`."""
        raise self._error()

    @staticmethod
    def _error() -> UsageError:
        return UsageError(
            "this event is a copy and has no lease: settle the event that the handler received"
        )


#: The holder of every copy.
NO_LEASE = _NoLease()
