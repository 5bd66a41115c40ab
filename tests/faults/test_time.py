"""Faults F49 to F57: clocks are wrong, or time passes while a process does not run."""

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
from proxy import Proxy
from scripts import Script
from servers import PATIENCE, Server, eventually

from dtimer import ClockJump, State
from dtimer.engine import clock
from dtimer.testing import Catch

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="replaces the clocks of glibc"),
]

HOUR = 3_600  # s
MINUTE_MS = 60_000  # a lease or a poll interval that ends after any test


@pytest.fixture
def own_server():
    """A server of the test's own, whose clock can be set."""
    with Server(tcp=True, appendonly=True, clock=True) as server:
        yield server


@pytest.fixture
def set_clock(watch, own_server):
    """A function that sets the server's clock, and returns when commands see the new time."""

    def set_clock(seconds):
        own_server.set_clock(seconds)
        eventually(lambda: abs(watch.client.time()[0] - time.time() - seconds) < 2)

    return set_clock


def ms_until(watch, id):
    """Return the ms until an event is due, or its lease ends, by the server's clock."""
    seconds, us = watch.client.time()
    return watch.client.zscore(watch.keys.due, id) / 1000 - seconds * 1000 - us / 1000


def clock_jumps(node):
    """Return the seconds of each clock jump that a node reported. It must report no rollback."""
    assert [] == node.rollbacks
    return [round(error.seconds) for error in node.errors if isinstance(error, ClockJump)]


