"""Events and records: their moments as datetimes, and how they look when they are printed."""

import copy
import dataclasses
import pickle
import pprint
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dtimer
from dtimer import (
    DeadLetter,
    Event,
    Health,
    NodeInfo,
    OptionError,
    Record,
    Schedule,
    State,
    StateRollback,
    Stats,
)
from dtimer.epoch import EPOCH, to_datetime
from dtimer.model.claims import Claim
from dtimer.model.histogram import BUCKETS
from dtimer.model.times import LATEST_US, moment_us

#: 2026-11-30 16:03:44.123456 UTC, as a moment of the store, of the public face, as a datetime, and
#: as it is printed.
US = 1_796_054_624_123_456
MS = US / 1000
AT = datetime(2026, 11, 30, 16, 3, 44, 123_456, UTC)
PRINTED_AT = "2026-11-30T16:03:44.123Z"

SECRET = "hunter2"
PAYLOAD = {"msg": SECRET, "card": {"number": SECRET}}

#: 90 of 100 events started 0.18 to 0.26 ms late, and ten 2 to 2.9 ms.
LATENESS = [0] * BUCKETS
LATENESS[15], LATENESS[22] = 90, 10

CLAIM = Claim(
    "e", token=7, attempt=2, due_us=US, claimed_us=US + 250, max_retries=3, payload=b"",
    schedule="s", nominal_us=US,
)  # fmt: skip

#: The fields of a record of each kind.
FIELDS = {
    Record: {"id": "e", "event": PAYLOAD, "due": MS, "state": State.SCHEDULED, "attempt": 1},
    DeadLetter: {
        "id": "e", "event": PAYLOAD, "attempt": 4, "reason": "failed",
        "error": f"Traceback …\nValueError: no {SECRET}\n", "died": MS, "raw": SECRET.encode(),
    },
    NodeInfo: {
        "id": "n", "incarnation": "x" * 12, "host": "web-3", "pid": 712, "joined": MS,
        "idle_ms": 12.25, "waiting": True,
    },
    Schedule: {
        "id": "s", "event": PAYLOAD, "interval": None, "cron": "0 9 * * *", "tz": "Europe/Berlin",
        "misfire": "coalesce", "overlap": "queue", "jitter": 0.0, "due": MS, "last": MS, "left": 3,
        "paused": False,
    },
    Stats: {
        "scheduled": 3, "in_flight": 1, "overdue": 0, "oldest_overdue_ms": 0.0, "dead": 2,
        "nodes": 1, "paused": False, "totals": {"posted": 106, "started": 101, "confirmed": 99},
        "lateness": tuple(LATENESS),
    },
    Health: {
        "ok": True, "joined": True, "deaf": False, "claim_age_ms": 3.0625, "heard_age_ms": None,
        "handlers": 2, "stuck": 0, "error": None,
    },
    StateRollback: {"since": MS, "until": MS, "wiped": False},
}  # fmt: skip


def make(kind, payload=PAYLOAD, **fields):
    """Return an event, or a record in which *fields* replace those of the table."""
    return Event(payload, CLAIM, None) if kind is Event else kind(**FIELDS[kind] | fields)


#: Each kind of record in several states, and its repr.
PRINTED = {
    "event": (make(Event), f"<Event 'e' due={PRINTED_AT} attempt=2 keys=['msg', 'card']>"),
    "scheduled": (
        make(Record),
        f"<Record 'e' scheduled due={PRINTED_AT} attempt=1 keys=['msg', 'card']>",
    ),
    "dead": (
        make(Record, event=None, state=State.DEAD),
        f"<Record 'e' dead due={PRINTED_AT} attempt=1 keys=None>",
    ),
    "dead letter": (
        make(DeadLetter),
        f"<DeadLetter 'e' failed died={PRINTED_AT} attempt=4 keys=['msg', 'card']>",
    ),
    "waiting node": (
        make(NodeInfo),
        f"<NodeInfo 'n' waiting host='web-3' pid=712 joined={PRINTED_AT} idle_ms=12.25>",
    ),
    "node without a listener": (
        make(NodeInfo, waiting=False, listening=False),
        f"<NodeInfo 'n' not listening host='web-3' pid=712 joined={PRINTED_AT} idle_ms=12.25>",
    ),
    "cron": (
        make(Schedule),
        (f"<Schedule 's' cron='0 9 * * *' tz='Europe/Berlin' due={PRINTED_AT} left=3"
         " keys=['msg', 'card']>"),
    ),
    "paused interval": (
        make(Schedule, interval=60_000.0, cron=None, tz="UTC", due=None, left=None, paused=True),
        "<Schedule 's' paused interval=60000 due=None keys=['msg', 'card']>",
    ),
    "stats": (
        make(Stats),
        ("<Stats scheduled=3 in_flight=1 overdue=0 dead=2 nodes=1 posted=106 confirmed=99"
         " late(0.5)=0.255 late(0.99)=2.895>"),
    ),
    "paused stats without lateness": (
        make(Stats, paused=True, totals={}, lateness=()),
        "<Stats paused scheduled=3 in_flight=1 overdue=0 dead=2 nodes=1 posted=0 confirmed=0>",
    ),
    "healthy": (make(Health), "<Health ok claim_age_ms=3.062 heard_age_ms=None handlers=2>"),
    "unhealthy": (
        make(Health, ok=False, joined=False, deaf=True, listening=False, stuck=1, dropped=4,
             error="gone"),
        ("<Health not ok not joined deaf not listening claim_age_ms=3.062 heard_age_ms=None"
         " handlers=2 stuck=1 dropped=4 error='gone'>"),
    ),
}  # fmt: skip

