"""
Read moments in words, such as ``tomorrow 9:00``, with the optional dateparser, but no guesses.

dateparser guesses rather than refuses: it reads ``tomorrow 25:00`` as tomorrow at the current
time, and ``march 9:00`` as today's day in March. So a text must name its hour, and is parsed
more than once, relative to different times. A part of the result that changes was a guess.
"""

from __future__ import annotations

import importlib
import re
from datetime import datetime, timedelta
from typing import Any

from dtimer.errors import OptionError

# English only. 01/02 is ambiguous: it is 2 January or 1 February, depending on the country.
_NUMBERS_ONLY = re.compile(r"\d+\s*[/.-]\s*\d+")
_CLOCK = re.compile(r"\d:\d\d|\d\s*[ap]\.?m\b|\bnoon\b|\bmidnight\b", re.IGNORECASE)
_FROM_NOW = re.compile(r"in\s+\w+\s.*\b(hour|minute|second|hr|min|sec)s?", re.IGNORECASE)
_MONTH = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\b", re.IGNORECASE)
_DAY = timedelta(days=1)
_ASIDE = timedelta(hours=1, minutes=7, seconds=13)


def in_words(text: str) -> bool:
    """Return whether *text* may be a moment in words, rather than a mistyped numeric one."""
    return not _NUMBERS_ONLY.search(text) and bool(_CLOCK.search(text) or _FROM_NOW.match(text))


def read(text: str, now: datetime | None = None) -> datetime | None:
    """
    Read a moment in words, relative to *now*; return None if it is incomplete or not a moment.

    Raises:
        OptionError: the extra is not installed, or the moment is in the past.
    """
    if not in_words(text):
        return None
    try:
        dateparser = importlib.import_module("dateparser")
    except ImportError:
        raise OptionError(
            f"{text!r} is in words, which needs an extra: pip install 'dtimer[dates]';"
            " or write 2030-01-31 09:00"
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
        # Parse again with another time of the same day: only a guessed hour can differ.
        aside = now - _ASIDE if (now + _ASIDE).date() > now.date() else now + _ASIDE
        other = seen(aside)
        if other is None or other.timetz() != found.timetz():
            return None
    at = found.astimezone()
    if at < now.astimezone():
        raise OptionError(f"{text!r} is in the past: {at.isoformat(' ', 'seconds')}")
    return at