class TestWrongClocks:
    """The tests below need tools that make one chosen clock wrong, and leave all others right."""

    def test_a_servers_time_can_be_set_forward_and_back(self):
        """Both as a command and within a script: the library reads it in scripts."""
        with Server(clock=True) as server, server.client() as client:
            for seconds in (3600, -3600, 0.5, 0):
                server.set_clock(seconds)

                def off(seconds=seconds):
                    reply = client.eval("return redis.call('TIME')", 0)
                    times = [client.time(), tuple(map(int, reply))]
                    return [s + us / 1e6 - time.time() - seconds for s, us in times]

                eventually(lambda off=off: all(abs(wrong) < 0.1 for wrong in off()))

    def test_a_process_sees_a_wrong_wall_clock_and_a_slow_monotonic_clock(self):
        """Setting the wall clock must not move the monotonic clock, as on a real machine."""
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
class TestClockSetForward:
    """The server's clock is set an hour forward."""

    def test_events_come_due_sooner_and_each_node_reports_the_jump(self, watch, set_clock):
        """By the server's clock these events are not early."""
        nodes = [watch.node("one"), watch.node("two")]
        soon = [watch.post(1_800_000) for _ in range(3)]
        far = watch.post(2 * HOUR * 1000)
        with watch.fault(degraded=False):
            set_clock(HOUR)
            watch.wait_handled(*soon)
            eventually(lambda: all(clock_jumps(node) for node in nodes))
        assert [[HOUR], [HOUR]] == [clock_jumps(node) for node in nodes]
        assert State.SCHEDULED is nodes[0].timer.peek(far).state
        assert "cancelled" == nodes[0].timer.cancel(far).value
        # The event was cancelled, so it is not delivered.
        watch.excused.add(far)

    def test_the_lease_of_a_running_handler_is_renewed_at_once(self, watch, set_clock):
        """By the server's clock the lease has ended, so another node could start the event."""
        node, handler, ev = watch.busy_node(lease=3 * MINUTE_MS, poll_interval=300)
        with watch.fault(degraded=False, recovers=False):
            set_clock(HOUR)
            eventually(lambda: clock_jumps(node) == [HOUR])
            eventually(lambda: ms_until(watch, ev.id) > 2 * MINUTE_MS)
            assert not ev.lease_lost
            handler.go_on(10_000)
        watch.assert_recovery()
        assert 1 == watch.times(ev.id)
        assert [] == node.heard("lease_lost")

    def test_the_former_holder_of_a_lease_that_ended_cannot_confirm(self, watch, set_clock):
        """The first holder learns from the refused confirm that its lease is lost."""
        node = watch.node(lease=MINUTE_MS, auto_confirm=False)
        deliveries = Catch(node.timer, "event")
        id = watch.post()
        # Delivered twice: the first lease ends when the clock is set.
        watch.excused.add(id)
        (old,) = deliveries.next()
        set_clock(HOUR)
        (new,) = deliveries.next()
        assert (id, id, 1, 2) == (old.id, new.id, old.attempt, new.attempt)
        assert old.token < new.token
        assert old.confirm() is False
        assert old.lease_lost
        assert new.confirm() is True

    def test_one_occurrence_stands_for_those_that_were_skipped(self, watch, set_clock):
        """An hour of occurrences would flood the handlers. No nominal time comes twice."""
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
class TestClockSetBack:
    """The server's clock is set an hour back."""

    def test_pending_events_wait_an_hour_longer_and_new_ones_are_in_time(self, watch, set_clock):
        """When the clock is right again the pending event is handled, without a restart."""
        node = watch.node()
        before = watch.post(300)
        with watch.fault(degraded=False):
            set_clock(-HOUR)
            eventually(lambda: ms_until(watch, before) > 0.9 * HOUR * 1000)
            watch.assert_recovery()
            assert 0 == watch.times(before)
            set_clock(0)
        watch.wait_handled(before)
        assert [-HOUR, HOUR] == clock_jumps(node)

    def test_the_lease_of_a_running_handler_is_shortened(self, watch, set_clock):
        """If the node were killed with the old lease, its event would wait for an hour."""
        _, handler, ev = watch.busy_node(lease=3 * MINUTE_MS, poll_interval=300)
        with watch.fault(degraded=False, recovers=False):
            set_clock(-HOUR)
            eventually(lambda: ms_until(watch, ev.id) <= 3 * MINUTE_MS)
            assert not ev.lease_lost
            handler.go_on(10_000)
        watch.assert_recovery()
        assert 1 == watch.times(ev.id)

    @pytest.mark.parametrize("seconds", [-HOUR, HOUR])
    def test_a_repetition_takes_effect_once_if_the_clock_is_set_in_between(
        self, watch, own_server, proxy, seconds, set_clock
    ):
        """The reply to a post, and to a claim, is lost. The server recognises both repetitions."""
        poster = watch.caller("caller", proxy.url, timeout=1_500)
        poster.stats()
        with Proxy(own_server) as node_proxy:
            node = watch.node(
                url=node_proxy.url, sub=own_server.url, timeout=1_500, poll_interval=MINUTE_MS
            )
            # Wait, so that the next claim of the node is caused by the wake.
            contact = node.timer._node._contact
            eventually(lambda: time.monotonic() > contact.answered + 0.2)
            node_proxy.drop_reply_once(node.timer._node.incarnation.encode(), close=False)
            id = watch.post()
            assert node_proxy.wait_dropped()
            eventually(lambda: poster.peek(id).state is State.IN_FLIGHT)
            set_clock(seconds)
            # The server remembers the operation of the lost reply. Later operations of other nodes
            # must not make it forget.
            watch.wait_handled(id, watch.post())
            assert [1, 1] == [handled.attempt for handled in watch.handled]
            proxy.drop_reply_once(b"kettle", close=False)
            posted = []
            more = {"tea": "kettle"}
            posting = Thread(target=lambda: posted.append(watch.post(0, poster, more=more)))
            posting.start()
            assert proxy.wait_dropped()
            # The post has run, and its event is claimed before the clock is set right: after a step
            # backwards the event would be due only in an hour.
            eventually(lambda: len(watch.handled) == 3)
            set_clock(0)
            watch.post()
            posting.join(PATIENCE)
            watch.wait_handled(*posted)
            assert 4 == poster.stats().totals["posted"]
            node.timer.leave()

    def test_a_schedule_rests_until_its_next_nominal_time(self, watch, set_clock):
        """No nominal time of the repeated hour comes twice."""
        node = watch.node()
        seen = []
        node.timer.on(
            "event", lambda events: seen.extend(ev.nominal for ev in events if ev.schedule)
        )
        node.timer.every(200, {}, id="beat")
        eventually(lambda: len(seen) >= 2)
        set_clock(-HOUR)
        eventually(lambda: clock_jumps(node))
        so_far = len(seen)
        watch.assert_recovery()
        assert so_far == len(seen)
        set_clock(0)
        eventually(lambda: len(seen) > so_far + 2)
        steps = [b - a for a, b in itertools.pairwise(seen)]
        assert all(step > 0 and step % 200 == 0 for step in steps)
        node.timer.unschedule("beat")


