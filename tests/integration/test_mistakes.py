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
from redis.asyncio import Redis as AsyncRedis
from servers import eventually

from dtimer import DTimer, OptionError, PayloadError, PayloadTooLarge, RunAt, StoreError
from dtimer.testing import Catch, Clock

BERLIN = "Europe/Berlin"


async def later(events):
    pass


def nothing():
    pass


class Pair:
    def __call__(self, events, more):
        pass


#: The names in the mistakes below, besides ``timer``.
NAMES = {
    "decimal": decimal, "dt": dt, "math": math, "time": time, "redis": redis,
    "AsyncRedis": AsyncRedis, "DTimer": DTimer, "RunAt": RunAt,
    "later": later, "nothing": nothing, "Pair": Pair,
}  # fmt: skip

# Each mistake, and below it a part of its error, which may take several lines. The timer has not
# joined, and its server is never contacted.
POSTING = """
timer.post("hello", 200)
    payload must be a dict, not str
timer.post([1], 200)
    payload must be a dict, not list
timer.post({"order": {"at": dt.datetime.now(dt.UTC)}})
    payload['order']['at'] is of type datetime, which JSON cannot represent;
    write value.isoformat(), or milliseconds since the epoch
timer.post({"a": [{1: 2}]})
    payload keys must be strings, not int, in payload['a'][0]; write str(key)
timer.post({"a": [0.5, math.nan]})
    payload['a'][1] is NaN or infinite, which JSON cannot represent; write None
timer.post({"a": decimal.Decimal(1)})
    payload['a'] is of type Decimal, which JSON cannot represent; write str(value)
timer.post({"a": b"x"})
    payload['a'] is of type bytes, which JSON cannot represent; write value.decode(), or
timer.post({"a": "x" * 300_000})
    the payload has 300008 bytes of JSON; at most 262144 are allowed (max_payload)
timer.post({}, "200")
    delay must be a number of milliseconds or a timedelta, not '200' (str)
timer.post({}, dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
    (datetime); a moment is given as at=
timer.post({}, at=dt.timedelta(hours=1))
    (timedelta); add it to datetime.now(timezone.utc)
timer.post({}, at=dt.datetime(2030, 1, 1))
    at is a naive datetime, datetime.datetime(2030, 1, 1, 0, 0); give it a tzinfo
timer.post({}, at=time.time())
    which looks like seconds; multiply by 1000, because numbers are milliseconds
timer.reschedule("x", at=time.time())
    which looks like seconds; multiply by 1000
timer.post({}, 5, at=1_800_000_000_000)
    give either delay or at, not both (delay=5, at=1800000000000)
timer.post({}, None)
    delay must be a number of milliseconds
timer.post({}, id=17)
    id must be a str, not 17 (int)
timer.post({}, id="17", if_exists="ignore")
    if_exists must be one of replace, keep, error, earliest, latest, not 'ignore'
timer.post({}, dt.timedelta(days=365 * 200))
    beyond 100 years; is the unit right?
timer.post_many([{"a": 1}])
    an item of post_many lacks its payload: give a pair (ev, delay) or a mapping such as
    {'ev': …, 'delay': …}, and this one has a
timer.post_many([{"ev": {}, "idd": "x"}])
    an item of post_many has no argument 'idd'; did you mean 'id'?
timer.post_many([{"ev": {}, "countdown": 5}])
    an item of post_many has no argument 'countdown'; valid names are at, delay, ev
"""

LISTENING = """
timer.on("events")
    nothing is ever emitted as 'events'; did you mean 'event'?
timer.once("events", print)
    nothing is ever emitted as 'events'; did you mean 'event'?
timer.on("tea", print)
    emitted as 'tea'; valid names are event, error, ready
timer.on(nothing)
    on needs the name of what to listen to: write @timer.on('event'), not @timer.on
timer.on("event")(later)
    must be a plain function
timer.on("event", 5)
    a listener of 'event' must be callable, not 5
timer.on("event", nothing)
    a listener of 'event' is called with one argument, a list of events,
    which nothing() does not take: too many positional arguments
timer.on("error", Pair())
    a listener of 'error' is called with one argument, an exception,
    which Pair(events, more) does not take: missing a required argument: 'more'
timer.on("ready", lambda timer: None)
    a listener of 'ready' is called with no argument, which <lambda>(timer) does not take
"""

