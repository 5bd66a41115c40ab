"""The catalogue, F49 to F57: clocks are wrong, and time passes unseen."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import time
from threading import Thread

import pytest
from clocks import WrongClock
from fleet import Fleet
from gated import Gated
from proxy import Proxy
from scripts import Script
from servers import PATIENCE, Server, eventually

from dtimer import ClockJump, DTimer, State, StateRollback
from dtimer.engine import pace
from dtimer.testing import Catch

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="the clocks of glibc are stood in for"),
]

HOUR = 3_600  # s
MINUTE_MS = 60_000  # a lease, or an interval of heartbeats, that no test lives to see


@pytest.fixture
def own():
    """As for the other rows, and its clock can be set."""
    with Server(tcp=True, appendonly=True, clock=True) as server:
        yield server


@pytest.fixture
def until(watch):
    """Tells how many ms from now, by the server's clock, an event is due or its lease ends."""

    def left(id):
        seconds, us = watch.client.time()
        return watch.client.zscore(watch.keys.due, id) / 1000 - seconds * 1000 - us / 1000

    return left


@pytest.fixture
def set_clock(watch, own):
    """Sets the server's clock, and returns when every further command sees the new time."""

    def set_off(seconds):
        own.set_clock(seconds)
        eventually(lambda: abs(watch.client.time()[0] - time.time() - seconds) < 2)

    return set_off


def jumps(node):
    """The seconds of the jumps that a node has told of, none of which it took for a rollback."""
    assert not [error for error in node.errors if isinstance(error, StateRollback)]
    return [round(error.seconds) for error in node.errors if isinstance(error, ClockJump)]


class TestWrongClocks:
    """What the rows below rest on: a clock that is set is wrong, and it alone."""

    def test_of_a_server(self):
        """The server's TIME steps ahead and back, as a command and within a script."""
        with Server(clock=True) as server, server.client() as client:
            for seconds in (3600, -3600, 0.5, 0):
                server.set_clock(seconds)

                def off(seconds=seconds):
                    told = client.eval("return redis.call('TIME')", 0)
                    times = [client.time(), tuple(map(int, told))]
                    return [s + us / 1e6 - time.time() - seconds for s, us in times]

                eventually(lambda off=off: all(abs(wrong) < 0.1 for wrong in off()))

    def test_of_a_process(self):
        """A process sees its wall clock off, its monotonic clock only where it runs slow."""
        say = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=1)"
        with (
            WrongClock() as clock,
            subprocess.Popen(
                [sys.executable, "-S", "-c", say],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | clock.env,
                text=True,
            ) as process,
        ):

            def off():
                process.stdin.write("\n")
                process.stdin.flush()
                wall, monotonic = map(float, process.stdout.readline().split())
                return wall - time.time(), monotonic - time.monotonic()

            clock.set(-3600)
            assert pytest.approx((-3600, 0), abs=0.1) == off()
            clock.set(slow=0.9)
            eventually(lambda: max(off()) < -0.2, patience=PATIENCE)
            process.stdin.close()


@pytest.mark.fault("F49")
class TestAhead:
    """The server's clock is an hour ahead of what it was."""

    def test_events_come_sooner(self, watch, set_clock):
        """
        What is due within the hour comes now, by the server's clock not early; each node says
        once that the clock was set, and serves on.
        """
        nodes = [watch.node("one"), watch.node("two")]
        soon = [watch.post(1_800_000) for _ in range(3)]
        far = watch.post(2 * HOUR * 1000)
        with watch.fault(degraded=None):
            set_clock(HOUR)
            watch.wait_handled(*soon)
            eventually(lambda: all(jumps(node) for node in nodes))
        assert [[HOUR], [HOUR]] == [jumps(node) for node in nodes]
        assert State.SCHEDULED is nodes[0].timer.peek(far).state
        assert "cancelled" == nodes[0].timer.cancel(far).value
        watch.excused.add(far)

    def test_what_runs_is_kept(self, watch, until, set_clock):
        """
        The lease of a running handler has ended by then. It is renewed at once, long before
        its next heartbeat, and nobody else starts the event.
        """
        node = watch.node(lease=3 * MINUTE_MS, poll_interval=300)
        handler = Gated(node.timer)
        id = watch.post()
        (ev,) = handler.begun()
        with watch.fault(degraded=None, recovers=False):
            set_clock(HOUR)
            eventually(lambda: jumps(node) == [HOUR])
            eventually(lambda: until(id) > 2 * MINUTE_MS)
            assert not ev.lease_lost
            handler.go_on(10_000)
        watch.recovered()
        assert 1 == watch.times(id)
        assert [] == node.heard("lease_lost")

    def test_a_lease_that_ended(self, watch, set_clock):
        """
        What nobody renews is handed out again at once, and who held it before can neither
        confirm it nor believe that it could.
        """
        first = watch.node("first", lease=MINUTE_MS, auto_confirm=False)
        held = Catch(first.timer, "event")
        id = watch.post()
        watch.excused.add(id)
        old = held.next()[0]
        set_clock(HOUR)
        new = held.next()[0]
        assert (id, id, 1, 2) == (old.id, new.id, old.attempt, new.attempt)
        assert old.token < new.token
        assert old.confirm() is False
        assert old.lease_lost
        assert new.confirm() is True

    def test_a_schedule(self, watch, set_clock):
        """One occurrence stands for all that were jumped over, and no nominal time comes twice."""
        node = watch.node()
        seen = []
        node.timer.on("event", seen.extend)
        node.timer.every(200, {}, id="beat")
        node.timer.cron("* * * * * *", {}, id="cron")
        eventually(lambda: {"beat", "cron"} <= {ev.schedule for ev in seen})
        set_clock(HOUR)
        for name, missed in {"beat": 5 * HOUR, "cron": HOUR}.items():
            eventually(lambda: sum(ev.schedule == name and ev.missed > 9 for ev in seen))  # noqa: B023
            jumped = next(i for i, ev in enumerate(seen) if ev.schedule == name and ev.missed > 9)
            eventually(lambda: any(ev.schedule == name for ev in seen[jumped + 1 :]))  # noqa: B023
            assert pytest.approx(missed, rel=0.01) == seen[jumped].missed
            nominals = [ev.nominal for ev in seen if ev.schedule == name]
            assert sorted(set(nominals)) == nominals
            node.timer.unschedule(name)