@pytest.mark.fault("F51")
def test_a_wrong_wall_clock_of_a_node_has_no_effect(watch, own_server, monkeypatch):
    """Due times come from the server, and waits from the monotonic clock."""
    with WrongClock() as clock:
        clock.set(-10 * 365 * 24 * HOUR)
        with monkeypatch.context() as patch, Fleet(own_server.url, watch.ns, lease=1_000) as fleet:
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
            assert [] == fleet.reported("error")


@pytest.mark.fault("F53")
def test_a_handler_doubts_its_lease_after_the_machine_was_suspended(watch, monkeypatch, set_clock):
    """
    The monotonic clock of Linux stops meanwhile, and leases run on. ``lease_lost`` is False again
    when the server confirms the lease.
    """
    node, handler, ev = watch.busy_node(lease=3_000, poll_interval=MINUTE_MS)
    assert not ev.lease_lost
    boottime = clock.boottime
    suspended_s = 0.0
    # Patch each module that uses the clock, or two modules would disagree about the time.
    for module in ("clock", "lease", "leases", "dispatcher"):
        monkeypatch.setattr(f"dtimer.engine.{module}.boottime", lambda: boottime() + suspended_s)
    set_clock(30)
    suspended_s = 30.0
    assert ev.lease_lost
    node.timer._node.bell.ring()
    eventually(lambda: not ev.lease_lost)
    handler.go_on(10_000)
    watch.wait_handled(ev.id)
    assert [] == clock_jumps(node)
    assert 1 == watch.times(ev.id)


@pytest.mark.fault("F54")
def test_a_node_with_a_slow_clock_gives_up_its_lease_in_time(watch, own_server, monkeypatch):
    """The clocks run 5 % slow, but a node relies on only 90 % of a lease."""
    text = """
    dt = timer("slow", lease=1_000, max_run=1, max_retries=3)
    dt.on("error", lambda error: None)
    @dt.on("event")
    def handle(events):
        say("begun")
        now = last = 0.0
        while not events[0].lease_lost:
            # Read before that check: a busy machine may stop this thread after it.
            last, now = now, time.clock_gettime(11)
        say(last)
        heard()  # waits for a line from the test
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
            # The replaced library leaves CLOCK_TAI, which is 11, alone: the script reads true time.
            program = Script(own_server, watch.ns, "import time\n" + textwrap.dedent(text))
        with program:
            assert "joined" == program.hear()
            # The seconds between CLOCK_TAI and the wall clock.
            tai_offset = time.clock_gettime(11) - time.time()
            id = watch.post()
            assert "begun" == program.hear()
            claims = []
            watch.node("other", handler=claims.append)
            watch.wait_handled(id)
            (second,) = claims
            assert 2 == second.attempt
            believed = float(program.hear()) - tai_offset
            assert 0 < believed < (second.due + second.lateness_ms) / 1000
            program.tell()
            program.tell()
            assert "" == program.end()


@pytest.mark.fault("F57")
@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["alone", "two"])
def test_5000_events_due_in_one_millisecond_are_each_handled_once(watch, names):
    """A single node starts them in the order of their ids. Two nodes need not."""
    for name in names:
        watch.node(name, max_events=100, poll_interval=1_000)
    # Posting takes long on a busy machine. No event may start before the last one is posted.
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