SCHEDULES = """
timer.every(5, {}, id="x")
    interval must be at least 10 ms, not 5; numbers are milliseconds, so every second is 1_000,
    and every minute 60_000
timer.every(60_000, {}, id="x", misfire="skp")
    misfire must be one of coalesce, skip, all, not 'skp'
timer.every(60_000, {}, id="x", start=time.time())
    which looks like seconds; multiply by 1000
timer.cron("* * * *", {}, id="y")
    the cron expression '* * * *' cannot be read (Wrong number of fields); it has five
timer.cron("61 * * * *", {}, id="y")
    the cron expression '61 * * * *' cannot be read (Bad minute)
timer.cron("0 9 * * *", {}, id="y", tz="Europe/Berlinn")
    this machine has no time zone 'Europe/Berlinn'; did you mean 'Europe/Berlin'?
timer.cron("0 9 * * *", {}, id="y", tz="+01:00")
    this machine has no time zone '+01:00'; a name looks like 'Europe/Berlin' or
"""

CONTROL = """
timer.cancel(None)
    id must be a str, not None (NoneType)
timer.cancel({"pin": 1234})
    id must be a str, not dict
timer.confirm("x")
    confirm takes an event that a handler was given, not 'x'
timer.reschedule("x")
    reschedule needs a delay or at
timer.peek(5)
    id must be a str, not 5 (int)
setattr(timer, "max_events", 0)
    max_events must be a whole number from 1 to 100, not 0
"""

OPTIONS = """
DTimer(redis.Redis())
    the id of the node must be a name (a str), not Redis; pass the id first and then the client
    or its URL, as in DTimer('node-1', redis.Redis())
DTimer("redis://:secret@localhost")
    the id of the node must be a name (a str), not a URL; pass the id first and then the client
    or its URL, as in DTimer('node-1', redis.Redis())
DTimer("n", leese=5)
    did you mean 'lease'?
DTimer("n", namespace="x")
    did you mean 'ns'?
DTimer("n", prefetch=1)
    did you mean 'max_events'?
DTimer("n", retries=1)
    did you mean 'max_retries'?
DTimer("n", workers=1)
    did you mean 'concurrency'?
DTimer("n", visibility_timeout=1)
    did you mean 'lease'?
DTimer("n", url="redis://x")
    did you mean 'pub'?
DTimer("n", lease="30s")
    lease must be a number of milliseconds or a timedelta, not '30s' (str)
DTimer("n", lease=30)
    lease must be 100 to 86400000 ms, not 30; numbers are milliseconds
DTimer("n", concurrency="4")
    concurrency must be a whole number from 1 to 1000, not '4'
DTimer("n", ns="my app")
    ns must be 1 to 64 characters of A-Z a-z
DTimer("n", "localhost:6379")
    the URL scheme is not known; use redis:
DTimer("n", "http://x")
    the URL scheme 'http' is not known;
DTimer("n", "redis://localhost:port")
    cannot be understood
DTimer("n", "embedded://relative/path")
    embedded
DTimer("n", object())
    must be redis or valkey clients or URLs
DTimer("n", 42)
    must be redis or valkey clients or URLs, not int
DTimer("n", AsyncRedis())
    pub must be a synchronous client, not redis.asyncio.client's
DTimer("n", "embedded:", wait_replicas=1)
    an embedded server has no replicas; leave wait_replicas at 0
RunAt(redis.Redis())
    queue_name must be a name (a str), not Redis; pass the client as redis=,
    as in RunAt('reminders', redis=…)
RunAt("redis://:secret@x")
    must be a name (a str), not a URL
RunAt("my queue")
    queue_name must be 1 to 64 characters
RunAt(poll_interval=5)
    unknown option 'poll_interval' of RunAt; did you mean 'interval'?
RunAt(ns="x")
    unknown option 'ns' of RunAt; did you mean 'queue_name'?
RunAt(pub=1)
    unknown option 'pub' of RunAt; did you mean 'redis'?
RunAt(interval=1)
    interval must be 10 to 3600000 ms, not 1
RunAt(redis=42)
    redis must be a redis or valkey client, a URL, or
RunAt(redis={"host": "x", "db": 1})
    redis takes a host and a port, not 'db'; or pass a client
RunAt().write("k", time.time())
    which looks like seconds; multiply by 1000
RunAt().write({"key": "k", "runAt": time.time()})
    runAt is 1
RunAt().write({"run_at": 1, "key": "a"})
    a job has runAt and key, not 'run_at'
RunAt().on("event", print)
    nothing is ever emitted as 'event'; valid names are data, error, end
RunAt().on("data", nothing)
    a listener of 'data' is called with one argument, a key, which nothing() does not take
"""


