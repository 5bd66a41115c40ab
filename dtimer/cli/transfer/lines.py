"""
The lines of an export: one JSON object each, written and read here.

.. code-block:: text

    {"kind": "export", "version": 1, "ns": …, "at": …}
    {"kind": "schedule", "id": …, "paused": …, "every" or "cron", …, "event": {…}}
    {"kind": "event", "id": …, "due": …, "expires": …, "max_retries": …, "event": {…}}
    {"kind": "dead", "id": …, "died": …, "attempt": …, "reason": …, "error": …, …}
    {"kind": "end", "schedules": …, "events": …, "dead": …}

Moments are milliseconds since the epoch, and durations milliseconds, with three decimals. The
payloads of events are copied as bytes, so that no digit of a number changes.

A payload that the codec cannot open is described in ``"event"``, and ``"sealed"`` has its bytes in
base 64. An import stores these bytes again.

The line of a dead letter has ``"chosen_id"`` too, or the ``"nominal"`` time and ``"missed"`` of an
occurrence. The event of a line without them counts as one with a chosen id, as imported events do:
nodes do not claim it ahead of its due time.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dtimer.epoch import EPOCH
from dtimer.errors import NamespaceCorrupt, PayloadError
from dtimer.model import sealed
from dtimer.model.codecs import PLAIN, Coder
from dtimer.model.ids import check_id, is_occurrence
from dtimer.model.options import MOST_RETRIES, check_count
from dtimer.model.outcomes import Reason
from dtimer.model.payload import encode, parse
from dtimer.model.records import DeadLetter
from dtimer.model.schedules import LATER_FIELDS, STORED_FIELDS, ScheduleSpec, make_spec
from dtimer.store.admin import PendingEvent
from dtimer.store.format import open_payload, read_body, text, write_body, write_occurrence

VERSION = 1

_REASON = re.compile(r"\w{1,40}", re.ASCII)
_NO_LIMIT = 2**40
_MOST_MISSED = 10**15 - 1

#: The fields of a schedule that are durations or moments.
_TIMES = ("every", "jitter", "start", "stop", "grace", "expires")


class BadLine(Exception):
    """A line cannot be read; the text says why."""


def _ms(us: int | None) -> str:
    if us is None:
        return "null"
    return f"{us // 1000}.{us % 1000:03d}" if us % 1000 else str(us // 1000)


def _event_fields(raw: bytes, coder: Coder) -> bytes | None:
    """Return the fields of a line for a stored payload, or None if it is not a payload."""
    event, closed = open_payload(raw, coder)
    if event is not None and raw.startswith(b"{"):
        # As it is stored. A payload that another program wrote may have line ends.
        return b'"event": ' + b" ".join(raw.splitlines())
    if event is not None:
        try:
            return b'"event": ' + encode(event, _NO_LIMIT).encode()
        except PayloadError:
            # A codec of the user may return values that JSON does not have.
            closed = sealed.describe(raw)
    if closed is None:
        return None
    fields = {"event": f"<{closed}>", "sealed": base64.b64encode(raw).decode()}
    return json.dumps(fields).encode()[1:-1]


def event_line(event: PendingEvent, coder: Coder = PLAIN) -> bytes | None:
    """Return the line of a waiting event, or None if its record cannot be read."""
    body = read_body(event.raw)
    if body is None or (fields := _event_fields(body.payload, coder)) is None:
        return None
    # An occurrence that waits for a retry, or was created by run-now, is imported as an ordinary
    # event. It needs another id, because only the schedule may post ids of this form.
    id = f"{event.id}.moved" if is_occurrence(event.id) else event.id
    head = (
        f'{{"kind": "event", "id": {json.dumps(id)}, "due": {_ms(event.due_us)}, "expires":'
        f' {_ms(body.expires_us)}, "max_retries": {body.max_retries}, '
    )
    return head.encode() + fields + b"}\n"


def schedule_line(spec: ScheduleSpec, *, paused: bool, coder: Coder = PLAIN) -> bytes:
    """
    Return the line of a schedule.

    Raises:
        NamespaceCorrupt: its payload is not a payload.
    """
    rule = json.loads(spec.to_json())
    for name in _TIMES:
        if rule.get(name) is not None:
            rule[name] = rule[name] / 1000 if rule[name] % 1000 else rule[name] // 1000
    fields = _event_fields(spec.payload.encode(errors="surrogateescape"), coder)
    if fields is None:
        raise NamespaceCorrupt(f"the payload of the schedule {spec.id!r} is not a JSON object")
    line = {"kind": "schedule", "id": spec.id, "paused": paused} | rule
    return json.dumps(line).encode()[:-1] + b", " + fields + b"}\n"


def dead_line(letter: DeadLetter) -> bytes:
    """Return the line of a dead letter; bytes that are not an event are written in base 64."""
    body = read_body(letter.raw)
    line: dict[str, Any] = {
        "kind": "dead",
        "id": letter.id,
        "died": letter.died,
        "attempt": letter.attempt,
        "reason": letter.reason,
        "error": letter.error,
    }
    if body is None or letter.event is None or not _is_json(letter.event):
        line["raw"] = base64.b64encode(letter.raw).decode()
        if letter.sealed is not None:
            line["event"] = f"<{letter.sealed}>"
    else:
        expires = None if body.expires_us is None else body.expires_us / 1000
        line |= {"expires": expires, "max_retries": body.max_retries}
        if body.nominal_us is None:
            line["chosen_id"] = body.chosen_id
        else:
            line |= {"nominal": body.nominal_us / 1000, "missed": body.missed}
        line["event"] = letter.event
    return json.dumps(line).encode() + b"\n"


def _is_json(event: dict[str, Any]) -> bool:
    try:
        return bool(encode(event, _NO_LIMIT))
    except PayloadError:
        return False


def read_line(raw: bytes) -> dict[str, Any]:
    """
    Parse a line.

    Raises:
        BadLine: the line is not a JSON object with a kind.
    """
    try:
        line = parse(raw.decode())
    except (ValueError, RecursionError) as e:
        raise BadLine(f"it is not JSON ({e})") from None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise BadLine('it is not an object with a "kind"')
    return line


def _us(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**13:
        raise BadLine(f'"{name}" must be milliseconds, not {value!r}')
    # A double is exact to less than half a microsecond here.
    return round(value * 1000)


def _get(line: dict[str, Any], name: str) -> Any:
    try:
        return line[name]
    except KeyError:
        raise BadLine(f'it has no "{name}"') from None


def _when(value: object, name: str) -> datetime:
    return _after_epoch(_us(value, name))


def _after_epoch(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def posting(line: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``post`` for the line of an event. An existing event is kept."""
    item = {
        "ev": {} if "sealed" in line else _get(line, "event"),
        "at": _when(_get(line, "due"), "due"),
        "id": _get(line, "id"),
        "if_exists": "keep",
    }
    if line.get("expires") is not None:
        item["expires"] = _when(line["expires"], "expires")
    if line.get("max_retries") is not None:
        item["max_retries"] = line["max_retries"]
    return item


