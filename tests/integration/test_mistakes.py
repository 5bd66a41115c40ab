"""
A table of beginners' mistakes and of the error for each.

A mistake that raises no error is found in production, so each of these raises where it is made,
before any I/O. The error says what was given, what is expected and what to do.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import time
import zoneinfo

import pytest
import redis
import redis.asyncio
from servers import eventually
from shell import runner

from dtimer import DTimer, OptionError, PayloadError, PayloadTooLarge, RunAt, StoreError
from dtimer.testing import Catch, Clock

BERLIN = "Europe/Berlin"


async def _later(events):
    pass


def _nothing():
    pass


class _Twice:
    def __call__(self, events, more):
        pass


# The timer has not joined, and its server is never contacted. Each row: name, call, error.
POSTING = [
    ("a string for a payload", lambda t: t.post("hello", 200), "payload must be a dict, not str"),
    ("a list for a payload", lambda t: t.post([1], 200), "payload must be a dict, not list"),
    (
        "a datetime in a payload",
        lambda t: t.post({"order": {"at": dt.datetime.now(dt.UTC)}}),
        (
            "payload['order']['at'] is of type datetime, which JSON cannot represent; write"
            " value.isoformat(), or milliseconds since the epoch"
        ),
    ),
    (
        "keys that are numbers",
        lambda t: t.post({"a": [{1: 2}]}),
        "payload keys must be strings, not int, in payload['a'][0]; write str(key)",
    ),
    (
        "no number",
        lambda t: t.post({"a": [0.5, math.nan]}),
        "payload['a'][1] is NaN or infinite, which JSON cannot represent; write None",
    ),
    (
        "a Decimal",
        lambda t: t.post({"a": decimal.Decimal(1)}),
        "payload['a'] is of type Decimal, which JSON cannot represent; write str(value)",
    ),
    (
        "bytes",
        lambda t: t.post({"a": b"x"}),
        "payload['a'] is of type bytes, which JSON cannot represent; write value.decode(), or",
    ),
    (
        "a large payload",
        lambda t: t.post({"a": "x" * 300_000}),
        "the payload has 300008 bytes of JSON; at most 262144 are allowed (max_payload)",
    ),
    (
        "a delay in words",
        lambda t: t.post({}, "200"),
        "delay must be a number of milliseconds or a timedelta, not '200' (str)",
    ),
    (
        "a moment for a delay",
        lambda t: t.post({}, dt.datetime(2030, 1, 1, tzinfo=dt.UTC)),
        "(datetime); a moment is given as at=",
    ),
    (
        "a duration for a moment",
        lambda t: t.post({}, at=dt.timedelta(hours=1)),
        "(timedelta); add it to datetime.now(timezone.utc)",
    ),
    (
        "a moment without a zone",
        lambda t: t.post({}, at=dt.datetime(2030, 1, 1)),  # noqa: DTZ001 - the point
        "at is a naive datetime, datetime.datetime(2030, 1, 1, 0, 0); give it a tzinfo",
    ),
    (
        "a moment in seconds",
        lambda t: t.post({}, at=time.time()),
        "which looks like seconds; multiply by 1000, because numbers are milliseconds",
    ),
    (
        "another moment in seconds",
        lambda t: t.reschedule("x", at=time.time()),
        "which looks like seconds; multiply by 1000",
    ),
    (
        "both",
        lambda t: t.post({}, 5, at=1_800_000_000_000),
        "give either delay or at, not both (delay=5, at=1800000000000)",
    ),
    ("no delay", lambda t: t.post({}, None), "delay must be a number of milliseconds"),
    ("a number for an id", lambda t: t.post({}, id=17), "id must be a str, not 17 (int)"),
    (
        "a policy of another library",
        lambda t: t.post({}, id="17", if_exists="ignore"),
        "not 'ignore'; did you mean 'keep'?",
    ),
    (
        "a delay of two hundred years",
        lambda t: t.post({}, dt.timedelta(days=365 * 200)),
        "beyond 100 years; is the unit right?",
    ),
    (
        "payloads alone",
        lambda t: t.post_many([{"a": 1}]),
        (
            "an item of post_many lacks its payload: give a pair (ev, delay) or a mapping such as"
            " {'ev': …, 'delay': …}, and this one has a"
        ),
    ),
    (
        "a slip in an item",
        lambda t: t.post_many([{"ev": {}, "idd": "x"}]),
        "an item of post_many has no argument 'idd'; did you mean 'id'?",
    ),
    (
        "a word of another library in an item",
        lambda t: t.post_many([{"ev": {}, "countdown": 5}]),
        "an item of post_many has no argument 'countdown'; did you mean 'delay'?",
    ),
]

LISTENING = [
    (
        "a name that is almost one",
        lambda t: t.on("events"),
        "nothing is ever emitted as 'events'; did you mean 'event'?",
    ),
    (
        "another way to register",
        lambda t: t.once("events", print),
        "nothing is ever emitted as 'events'; did you mean 'event'?",
    ),
    (
        "a name of another library",
        lambda t: t.on("failed", print),
        "nothing is ever emitted as 'failed'; did you mean 'error'?",
    ),
    (
        "any other",
        lambda t: t.on("tea", print),
        "emitted as 'tea'; valid names are event, error, ready",
    ),
    (
        "no parentheses",
        lambda t: t.on(_nothing),
        "on needs the name of what to listen to: write @timer.on('event'), not @timer.on",
    ),
    ("a coroutine", lambda t: t.on("event")(_later), "must be a plain function"),
    ("no function", lambda t: t.on("event", 5), "a listener of 'event' must be callable, not 5"),
    (
        "a listener without an argument",
        lambda t: t.on("event", _nothing),
        (
            "a listener of 'event' is called with one argument, a list of events, which _nothing()"
            " does not take: too many positional arguments"
        ),
    ),
    (
        "a listener with two",
        lambda t: t.on("error", _Twice()),
        (
            "a listener of 'error' is called with one argument, an exception, which"
            " _Twice(events, more) does not take: missing a required argument: 'more'"
        ),
    ),
    (
        "a listener of what has no argument",
        lambda t: t.on("ready", lambda timer: None),
        "a listener of 'ready' is called with no argument, which <lambda>(timer) does not take",
    ),
]

SCHEDULES = [
    (
        "an interval in hundredths",
        lambda t: t.every(5, {}, id="x"),
        (
            "interval must be at least 10 ms, not 5; numbers are milliseconds, so every second is"
            " 1_000, and every minute 60_000"
        ),
    ),
    (
        "a slip in a policy",
        lambda t: t.every(60_000, {}, id="x", misfire="skp"),
        "misfire must be one of coalesce, skip, all, not 'skp'; did you mean 'skip'?",
    ),
    (
        "a start in seconds",
        lambda t: t.every(60_000, {}, id="x", start=time.time()),
        "which looks like seconds; multiply by 1000",
    ),
    (
        "four fields",
        lambda t: t.cron("* * * *", {}, id="y"),
        "the cron expression '* * * *' cannot be read (Wrong number of fields); it has five",
    ),
    (
        "minute 61",
        lambda t: t.cron("61 * * * *", {}, id="y"),
        "the cron expression '61 * * * *' cannot be read (Bad minute)",
    ),
    (
        "a slip in a zone",
        lambda t: t.cron("0 9 * * *", {}, id="y", tz="Europe/Berlinn"),
        "this machine has no time zone 'Europe/Berlinn'; did you mean 'Europe/Berlin'?",
    ),
    (
        "an offset for a zone",
        lambda t: t.cron("0 9 * * *", {}, id="y", tz="+01:00"),
        "this machine has no time zone '+01:00'; a name looks like 'Europe/Berlin' or",
    ),
]

CONTROL = [
    ("no id", lambda t: t.cancel(None), "id must be a str, not None (NoneType)"),
    ("a payload for an id", lambda t: t.cancel({"pin": 1234}), "id must be a str, not dict"),
    (
        "an id where an event is wanted",
        lambda t: t.confirm("x"),
        "confirm takes an event that a handler was given, not 'x'",
    ),
    ("moved to nowhere", lambda t: t.reschedule("x"), "reschedule needs a delay or at"),
    ("another number for an id", lambda t: t.peek(5), "id must be a str, not 5 (int)"),
    (
        "handlers of nothing",
        lambda t: setattr(t, "max_events", 0),
        "max_events must be a whole number from 1 to 100, not 0",
    ),
]

MAKING = [
    (
        "the client first",
        lambda: DTimer(redis.Redis()),
        (
            "the id of the node must be a name (a str), not Redis; pass the id first and then the"
            " client or its URL, as in DTimer('node-1', redis.Redis())"
        ),
    ),
    (
        "the URL first",
        lambda: DTimer("redis://:secret@localhost"),
        (
            "the id of the node must be a name (a str), not a URL; pass the id first and then the"
            " client or its URL, as in DTimer('node-1', redis.Redis())"
        ),
    ),
    ("an option misspelt", lambda: DTimer("n", leese=5), "did you mean 'lease'?"),
    ("a long word", lambda: DTimer("n", namespace="x"), "did you mean 'ns'?"),
    ("a word of Celery", lambda: DTimer("n", prefetch=1), "did you mean 'max_events'?"),
    ("a word of RQ", lambda: DTimer("n", retries=1), "did you mean 'max_retries'?"),
    ("a word of Huey", lambda: DTimer("n", workers=1), "did you mean 'concurrency'?"),
    ("a word of SQS", lambda: DTimer("n", visibility_timeout=1), "did you mean 'lease'?"),
    ("a word for the client", lambda: DTimer("n", url="redis://x"), "did you mean 'pub'?"),
    (
        "a duration in words",
        lambda: DTimer("n", lease="30s"),
        "lease must be a number of milliseconds or a timedelta, not '30s' (str)",
    ),
    (
        "a lease in seconds",
        lambda: DTimer("n", lease=30),
        "lease must be 100 to 86400000 ms, not 30; numbers are milliseconds",
    ),
    (
        "a number in words",
        lambda: DTimer("n", concurrency="4"),
        "concurrency must be a whole number from 1 to 1000, not '4'",
    ),
    ("a space", lambda: DTimer("n", ns="my app"), "ns must be 1 to 64 characters of A-Z a-z"),
    ("no scheme", lambda: DTimer("n", "localhost:6379"), "the URL scheme is not known; use redis:"),
    ("a strange scheme", lambda: DTimer("n", "http://x"), "the URL scheme 'http' is not known;"),
    ("no client", lambda: DTimer("n", 42), "must be redis or valkey clients or URLs, not int"),
    (
        "an asyncio client",
        lambda: DTimer("n", redis.asyncio.Redis()),
        "pub must be a synchronous client, not redis.asyncio.client's",
    ),
    (
        "replicas of a server that has none",
        lambda: DTimer("n", "embedded:", wait_replicas=1),
        "an embedded server has no replicas; leave wait_replicas at 0",
    ),
    (
        "a stream's client first",
        lambda: RunAt(redis.Redis()),
        (
            "queue_name must be a name (a str), not Redis; pass the client as redis=, as in"
            " RunAt('reminders', redis=…)"
        ),
    ),
    (
        "a stream's URL first",
        lambda: RunAt("redis://:secret@x"),
        "must be a name (a str), not a URL",
    ),
    ("a stream's space", lambda: RunAt("my queue"), "queue_name must be 1 to 64 characters"),
    (
        "a timer's word for a stream's",
        lambda: RunAt(poll_interval=5),
        "unknown option 'poll_interval' of RunAt; did you mean 'interval'?",
    ),
    ("another", lambda: RunAt(ns="x"), "unknown option 'ns' of RunAt; did you mean 'queue_name'?"),
    ("and another", lambda: RunAt(pub=1), "unknown option 'pub' of RunAt; did you mean 'redis'?"),
    ("its interval", lambda: RunAt(interval=1), "interval must be 10 to 3600000 ms, not 1"),
    ("its client", lambda: RunAt(redis=42), "redis must be a redis or valkey client, a URL, or"),
    (
        "its client's database",
        lambda: RunAt(redis={"host": "x", "db": 1}),
        "redis takes a host and a port, not 'db'; or pass a client",
    ),
    (
        "its seconds",
        lambda: RunAt().write("k", time.time()),
        "which looks like seconds; multiply by 1000",
    ),
    (
        "its seconds in a job",
        lambda: RunAt().write({"key": "k", "runAt": time.time()}),
        "runAt is 1",
    ),
    (
        "its job",
        lambda: RunAt().write({"run_at": 1, "key": "a"}),
        "a job has runAt and key, not 'run_at'",
    ),
    (
        "its name for what comes",
        lambda: RunAt().on("event", print),
        "nothing is ever emitted as 'event'; did you mean 'data'?",
    ),
    (
        "its reader",
        lambda: RunAt().on("data", _nothing),
        "a listener of 'data' is called with one argument, a key, which _nothing() does not take",
    ),
]


def each(table):
    return pytest.mark.parametrize(
        ("mistake", "says"), [row[1:] for row in table], ids=[row[0] for row in table]
    )


class TestBeforeAnyIO:
    """Mistakes that are reported without a server; the address in these tests has none."""

    @each(POSTING + LISTENING + SCHEDULES + CONTROL)
    def test_a_wrong_call_says_what_to_write_instead(self, mistake, says):
        """The error says what was given and what to write instead."""
        with pytest.raises((OptionError, PayloadError, PayloadTooLarge)) as caught:
            mistake(DTimer("n", "redis://no.such.host.invalid"))
        assert says in str(caught.value)

    @each(MAKING)
    def test_a_wrong_option_is_named_as_the_user_knows_it(self, mistake, says):
        """The error names a wrong option by the name that the user knows, and shows no password."""
        with pytest.raises(OptionError) as caught:
            mistake()
        assert says in str(caught.value)
        assert "secret" not in str(caught.value)


class TestMoments:
    """A number that reads as the current time in seconds is refused, and no other number."""

    @pytest.mark.parametrize("at", [499_999_999, 5_000_000_001, 0, 1, -5, 1_800_000_000_000])
    def test_other_numbers_are_accepted(self, server, namespace, at):
        """
        A time in the past means now. The original library's first example writes a key for
        time 1.
        """
        timer = DTimer("n", server.url, ns=namespace)
        assert "x" == timer.post({}, at=at, id="x")
        timer.leave()

    @pytest.mark.parametrize("at", [500_000_000, 5_000_000_000, 1_796_040_493.5])
    def test_a_time_in_seconds_is_refused(self, at):
        """
        Numbers that are times between 1985 and 2128 in seconds are refused, both limits
        included.
        """
        with pytest.raises(OptionError, match="looks like seconds; multiply by 1000"):
            DTimer("n").post({}, at=at)

    def test_a_test_clock_may_start_at_any_time(self, server, namespace):
        """
        With the option ``now`` no time is refused, because a test's clock may start at any
        time.
        """
        timer = DTimer("n", server.url, ns=namespace, now=Clock(1_000_000_000))
        timer.post({}, at=1_000_000_500, id="x")
        timer.every(60_000, {}, id="y", start=1_000_000_000)
        assert 1_000_000_500 == timer.peek("x").due
        assert timer.reschedule("x", at=1_000_000_700)
        timer.leave()

    def test_a_zone_info_equals_its_name(self, server, namespace):
        """A ``ZoneInfo`` and its name declare the same schedule."""
        timer = DTimer("n", server.url, ns=namespace)
        assert "new" == timer.cron("0 9 * * *", {}, id="y", tz=zoneinfo.ZoneInfo(BERLIN))
        assert "same" == timer.cron("0 9 * * *", {}, id="y", tz=BERLIN)
        assert BERLIN == timer.schedule("y").tz
        timer.leave()


class TestListeners:
    """A listener is refused only if it could never be called."""

    @pytest.mark.parametrize(
        "f",
        [print, [].append, dict, max, lambda *all: None, lambda events, more=1: None],
        ids=["print", "append", "dict", "max", "any", "default"],
    )
    def test_a_function_that_accepts_the_argument_may_listen(self, f):
        """
        A function that accepts the argument may listen, and so may a builtin without a
        signature.
        """
        timer = DTimer("n")
        assert f is timer.on("event", f)
        assert [f] == timer.listeners("event")


class TestHandling:
    """A handler that mistakes the list of events for one event."""

    @pytest.mark.parametrize("wrong", [lambda ev: ev["order"], lambda ev: ev.id])
    def test_a_handler_that_takes_the_list_for_an_event_gets_a_note(self, server, namespace, wrong):
        """The traceback ends with a note that a handler is called with a list."""
        timer = DTimer("n", server.url, ns=namespace, max_retries=0)
        died = Catch(timer, "dead")
        errors = Catch(timer, "error")
        timer.on("event", wrong)
        with timer:
            timer.post({"order": 17})
            note = "a handler is called with a list of events: for ev in events: …"
            assert note in died.next().error
            assert [note] == errors.next().__cause__.__notes__

    def test_an_error_about_another_list_gets_no_note(self, server, namespace):
        """An error deeper in the program concerns another list and gets no note."""

        def deep(events):
            json.loads("[]", object_hook=None)["order"]

        def deeper(events):
            deep(events)

        timer = DTimer("n", server.url, ns=namespace, max_retries=0)
        errors = Catch(timer, "error")
        timer.on("event", deeper)
        with timer:
            timer.post({})
            assert not hasattr(errors.next().__cause__, "__notes__")


class TestTime:
    """A duration may be a timedelta, and a time may be an aware datetime."""

    def test_a_test_clock_takes_datetimes_and_timedeltas(self):
        """
        The clock for tests accepts an aware datetime and a timedelta, and refuses a naive
        datetime.
        """
        clock = Clock(dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
        clock.tick(dt.timedelta(minutes=1))
        clock.tick(500)
        assert dt.datetime(2030, 1, 1, 0, 1, 0, 500_000, dt.UTC).timestamp() * 1000 == clock()
        with pytest.raises(OptionError, match="start is a naive datetime"):
            Clock(dt.datetime(2030, 1, 1))  # noqa: DTZ001 - the point


class TestConnecting:
    """A connection error names the address and never the password."""

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("", "refuses this client"),
            ("/99", "refused to open: DB index is out of range"),
        ],
    )
    def test_a_refusal_names_host_and_port(self, tcp_server, path, says):
        """The error names host and port, because a program may use several servers."""
        password = "" if path else ":secret@"
        url = f"redis://{password}127.0.0.1:{tcp_server.port}{path}"
        with pytest.raises(StoreError) as caught:
            DTimer("n", url).join()
        assert f"Redis at 127.0.0.1:{tcp_server.port} {says}" in str(caught.value)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("redis://:secret@localhost:1", "localhost:1"),
            ("redis://me:secret@127.0.0.1:1/0", "127.0.0.1:1"),
            ("unix:///no/such/socket?password=secret", "unix:/no/such/socket"),
        ],
    )
    def test_an_unreachable_address_is_named(self, url, place):
        """If no server answers, the error names the address as dtimer understood it."""
        with pytest.raises(StoreError) as caught:
            DTimer("n", url, timeout=300).join()
        assert f"Redis at {place} could not be reached to" in str(caught.value)
        assert "secret" not in str(caught.value)


class TestNoListener:
    """A joined node whose program has registered no listener of ``'event'``."""

    def test_a_node_without_a_listener_is_logged_and_listed(self, server, namespace, caplog):
        """
        A second after the join, the log and the list of nodes say that the node has no listener.
        Without that hint it would seem that no event had been posted.
        """
        timer = DTimer("lonely", server.url, ns=namespace)
        with timer:
            (joined,) = timer.nodes()
            assert not timer.health().listening
            eventually(lambda: not timer.nodes()[0].listening)
            text = "the node 'lonely' has joined but has no listener of 'event'"
            eventually(lambda: text in caplog.text)
            timer.on("event", print)
            assert timer.health().listening
            eventually(lambda: timer.nodes()[0].listening)
            assert joined.joined == timer.nodes()[0].joined
            timer.remove_all_listeners()
            eventually(lambda: not timer.nodes()[0].listening)
        assert [] == timer.nodes()

    def test_a_stream_without_a_waiting_reader_listens(self, server, namespace):
        """A queue that a reader has joined counts as listening, even while no reader waits."""
        with RunAt(namespace, redis=server.url) as queue:
            assert queue.read(timeout=0) is None
            assert queue.timer.health().listening

    def test_a_late_description_does_not_register_a_node_that_left(self, server, namespace):
        """If a node describes itself after it has left, it is not registered again."""
        timer = DTimer("gone", server.url, ns=namespace)
        timer._store.describe("incarnation", "{}")
        assert [] == timer.nodes()
        timer.leave()

    def test_the_command_line_shows_the_missing_listener(
        self, server, namespace, monkeypatch, capsys
    ):
        """``dtimer nodes`` and ``dtimer top`` show that a node has no listener."""
        dtimer = runner(server, namespace, monkeypatch, capsys)
        timer = DTimer("lonely", server.url, ns=namespace)
        with timer:
            eventually(lambda: not timer.nodes()[0].listening)
            assert "no listener" == dtimer("nodes").rows[0][1]
            assert dtimer("nodes", "--json").objects[0]["listening"] is False
            assert "no listener" in dtimer("top").out