def each_mistake(*tables):
    """Run the test with each mistake of the tables and its error."""
    rows = []
    for line in "".join(tables).replace("\n\n", "\n").strip().splitlines():
        if line.startswith(" "):
            mistake, error = rows[-1]
            rows[-1] = (mistake, f"{error} {line.strip()}".lstrip())
        else:
            rows.append((line, ""))
    return pytest.mark.parametrize(("mistake", "error"), rows, ids=[row[0] for row in rows])


class TestBeforeAnyIO:
    """Mistakes that are reported without a server; the address in these tests has none."""

    @each_mistake(POSTING, LISTENING, SCHEDULES, CONTROL)
    def test_a_wrong_call_says_what_to_write_instead(self, mistake, error):
        """A user reads the error first, and the documentation later."""
        timer = DTimer("n", "redis://no.such.host.invalid")
        with pytest.raises((OptionError, PayloadError, PayloadTooLarge)) as caught:
            eval(mistake, NAMES | {"timer": timer})
        assert error in str(caught.value)

    @each_mistake(OPTIONS)
    def test_a_wrong_option_is_named_as_the_user_knows_it(self, mistake, error):
        """The error names a wrong option by the name that the user knows, and shows no password."""
        with pytest.raises(OptionError) as caught:
            eval(mistake, dict(NAMES))
        assert error in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.fixture
def make(server, namespace):
    """A function: make a timer of the test's namespace. After the test it leaves."""
    timers = []

    def make(id="n", **options):
        timers.append(DTimer(id, server.url, ns=namespace, **options))
        return timers[-1]

    yield make
    for timer in timers:
        timer.leave()


class TestMoments:
    """A number that reads as the current time in seconds is refused, and no other number."""

    @pytest.mark.parametrize("at", [499_999_999, 5_000_000_001, 0, 1, -5, 1_800_000_000_000])
    def test_other_numbers_are_accepted(self, make, at):
        """A past time means now. The first example of the original library writes for time 1."""
        assert "x" == make().post({}, at=at, id="x")

    @pytest.mark.parametrize("at", [500_000_000, 5_000_000_000, 1_796_040_493.5])
    def test_a_time_in_seconds_is_refused(self, at):
        """The refused numbers are the times from 1985 to 2128 in seconds, both limits included."""
        with pytest.raises(OptionError, match="looks like seconds; multiply by 1000"):
            DTimer("n").post({}, at=at)

    def test_a_test_clock_may_start_at_any_time(self, make):
        """With the option ``now`` no time is refused."""
        timer = make(now=Clock(1_000_000_000))
        timer.post({}, at=1_000_000_500, id="x")
        timer.every(60_000, {}, id="y", start=1_000_000_000)
        assert 1_000_000_500 == timer.peek("x").due
        assert timer.reschedule("x", at=1_000_000_700)

    def test_a_zone_info_equals_its_name(self, make):
        """A ``ZoneInfo`` and its name declare the same schedule."""
        timer = make()
        assert "new" == timer.cron("0 9 * * *", {}, id="y", tz=zoneinfo.ZoneInfo(BERLIN))
        assert "same" == timer.cron("0 9 * * *", {}, id="y", tz=BERLIN)
        assert BERLIN == timer.schedule("y").tz