@pytest.mark.fault("F50")
class TestBack:
    """The server's clock is an hour behind what it was."""

    def test_nothing_early_and_nothing_twice(self, watch, until, set_clock):
        """
        What was due later is due an hour later still; what is posted then comes in time. Once
        the clock has been mended all is well, and nobody had to be started anew.
        """
        node = watch.node()
        before = watch.post(300)
        with watch.fault(degraded=None):
            set_clock(-HOUR)
            eventually(lambda: until(before) > 0.9 * HOUR * 1000)
            watch.recovered()
            assert 0 == watch.times(before)
            set_clock(0)
        watch.wait_handled(before)
        assert [-HOUR, HOUR] == jumps(node)

    def test_what_runs_is_kept(self, watch, until, set_clock):
        """
        Of what is in hand the lease is renewed, so that it does not last for an hour should the
        node be killed; it is confirmed as ever.
        """
        node = watch.node(lease=3 * MINUTE_MS, poll_interval=300)
        handler = Gated(node.timer)
        id = watch.post()
        (ev,) = handler.begun()
        with watch.fault(degraded=None, recovers=False):
            set_clock(-HOUR)
            eventually(lambda: until(id) <= 3 * MINUTE_MS)
            assert not ev.lease_lost
            handler.go_on(10_000)
        watch.recovered()
        assert 1 == watch.times(id)

    @pytest.mark.parametrize("seconds", [-HOUR, HOUR])
    def test_a_reply_lost_at_that_moment(self, watch, own, proxy, seconds, set_clock):
        """A post and a claim that were not heard of, and are tried again after it, act once."""
        poster = DTimer("caller", proxy.url, ns=watch.ns, timeout=1_500)
        poster.stats()
        with Proxy(own) as way:
            node = watch.node(url=way.url, sub=own.url, timeout=1_500, poll_interval=MINUTE_MS)
            # Its next turn is that of the wake.
            claimer = node.timer._life._claimer
            eventually(lambda: time.monotonic() > claimer.answered + 0.2)
            way.drop_reply_once(node.timer._life.incarnation.encode(), close=False)
            id = watch.post()
            assert way.wait_dropped()
            eventually(lambda: poster.peek(id).state is State.IN_FLIGHT)
            set_clock(seconds)
            # What others do meanwhile must not have it forgotten.
            watch.wait_handled(id, watch.post())
            assert [1, 1] == [handled.attempt for handled in watch.handled]
            proxy.drop_reply_once(b"kettle", close=False)
            told = []
            more = {"tea": "kettle"}
            posting = Thread(target=lambda: told.append(watch.post(0, poster, more=more)))
            posting.start()
            assert proxy.wait_dropped()
            # Were it not in hand by then, the clock put back would make it due in an hour.
            eventually(lambda: len(watch.handled) == 3)
            set_clock(0)
            watch.post()
            posting.join(PATIENCE)
            watch.wait_handled(*told)
            assert 4 == poster.stats().totals["posted"]
            node.timer.leave()
        poster.leave()

    def test_a_schedule(self, watch, set_clock):
        """A schedule rests until its next nominal time has come again; none comes twice."""
        node = watch.node()
        seen = []
        node.timer.on(
            "event", lambda events: seen.extend(ev.nominal for ev in events if ev.schedule)
        )
        node.timer.every(200, {}, id="beat")
        eventually(lambda: len(seen) >= 2)
        set_clock(-HOUR)
        eventually(lambda: jumps(node))
        so_far = len(seen)
        watch.recovered()
        assert so_far == len(seen)
        set_clock(0)
        eventually(lambda: len(seen) > so_far + 2)
        steps = [b - a for a, b in itertools.pairwise(seen)]
        assert all(step > 0 and step % 200 == 0 for step in steps)
        node.timer.unschedule("beat")


