"""Looks up time zones in the time zone database of this machine."""

from __future__ import annotations

import zoneinfo
from datetime import UTC
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dtimer.errors import OptionError
from dtimer.model import hints, summary


def zone(given: object) -> ZoneInfo:
    """
    Return the time zone for a name, a ``ZoneInfo`` with a key, or ``datetime.UTC``.

    Raises:
        OptionError: this machine does not know the time zone.
    """
    name = "UTC" if given is UTC else given.key if isinstance(given, ZoneInfo) else given
    if not isinstance(name, str):
        raise OptionError(
            f"tz must be a ZoneInfo with a key, or the name of a time zone such as"
            f" 'Europe/Berlin', not {summary.value(given)}"
        )
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if near := hints.nearest(name, known):
            hint = f"did you mean {near!r}?"
        elif known:
            hint = "a name looks like 'Europe/Berlin' or 'UTC'"
        else:
            hint = "its time zone database is missing: pip install tzdata"
        raise OptionError(f"this machine has no time zone {name!r:.80}; {hint}") from None
