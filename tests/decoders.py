"""
Every decoder of bytes that another program may have written, each under a name.

`attempt` checks the promise of all of them: any bytes are decoded, or refused with a documented
error. The decoded value is also encoded and printed, because that must not fail either.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dtimer.cli.transfer import lines
from dtimer.cli.transfer.lines import BadLine
from dtimer.errors import NamespaceCorrupt, OptionError, PayloadError
from dtimer.model.histogram import percentile
from dtimer.model.ids import IdGenerator
from dtimer.model.options import validate
from dtimer.model.payload import decode
from dtimer.model.schedules import check_cron, times_to_add
from dtimer.model.zones import zone
from dtimer.store import acl, overview, replies
from dtimer.store.admin import PendingEvent
from dtimer.store.format import read_body, read_letter, read_payload, read_spec, text
from dtimer.timer.posting import prepare_item

_OPTIONS = validate({})
_NEW_ID = IdGenerator()

_TEMPLATE = b'3|{"a":1}'
_DEFINITION = (
    b'{"count":null,"cron":"*/5 * * * *","every":null,"jitter":0,"max_retries":3,'
    b'"misfire":"coalesce","overlap":"queue","start":null,"stop":null,"tz":"UTC"}'
)
_SCHEDULE_STATE = b"print;;c;q;0;;;;1800000000000000;;;1800000300000000;;;;"
_NOW = 1_800_000_000_000_000


def _payload(raw: bytes) -> object:
    return decode(raw)


def _body(raw: bytes) -> object:
    body = read_body(raw)
    waiting = PendingEvent("id", _NOW, 0, raw)
    return body and (read_payload(raw), lines.event_line(waiting))


def _claim_reply(raw: bytes) -> object:
    claim = b"1800000000000000,1,1800000000000000,2,%d|id%b" % (len(raw), raw)
    words = b"".join(b"%d:%b" % (len(word), word) for word in (raw, b"corrupt", raw))
    reply = replies.read_claim_reply(b"1800000000000000;-1;1;;;;;1;1;1|" + claim + words, [])
    return reply.claims[0].payload is not None and repr(reply)


def _record(raw: bytes) -> object:
    states = (b"scheduled", b"in_flight", b"dead")
    records = [replies.read_record("id", [state, raw, raw, raw]) for state in states]
    return [*records, replies.read_scheduled("id", raw, raw, raw)]


def _dead_letter(raw: bytes) -> object:
    letter = read_letter("id", 1, raw)
    assert isinstance(json.loads(lines.dead_line(letter)), dict)
    return letter.reason != "corrupt" and letter


def _node(raw: bytes) -> object:
    return overview.read_node(raw, raw, raw, raw)


def _number(raw: bytes) -> object:
    number = replies.integer(raw)
    percentile([number, 1], 0.5)
    return number


def _schedule(raw: bytes) -> object:
    """Decode *raw* in each of the three places, with correct bytes in the other two."""
    parts = [
        (raw, _TEMPLATE, _SCHEDULE_STATE),
        (_DEFINITION, raw, _SCHEDULE_STATE),
        (_DEFINITION, _TEMPLATE, raw),
    ]
    read = 0
    for definition, template, state in parts:
        try:
            replies.read_schedule(
                "id", [definition, template, state, raw, b"1" if state is _SCHEDULE_STATE else b""]
            )
            read += 1
        except NamespaceCorrupt:
            continue
    return read


def _definition(raw: bytes) -> object:
    definition = read_spec("id", raw, _TEMPLATE)
    zone(definition.tz)
    if definition.cron is not None:
        check_cron(definition.cron, definition.tz)
        times_to_add(definition, _NOW, _NOW)
    return lines.schedule_line(definition, paused=False)


def _line(raw: bytes) -> object:
    line = lines.read_line(raw)
    if line["kind"] == "event":
        return prepare_item(_OPTIONS, _NEW_ID, lines.posting(line))
    if line["kind"] == "dead":
        return lines.letter(line)
    if line["kind"] == "schedule":
        return lines.schedule(line).spec.to_json()
    return line


def _acl_error(raw: bytes) -> object:
    return acl.remedy(text(raw), "dt")


#: The decoders by name, each with the errors that it is documented to raise.
ALL: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...]]] = {
    "payload": (_payload, (PayloadError,)),
    "body": (_body, ()),
    "claim_reply": (_claim_reply, ()),
    "record": (_record, ()),
    "dead_letter": (_dead_letter, ()),
    "node": (_node, ()),
    "number": (_number, ()),
    "schedule": (_schedule, ()),
    "definition": (_definition, (NamespaceCorrupt, OptionError)),
    "line": (_line, (BadLine, OptionError, PayloadError)),
    "refusal": (_acl_error, ()),
}

#: Valid bytes for each decoder.
GOOD = {
    "payload": b'{"a":[1,2.5,null]}',
    "body": b',3|{"a":1}',
    "claim_reply": b',3|{"a":1}',
    "record": b',3|{"a":1}',
    "dead_letter": b'1,failed,4|oops,3|{"a":1}',
    "node": b'1800000000000000|{"id":"n","host":"h","pid":7}',
    "number": b"1800000000000000",
    "schedule": _DEFINITION,
    "definition": _DEFINITION,
    "line": b'{"kind":"event","id":"a","due":1800000000000.5,"event":{"a":1}}',
    "refusal": b"this user has no permissions to run the 'zrem' command",
}


def decode_or_refuse(name: str, raw: bytes) -> Any:
    """
    Decode *raw*.

    Returns:
        The decoded value, or None if *raw* was refused with a documented error.

    Raises:
        Exception: any error that is not documented.
    """
    decode, refusals = ALL[name]
    refused = None
    try:
        read = decode(raw)
    except refusals as e:
        refused = str(e)
    if refused is None:
        assert repr(read)
        return read
    assert len(refused) < 2_000, f"an error of {len(refused)} characters"
    return None
