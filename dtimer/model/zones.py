"""Time zones, by the names that this machine knows."""

from __future__ import annotations

import zoneinfo
from datetime import UTC
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dtimer.errors import OptionError
from dtimer.model import hints


def zone(given: object) -> ZoneInfo:
    """
    Return a time zone that has a name, given by that or as a ``ZoneInfo``.

    Raises:
        OptionError: there is none of that name on this machine.
    """
    name = "UTC" if given is UTC else given.key if isinstance(given, ZoneInfo) else given
    if not isinstance(name, str):
        raise OptionError(
            f"tz must be a ZoneInfo with a key, or the name of a time zone such as"
            f" 'Europe/Berlin', not {given!r:.80}"
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
            hint = "it has none at all: pip install tzdata brings them"
        raise OptionError(f"there is no time zone {name!r:.80} on this machine; {hint}") from None
