"""Enums of texts: the outcome of a declaration, and the reason of a dead letter."""

from __future__ import annotations

import enum

from dtimer.naming import public


class Declared(enum.StrEnum):
    """The outcome of declaring a schedule. Each member equals its text."""

    NEW = "new"
    """No schedule of that id existed."""

    CHANGED = "changed"
    """The schedule of that id was different."""

    SAME = "same"
    """The schedule exists, so nothing was changed."""

    DEFERRED = "deferred"
    """The schedule is declared at the end of its block: see ``declare_schedules``."""


class Reason(enum.StrEnum):
    """Why an event became a dead letter. Each member equals its text."""

    FAILED = "failed"
    """Its handler raised, or it was retried, and no retries were left."""

    LEASE_LOST = "lease_lost"
    """Its last attempt ended with a lost lease, because the node died or stalled."""

    EXPIRED = "expired"
    """It was not started before its ``expires``."""

    CORRUPT = "corrupt"
    """The stored bytes are not an event that dtimer has written."""

    PAYLOAD_MISSING = "payload_missing"
    """Its payload is gone from Redis."""

    BURIED = "buried"
    """Its handler buried it: `Event.bury`, or `SkipRetry`."""

    UNKNOWN_KIND = "unknown_kind"
    """No node has known its kind for too long."""

    UNREADABLE = "unreadable"
    """No node could open its payload for too long. The bytes are kept."""

    @classmethod
    def read(cls, text: str) -> Reason | str:
        """Return the member for a stored reason, or the text if a newer version has written it."""
        try:
            return cls(text)
        except ValueError:
            return text


public(Declared, Reason)