@pytest.mark.fault("F51")
def test_the_wall_clock_of_a_node(watch, own, monkeypatch):
    """
    A node whose own wall clock is years off, and is set while it runs, posts and handles in
    time: it neither loses a lease nor says anything.
    """
    with WrongClock() as clock:
        clock.set(-10 * 365 * 24 * HOUR)
        with monkeypatch.context() as patch, Fleet(own.url, watch.ns, lease=1_000) as fleet:
            for name, value in clock.env.items():
                patch.setenv(name, value)
            fleet.start("wrong")
            for years in (-10, 10, 0):
                clock.set(years * 365 * 24 * HOUR)
                fleet.tell("wrong", "post", items=[[{"hold": 1}, 200]])
                (id,) = fleet.next("posted").ids
                start = fleet.next("start")
                assert (id, 1) == (start.id, start.attempt)
                assert 0 <= start.began - start.due < 1_000 * PATIENCE
                until_renewed = watch.client.zscore(watch.keys.due, id)
                eventually(lambda: watch.client.zscore(watch.keys.due, id) > until_renewed)  # noqa: B023
                fleet.go_on("wrong")
                assert not fleet.next("end").lost
            assert [] == fleet.taken("error")


@pytest.mark.fault("F53")
def test_a_machine_that_was_suspended(watch, own, monkeypatch, set_clock):
    """
    The monotonic clock of Linux stands still while a machine is suspended, and leases go on. On
    waking a handler sees at once that its lease is in doubt, before anybody was asked; when the
    server says that the lease is still its own it goes on.
    """
    node = watch.node(lease=3_000, poll_interval=MINUTE_MS)
    handler = Gated(node.timer)
    id = watch.post()
    (ev,) = handler.begun()
    assert not ev.lease_lost
    awake = pace.lasting
    slept = [0.0]
    # Where they are used: nobody may have looked at one and not at the other.
    for module in ("pace", "hold", "dispatcher"):
        monkeypatch.setattr(f"dtimer.engine.{module}.lasting", lambda: awake() + slept[0])
    set_clock(30)
    slept[0] = 30.0
    assert ev.lease_lost
    node.timer._life.bell.ring()
    eventually(lambda: not ev.lease_lost)
    handler.go_on(10_000)
    watch.wait_handled(id)
    assert [] == jumps(node)
    assert 1 == watch.times(id)


@pytest.mark.fault("F54")
def test_a_clock_that_runs_slow(watch, own, monkeypatch):
    """
    A node whose clocks lose a twentieth does not believe in its lease any more by the time at
    which another may have the event: a tenth of the lease is kept in reserve.
    """
    text = """
    dt = timer("slow", lease=1_000, max_run=1, max_retries=3)
    dt.on("error", lambda error: None)
    @dt.on("event")
    def handle(events):
        say("begun")
        last = 0.0
        while not events[0].lease_lost:
            last = time.clock_gettime(11)
        say(last)
        heard()
    dt.join()
    say("joined")
    heard()
    dt.leave()
    """
    with WrongClock() as clock:
        clock.set(slow=0.05)
        with monkeypatch.context() as patch:
            for name, value in clock.env.items():
                patch.setenv(name, value)
            # CLOCK_TAI, which is 11, is told as it is.
            slow = Script(own, watch.ns, "import time\n" + textwrap.dedent(text))
        with slow:
            assert "joined" == slow.hear()
            apart = time.clock_gettime(11) - time.time()
            id = watch.post()
            assert "begun" == slow.hear()
            claims = []
            watch.node("other", handler=claims.append)
            watch.wait_handled(id)
            (second,) = claims
            assert 2 == second.attempt
            believed = float(slow.hear()) - apart
            assert 0 < believed < (second.due + second.lateness_ms) / 1000
            slow.tell()
            slow.tell()
            assert "" == slow.end()


@pytest.mark.fault("F57")
@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["alone", "two"])
def test_thousands_in_one_millisecond(watch, names):
    """
    Five thousand events that are due in the same millisecond are all handed out, each once. A
    node that is alone starts them in the order of their ids. Of two, one may start what the other
    has released after what it had itself.
    """
    for name in names:
        watch.node(name, max_events=100, poll_interval=1_000)
    # A busy machine may take long to post them. None may start before the last is there.
    timer = watch.nodes[0].timer
    timer.pause()
    moment = time.time() * 1000
    ids = timer.post_many([{"ev": {"n": n}, "at": moment} for n in range(5_000)])
    timer.resume()
    eventually(lambda: len(watch.handled) >= 5_000, 2 * PATIENCE)
    handled = [one.id for one in watch.handled]
    assert sorted(ids) == sorted(handled)
    assert set(names) == {one.node for one in watch.handled}
    if len(names) == 1:
        assert sorted(ids) == handled