class TestHandling:
    """Functions that are registered as handlers."""

    @pytest.mark.parametrize(
        "function",
        [print, [].append, dict, max, lambda *all: None, lambda events, more=1: None],
        ids=["print", "append", "dict", "max", "any", "default"],
    )
    def test_a_function_that_accepts_the_argument_may_listen(self, function):
        """A listener is refused only if no call could succeed. Some builtins have no signature."""
        timer = DTimer("n")
        assert function is timer.on("event", function)
        assert [function] == timer.listeners("event")

    @pytest.mark.parametrize("handler", [lambda ev: ev["order"], lambda ev: ev.id])
    def test_a_handler_that_takes_the_list_for_an_event_gets_a_note(self, make, handler):
        """The traceback ends with a note that a handler is called with a list."""
        timer = make(max_retries=0)
        dead, errors = Catch(timer, "dead"), Catch(timer, "error")
        timer.on("event", handler)
        with timer:
            timer.post({"order": 17})
            note = "a handler is called with a list of events: for ev in events: …"
            assert note in dead.next().error
            assert [note] == errors.next().__cause__.__notes__

    def test_an_error_about_another_list_gets_no_note(self, make):
        """An error deeper in the program concerns another list and gets no note."""

        def read_an_order(events):
            json.loads("[]", object_hook=None)["order"]

        def handle(events):
            read_an_order(events)

        timer = make(max_retries=0)
        errors = Catch(timer, "error")
        timer.on("event", handle)
        with timer:
            timer.post({})
            assert not hasattr(errors.next().__cause__, "__notes__")


def test_a_test_clock_takes_datetimes_and_timedeltas():
    """The clock for tests takes the same times as a timer, and refuses a naive datetime."""
    clock = Clock(dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
    clock.tick(dt.timedelta(minutes=1))
    clock.tick(500)
    assert dt.datetime(2030, 1, 1, 0, 1, 0, 500_000, dt.UTC).timestamp() * 1000 == clock()
    with pytest.raises(OptionError, match="start is a naive datetime"):
        Clock(dt.datetime(2030, 1, 1))  # noqa: DTZ001 - the point


class TestConnecting:
    """A connection error names the address and never the password."""

    @pytest.mark.parametrize(
        ("path", "reason"),
        [("", "refuses this client"), ("/99", "refused to open: DB index is out of range")],
    )
    def test_a_refusal_names_host_and_port(self, tcp_server, path, reason):
        """The error names host and port, because a program may use several servers."""
        password = "" if path else ":secret@"
        url = f"redis://{password}127.0.0.1:{tcp_server.port}{path}"
        with pytest.raises(StoreError) as caught:
            DTimer("n", url).join()
        assert f"Redis at 127.0.0.1:{tcp_server.port} {reason}" in str(caught.value)
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

    def test_a_node_without_a_listener_is_logged_and_listed(self, make, caplog):
        """Without that hint it would seem that no event had been posted."""
        timer = make("lonely")
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

    def test_a_late_description_does_not_register_a_node_that_left(self, make):
        """If a node describes itself after it has left, it is not registered again."""
        timer = make()
        timer._store.report("incarnation", "{}")
        assert [] == timer.nodes()

    def test_the_command_line_shows_the_missing_listener(self, make, run):
        """``dtimer nodes`` and ``dtimer top`` show that a node has no listener."""
        timer = make("lonely")
        with timer:
            eventually(lambda: not timer.nodes()[0].listening)
            assert "no listener" == run("nodes").rows[0][1]
            assert run("nodes", "--json").objects[0]["listening"] is False
            assert "no listener" in run("top").out