def sealed_payload(line: dict[str, Any]) -> str | None:
    """
    Return the payload in stored form of a line that has it, else None.

    Raises:
        BadLine: it is not in base 64.
    """
    return text(_base64(line, "sealed")) if "sealed" in line else None


def _base64(line: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(str(line[name]), validate=True)
    except ValueError:
        raise BadLine(f'"{name}" is not base 64') from None


@dataclass(frozen=True)
class ScheduleLine:
    """A schedule as read from a line, and whether it was paused."""

    spec: ScheduleSpec
    paused: bool


def schedule(line: dict[str, Any], coder: Coder = PLAIN) -> ScheduleLine:
    """
    Return the schedule of a line.

    Raises:
        BadLine: the line is not a schedule as an export writes it.
        OptionError: a value is not valid in a schedule.
    """
    given = dict.fromkeys(LATER_FIELDS) | line
    fields = {n: _get(given, n) for n in ("id", *STORED_FIELDS)}
    for name in _TIMES:
        if fields[name] is not None:
            fields[name] = _us(fields[name], name)
    for name in ("count", "max_retries"):
        if fields[name] is not None:
            check_count(fields[name], name, 0, 2**53)
    payload, identity = sealed_payload(line), None
    if payload is None:
        event = _get(line, "event")
        payload, identity = coder.encode(event, _NO_LIMIT), coder.identify(event, _NO_LIMIT)
    read = ScheduleSpec(payload=payload, identity=identity, **fields)
    span = {n: None if fields[n] is None else _after_epoch(fields[n]) for n in ("start", "stop")}
    limits = {
        n: None if fields[n] is None else timedelta(microseconds=fields[n]) for n in LATER_FIELDS
    }
    made = make_spec(
        check_id(read.id),
        every=None if read.every is None else timedelta(microseconds=read.every),
        cron=read.cron,
        tz=read.tz,
        start=span["start"],
        end=span["stop"],
        count=read.count,
        jitter=timedelta(microseconds=read.jitter),
        misfire=read.misfire,
        overlap=read.overlap,
        max_retries=read.max_retries,
        payload=read.payload,
        grace=limits["grace"],
        expires=limits["expires"],
        identity=read.identity,
    )
    if made != read or (made.every is None) == (made.cron is None):
        raise BadLine("it is not a schedule as an export writes it")
    return ScheduleLine(made, bool(line.get("paused")))


def _body(line: dict[str, Any], coder: Coder) -> bytes:
    """Return the stored body of the event in the line of a dead letter."""
    payload = coder.encode(_get(line, "event"), _NO_LIMIT)
    expires = "" if line.get("expires") is None else str(_us(line["expires"], "expires"))
    max_retries = check_count(_get(line, "max_retries"), "max_retries", 0, MOST_RETRIES)
    if line.get("nominal") is None:
        chosen_id = line.get("chosen_id") is not False
        body = write_body(expires, max_retries, payload, chosen_id=chosen_id)
        return body.encode(errors="surrogateescape")
    nominal = _us(line["nominal"], "nominal")
    missed = check_count(_get(line, "missed"), "missed", 0, _MOST_MISSED)
    body = write_occurrence(expires, max_retries, payload, nominal, missed)
    return body.encode(errors="surrogateescape")


def letter(line: dict[str, Any], coder: Coder = PLAIN) -> DeadLetter:
    """
    Return the dead letter of a line.

    Raises:
        BadLine: the line is not a dead letter.
    """
    reason, error = str(_get(line, "reason")), str(line.get("error", ""))
    try:
        error.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        error = error.encode(errors="backslashreplace").decode()
    if not _REASON.fullmatch(reason):
        raise BadLine(f'"reason" must be one word, not {reason!r}')
    raw = _base64(line, "raw") if "raw" in line else _body(line, coder)
    return DeadLetter(
        id=check_id(_get(line, "id")),
        event=None,
        attempt=check_count(_get(line, "attempt"), "attempt", 0, 10**7),
        reason=Reason.read(reason),
        error=error,
        died=_us(_get(line, "died"), "died") / 1000,
        raw=raw,
    )