each_record = pytest.mark.parametrize("record", [made for made, _ in PRINTED.values()], ids=PRINTED)
each_dataclass = pytest.mark.parametrize(
    "record",
    [made for made, _ in PRINTED.values() if not isinstance(made, Event)],
    ids=[name for name in PRINTED if name != "event"],
)


class TestDatetimes:
    """A number that is a moment has a datetime beside it."""

    @pytest.mark.parametrize(
        ("kind", "field"),
        [
            *[(Event, "due"), (Event, "nominal"), (Record, "due"), (DeadLetter, "died")],
            *[(NodeInfo, "joined"), (Schedule, "due"), (Schedule, "last")],
            *[(StateRollback, "since"), (StateRollback, "until")],
        ],
    )
    def test_is_the_same_moment_in_utc(self, kind, field):
        """No microsecond is lost, and no reader needs to know the time zone of the machine."""
        assert MS == getattr(make(kind), field)
        assert AT == getattr(make(kind), f"{field}_at")
        assert UTC is getattr(make(kind), f"{field}_at").tzinfo

    @pytest.mark.parametrize(
        ("kind", "field"), [(Schedule, "due"), (Schedule, "last"), (StateRollback, "since")]
    )
    def test_is_none_if_there_is_no_moment(self, kind, field):
        """A schedule that has ended has no due time."""
        assert getattr(make(kind, **{field: None}), f"{field}_at") is None

    def test_is_none_for_the_nominal_time_of_an_event_without_a_schedule(self):
        """Most events have no schedule, and a handler may look at the time all the same."""
        event = Event(PAYLOAD, dataclasses.replace(CLAIM, nominal_us=None), None)
        assert event.nominal_at is None

    def test_every_documented_moment_has_a_datetime(self):
        """The documentation of each field says whether it is a moment, so a new one is found."""
        found = set()
        for name in dtimer.__all__:
            kind = getattr(dtimer, name)
            text = kind.__doc__ or ""
            # An attribute is indented by four spaces, and its text may go on in the next lines.
            for field, about in re.findall(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", text, re.MULTILINE):
                if "since the epoch" in about or field in ("due", "last"):
                    found.add(f"{name}.{field}")
                    assert isinstance(getattr(kind, f"{field}_at"), property), f"{name}.{field}"
        assert {"Event.due", "Event.nominal", "Record.due", "DeadLetter.died", "NodeInfo.joined",
                "Schedule.due", "Schedule.last", "Record.expires", "DueCount.begins",
                "InFlight.due", "InFlight.claimed", "InFlight.lease_ends", "Minute.begins",
                } == found  # fmt: skip

    @given(st.integers(0, LATEST_US))
    @example(LATEST_US)
    @example(US)
    def test_is_exact_for_every_moment_that_can_be_posted(self, us):
        """An event can be posted again at the `due_at` of another, and is due at the same time."""
        assert EPOCH + timedelta(microseconds=us) == to_datetime(us / 1000)
        assert us == moment_us(to_datetime(us / 1000), "at", stepped=True)

    @pytest.mark.parametrize("ms", [253_402_300_800_000, 1e15, 10**400, float("inf")])
    def test_is_the_last_datetime_for_a_moment_after_the_year_9999(self, ms):
        """A test may set the clock so far ahead, and a property must not raise."""
        assert datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC) == make(Record, due=ms).due_at
        assert "due=9999-12-31T23:59:59.999Z" in repr(make(Record, due=ms))

    def test_is_the_first_datetime_for_a_moment_before_the_year_1(self):
        """A property must not raise for this moment either."""
        assert datetime(1, 1, 1, tzinfo=UTC) == to_datetime(-1e15)


