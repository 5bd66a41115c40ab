"""
How events, dead letters and schedules are stored: the only writer and reader of these bytes.

``lua/parts/format.lua`` is its mirror for scripts, and describes the forms. Only scripts write and
read leases. A foreign writer may have stored anything, so each reader also accepts invalid bytes,
and limits the lengths of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dtimer.errors import PayloadError, UnreadablePayload
from dtimer.model import sealed
from dtimer.model.claims import Claim
from dtimer.model.codecs import PLAIN, Coder
from dtimer.model.histogram import upper_end
from dtimer.model.ids import schedule_of
from dtimer.model.outcomes import Reason
from dtimer.model.overviews import Minute
from dtimer.model.records import DeadLetter
from dtimer.model.schedules import ScheduleSpec, spec_from_json

# The head of a body: expiry, max_retries, for an occurrence the mark with its nominal time and the
# number of missed ones, and the rest: another mark, and the flags. Unknown flags are skipped.
_BODY = re.compile(rb"(\d{0,17}),(\d{1,7})(?:,s(\d{1,17}),(\d{1,15}))?(,[^|]*)?\|")
# The flags after the mark, each with the letter that names it in ``lua/parts/format.lua``.
_TRACE = re.compile(rb",t([0-9a-f]{50})(?![^,])")
_SNOOZE = re.compile(rb",z(\d{1,17})([a-z_]*)(?![^,])")
_LETTER = re.compile(rb"(\d{1,8}),(\w+),(\d{1,9})\|")

_JOINED = re.compile(rb"(\d{1,17})(?:,\d{1,9})?")

# A row of the history of an hour.
_ROW = re.compile(r"([0-9]{1,2}),([0-9]{1,4})" + r",([0-9]{1,15})" * 9 + r",(-1|[0-9]{1,2})" * 2)
_MINUTE_US, _DAY_MINUTES = 60_000_000, 1_440

# The fields of the state of a schedule, in order. ``lua/parts/schedule.lua`` describes each.
_SCHEDULE_STATE = (
    "print", "every", "misfire", "overlap", "jitter", "stop", "left", "paused", "next", "last",
    "running", "ahead", "final", "gap", "anchor", "waits", "grace", "expires", "owner",
)  # fmt: skip


def text(raw: bytes) -> str:
    """Decode an id or another text; bytes that are not UTF-8 survive a round trip unchanged."""
    return raw.decode(errors="surrogateescape")


class Entry(NamedTuple):
    """
    An event to store.

    ``when`` is in the form that the scripts read, and ``body`` in that of `write_body`.
    """

    id: str
    when: str
    body: str


@dataclass(frozen=True, slots=True)
class Body:
    """
    The stored body of an event.

    Attributes:
        expires_us: The expiry time; None if the event does not expire.
        max_retries: How often the event may be delivered again.
        payload: The payload in stored form, as JSON unless a codec has written it.
        chosen_id: True if the user chose the id.
        nominal_us: The nominal time of an occurrence; None for any other event.
        missed: How many missed occurrences this one replaces.
        trace: The trace context of the post, as `stored_trace` returns it, or ``""``.
        snoozed_us: When it was first snoozed; None if it was not.
        snooze_reason: The reason of that snooze; empty if a handler asked for it.
    """

    expires_us: int | None
    max_retries: int
    payload: bytes = field(repr=False)
    chosen_id: bool = False
    nominal_us: int | None = None
    missed: int = 0
    trace: str = ""
    snoozed_us: int | None = None
    snooze_reason: str = ""


def write_body(
    expires: str,
    max_retries: int,
    payload: str,
    *,
    chosen_id: bool = False,
    limited_wait: bool = False,
    trace: str = "",
) -> str:
    """
    Return the body of an event.

    Args:
        expires: µs since the epoch, or ``""``. A script that posts also accepts ``+µs`` from now.
        max_retries: How often the event may be delivered again.
        payload: The payload in stored form, as JSON unless a codec has written it.
        chosen_id: True if the user chose the id. A later post may then replace the event, so nodes
            do not claim it ahead of its due time.
        limited_wait: True if the event is posted with ``max_wait``. The script that posts adds the
            time at which the wait began.
        trace: The trace context of the post, as `stored_trace` returns it, or ``""``.
    """
    flags = f"{',f' if limited_wait else ''}{f',t{trace}' if trace else ''}"
    mark = ",n" if chosen_id else "," if flags else ""
    return f"{expires},{max_retries}{mark}{flags}|{payload}"


def with_payload(body: str, payload: str) -> str:
    """Return a body with another payload, in stored form."""
    return f"{body.partition('|')[0]}|{payload}"


def write_occurrence(
    expires: str, max_retries: int, payload: str, nominal_us: int, missed: int
) -> str:
    """Return the body of an occurrence. Scripts write that of a new one themselves."""
    return f"{expires},{max_retries},s{nominal_us},{missed}|{payload}"


def read_body(raw: bytes) -> Body | None:
    """Parse a body; return None if it is not valid."""
    match = _BODY.match(raw)
    if match is None:
        return None
    snoozed_us, snooze_reason = _snooze(match[5])
    return Body(
        int(match[1]) if match[1] else None,
        int(match[2]),
        raw[match.end() :],
        chosen_id=raw.startswith((b",n|", b",n,"), match.end(2)),
        nominal_us=None if match[3] is None else int(match[3]),
        missed=int(match[4] or 0),
        trace=_trace(match[5]) if match[5] else "",
        snoozed_us=snoozed_us,
        snooze_reason=snooze_reason,
    )


def _trace(flags: bytes) -> str:
    """Return the trace context among the flags of a body, or ``""``."""
    found = _TRACE.search(flags)
    return found[1].decode() if found else ""


def _snooze(flags: bytes | None) -> tuple[int | None, str]:
    """Return the time and the reason of the first snooze among the flags of a body."""
    found = _SNOOZE.search(flags or b"")
    return (int(found[1]), found[2].decode()) if found else (None, "")


class Payload(NamedTuple):
    """A payload as inspections show it. Both are None if the bytes are not a valid payload."""

    event: dict[str, Any] | None
    #: The kind and length of a payload that the codec cannot open.
    sealed: str | None = None


def open_payload(raw: bytes, coder: Coder = PLAIN) -> Payload:
    """Return the payload of stored bytes."""
    try:
        return Payload(coder.decode(raw))
    except UnreadablePayload:
        return Payload(None, sealed.describe(raw))
    except PayloadError:
        return Payload(None)


def read_payload(raw: bytes | None, coder: Coder = PLAIN) -> Payload:
    """Return the payload of a body."""
    body = read_body(raw or b"")
    return Payload(None) if body is None else open_payload(body.payload, coder)


def read_claim(
    reply: bytes, start: int, end: int, *, id: str, token: int, attempt: int, due: int, now: int
) -> Claim:
    """
    Return the claim of an event whose body is ``reply[start:end]``.

    Its payload is that of the body; an invalid body is left as it is.
    """
    body = _BODY.match(reply, start, end)
    if body is None:
        return Claim(id, token, attempt, due, now, 0, reply[start:end])
    claim = Claim(id, token, attempt, due, now, int(body[2]), reply[body.end() : end])
    if body[1]:
        claim.expires_us = int(body[1])
    if body[3] is not None:
        claim.schedule = schedule_of(id)
        claim.nominal_us, claim.missed = int(body[3]), int(body[4])
    # Most events have no flags, or only the mark of an id that the user chose.
    if body[5] and body[5] != b",n":
        claim.trace = _trace(body[5])
        claim.snoozed_us, claim.snooze_reason = _snooze(body[5])
    return claim


def write_letter(letter: DeadLetter) -> str:
    """Return the stored form of a dead letter."""
    error = letter.error.encode(errors="surrogateescape")
    head = b"%d,%b,%d|" % (letter.attempt, letter.reason.encode(), len(error))
    return text(head + error + letter.raw)


def read_letter(id: str, died_us: int, raw: bytes, coder: Coder = PLAIN) -> DeadLetter:
    """Read a dead letter; return it with the reason ``corrupt`` if dtimer did not write it."""
    match = _LETTER.match(raw)
    if match is None:
        return DeadLetter(id, None, 0, Reason.CORRUPT, "", died_us / 1000, raw)
    end = match.end() + int(match[3])
    error, body = raw[match.end() : end], raw[end:]
    event, closed = read_payload(body, coder)
    return DeadLetter(
        id=id,
        event=event,
        attempt=int(match[1]),
        reason=Reason.read(text(match[2])),
        error=text(error),
        died=died_us / 1000,
        raw=body,
        sealed=closed,
    )


def reason_of_letter(raw: bytes) -> str:
    """Return the reason of a dead letter."""
    match = _LETTER.match(raw)
    return Reason.CORRUPT if match is None else text(match[2])


def write_template(spec: ScheduleSpec) -> str:
    """Return the template of the occurrences of a schedule."""
    return f"{spec.max_retries}|{spec.payload}"


def read_spec(id: str, definition: bytes, template: bytes) -> ScheduleSpec:
    """
    Return a schedule from its stored definition and template.

    Raises:
        NamespaceCorrupt: One of them is not valid, so dtimer has not written it.
    """
    return spec_from_json(id, definition, template.partition(b"|")[2])


def read_schedule_state(raw: bytes) -> dict[str, str]:
    """Read the state of a schedule into its fields by name."""
    return dict(zip(_SCHEDULE_STATE, text(raw).split(";"), strict=False))


def read_registration(raw: bytes) -> tuple[int, bytes]:
    """Read the registration of a node: when it joined, in µs, and its JSON about itself."""
    head, _, about = raw.partition(b"|")
    match = _JOINED.match(head)
    return int(match[1]) if match else 0, about


def read_history(hours: Iterable[bytes], now_us: int) -> list[Minute]:
    """Return the history of the last 24 hours, oldest first, from the stored *hours*."""
    rows = []
    for stored in hours:
        begin, *found = text(stored).split(";")
        if not begin.isascii() or not begin.isdigit() or len(begin) > 9:
            continue
        for row in filter(None, map(_ROW.fullmatch, found)):
            of_hour, minutes, *numbers, half, most = map(int, row.groups())
            minute = int(begin) * 60 + of_hour
            if 0 <= now_us // _MINUTE_US - minute <= _DAY_MINUTES:
                late = tuple(None if i < 0 else upper_end(i) for i in (half, most))
                rows.append(Minute(minute * _MINUTE_US / 1000, minutes, *numbers, *late))
    return sorted(rows, key=lambda row: row.begins)
