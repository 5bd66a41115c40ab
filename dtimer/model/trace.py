"""
The trace context of a post, which joins the trace of the handler to that of the poster.

An event keeps it only if its trace is sampled: 51 bytes for each event are too much for a trace
that no collector records.
"""

from __future__ import annotations

import re

# A header `traceparent`, as in https://www.w3.org/TR/trace-context/: version, trace id, span id and
# trace flags. A later version may have more fields.
_HEADER = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)

_SAMPLED = 0x01


def stored_trace(header: object) -> str:
    """
    Return the stored form of a header ``traceparent``: ids and flags, 50 hexadecimal digits.

    Returns:
        The digits; ``""`` if the trace is not sampled, or if *header* is not a valid one. A post
        never fails because of its trace.
    """
    match = _HEADER.fullmatch(header) if isinstance(header, str) else None
    if match is None or not int(match[3], 16) & _SAMPLED:
        return ""
    return match[1] + match[2] + match[3]


def traceparent(stored: str) -> str | None:
    """Return the header ``traceparent`` of a stored trace context; None for ``""``."""
    return f"00-{stored[:32]}-{stored[32:48]}-{stored[48:]}" if stored else None