class TestRepr:
    """The repr of an event or a record is for logs and terminals."""

    @pytest.mark.parametrize(("record", "text"), PRINTED.values(), ids=PRINTED)
    def test_is_one_line_about_the_state(self, record, text):
        """A person who debugs needs the id, the time and the state, not every field."""
        assert text == repr(record)
        assert len(text) <= 160
        assert text == str(record) == f"{record}"

    @each_record
    def test_contains_no_value_of_the_payload(self, record):
        """A payload may be confidential, and a log is read by many people."""
        for text in (repr(record), str([record]), pprint.pformat(record), f"{record!s}"):
            assert SECRET not in text

    def test_of_a_claim_contains_no_payload(self):
        """An assertion or an error inside dtimer may print a claim."""
        claim = Claim("e", 7, 1, US, US, 3, SECRET.encode())
        assert SECRET not in repr(claim)
        assert "id='e'" in repr(claim)

    def test_shortens_many_and_long_keys(self):
        """A payload with a thousand keys must not fill a log."""
        text = repr(make(Event, {f"key-{n}": n for n in range(1_000)}))
        assert text.endswith("keys=['key-0', 'key-1', 'key-2', 'key-3', 'key-4', 'key-5', 'key-6',"
                             " 'key-7', … 992 more]>")  # fmt: skip
        assert f"keys=['{'k' * 37}…']>" in repr(make(Event, {"k" * 1_000: 1}))

    def test_escapes_a_line_end_in_a_key(self):
        """With a line end, the author of a payload could add a line to a log."""
        assert 1 == len(repr(make(Event, {"a\nERROR all is lost": 1})).splitlines())

    def test_names_only_the_type_of_a_key_that_a_handler_added(self):
        """A handler may change its dict, and such a key is not text."""
        assert repr(make(Event, {("a", SECRET): 1})).endswith("keys=[tuple]>")


class TestValues:
    """The datetimes and the repr leave everything else as it is."""

    @each_dataclass
    def test_a_copy_is_equal(self, record):
        """A record is a value: it compares, copies, pickles, and is immutable."""
        for other in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert record == other
            assert type(record) is type(other)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, "x")

    @each_dataclass
    def test_a_dict_of_a_record_has_no_datetime(self, record):
        """`dataclasses.asdict` is the JSON of the command line, which stays as it is."""
        assert {f.name for f in dataclasses.fields(record)} == {*dataclasses.asdict(record)}
        assert not [name for name in dataclasses.asdict(record) if name.endswith("_at")]

    def test_a_datetime_cannot_be_set(self):
        """The number of milliseconds beside it would stay the same."""
        with pytest.raises(AttributeError):
            make(Event).due_at = AT


def test_a_rollback_beyond_the_year_9999_can_be_reported():
    """The text of the error contains the moments, and must not raise another error."""
    assert "9999-12-31" in str(StateRollback(None, 1e15, wiped=False))


#: Calls with a wrong argument.
CALLS = {
    "post": lambda t, wrong: t.post({}, wrong),
    "post, at": lambda t, wrong: t.post({}, at=wrong),
    "post, both": lambda t, wrong: t.post({}, 200, at=wrong),
    "post, both ways": lambda t, wrong: t.post({}, wrong, at=MS),
    "post, id": lambda t, wrong: t.post({}, id=wrong),
    "post, expires": lambda t, wrong: t.post({}, expires=wrong),
    "post, if_exists": lambda t, wrong: t.post({}, if_exists=wrong),
    "post, max_retries": lambda t, wrong: t.post({}, max_retries=wrong),
    "cancel": lambda t, wrong: t.cancel(wrong),
    "peek": lambda t, wrong: t.peek(wrong),
    "reschedule": lambda t, wrong: t.reschedule("e", wrong),
    "upcoming": lambda t, wrong: t.upcoming(wrong),
    "dead": lambda t, wrong: t.dead(wrong),
    "confirm": lambda t, wrong: t.confirm(wrong),
    "on": lambda t, wrong: t.on(wrong),
    "listener": lambda t, wrong: t.on("event", wrong),
    "every": lambda t, wrong: t.every(wrong, {}, id="s"),
    "cron": lambda t, wrong: t.cron(wrong, {}, id="s"),
    "cron, tz": lambda t, wrong: t.cron("* * * * *", {}, id="s", tz=wrong),
    "cron, misfire": lambda t, wrong: t.cron("* * * * *", {}, id="s", misfire=wrong),
}


@pytest.mark.parametrize(
    "wrong",
    [PAYLOAD, [PAYLOAD], (SECRET,), {SECRET}, *map(make, (Record, Schedule, DeadLetter))],
    ids=lambda wrong: type(wrong).__name__,
)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_error_of_a_wrong_argument_does_not_quote_a_payload(call, wrong):
    """Arguments in the wrong order are a common mistake, and errors end in logs."""
    timer = dtimer.DTimer("node", "redis://127.0.0.1:1")
    with pytest.raises(OptionError) as caught:
        call(timer, wrong)
    assert SECRET not in str(caught.value)
