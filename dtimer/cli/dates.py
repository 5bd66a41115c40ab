"""
Moments in words, ``tomorrow 9:00``: read by dateparser, an extra, and held to what was said.

dateparser would rather guess than refuse: ``tomorrow 25:00`` it takes for tomorrow at this
very time, ``march 9:00`` for today's day of March. So a text has to name its hour, and is
read more than once, from different presents: what changes with them was not said.
"""

from __future__ import annotations

import importlib
import re
from datetime import datetime, timedelta
from typing import Any

from dtimer.errors import OptionError

# In English only: 01/02 is two days, and which of them depends on who reads it.
_NUMBERS_ONLY = re.compile(r"\d+\s*[/.-]\s*\d+")
_CLOCK = re.compile(r"\d:\d\d|\d\s*[ap]\.?m\b|\bnoon\b|\bmidnight\b", re.IGNORECASE)
_FROM_NOW = re.compile(r"in\s+\w+\s.*\b(hour|minute|second|hr|min|sec)s?", re.IGNORECASE)
_MONTH = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\b", re.IGNORECASE)
_DAY = timedelta(days=1)
_ASIDE = timedelta(hours=1, minutes=7, seconds=13)


def in_words(text: str) -> bool:
    """Tell whether *text* may be a moment in words, and not a slip in one of numbers."""
    return not _NUMBERS_ONLY.search(text) and bool(_CLOCK.search(text) or _FROM_NOW.match(text))


def read(text: str, now: datetime | None = None) -> datetime | None:
    """
    Read a moment in words, seen from *now*; None when it is none, or leaves something open.

    Raises:
        OptionError: it may be one, but the extra is not installed; or it is over.
    """
    if not in_words(text):
        return None
    try:
        dateparser = importlib.import_module("dateparser")
    except ImportError:
        raise OptionError(
            f"{text!r} is in words, which an extra reads that is not installed:"
            " pip install 'dtimer[dates]'; or write 2030-01-31 09:00"
        ) from None
    now = (now or datetime.now().astimezone()).replace(tzinfo=None)

    def seen(base: datetime) -> datetime | None:
        settings: dict[str, Any] = {"RELATIVE_BASE": base, "PREFER_DATES_FROM": "future"}
        read: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
        return read

    found = seen(now)
    if found is None:
        return None
    if _MONTH.search(text) and found not in (seen(now - _DAY), seen(now + _DAY)):
        return None
    if not _FROM_NOW.match(text):
        # On the same day, so that it is the hour alone that could have been borrowed.
        aside = now - _ASIDE if (now + _ASIDE).date() > now.date() else now + _ASIDE
        other = seen(aside)
        if other is None or other.timetz() != found.timetz():
            return None
    at = found.astimezone()
    if at < now.astimezone():
        raise OptionError(f"{text!r} is over: {at.isoformat(' ', 'seconds')}")
    return at
