"""Joining in the background: ``join(wait=False)`` returns, and the node joins when it can."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from background import background, in_thread
from leftovers import nothing_left, threads
from proxy import Proxy
from servers import LATER, LONGEST_CALL, PATIENCE, eventually

from dtimer import DTimer, StoreError, UsageError
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from dtimer.timer import fork
from dtimer.timer.joiner import Joiner
from dtimer.timer.registration import Registration


class Tries:
    """Counts the tries of nodes to register."""

    def __init__(self, monkeypatch):
        self.count = 0
        add = Registration.add

        def count_and_add(registration):
            self.count += 1
            add(registration)

        monkeypatch.setattr(Registration, "add", count_and_add)

    def reach(self, count):
        """Wait until *count* tries have begun."""
        eventually(lambda: self.count >= count)


@pytest.fixture
def tries(monkeypatch):
    return Tries(monkeypatch)


@pytest.fixture
def cut_off(clean, proxy, make):
    """A timer with short calls, from which a proxy has cut off the server."""
    proxy.refuse()
    timer = make(url=proxy.url, timeout=200, lease=600_000, poll_interval=LATER)
    timer.on("event", lambda events: None)
    return timer


@pytest.fixture
def emitted():
    """A function: collect what a timer emits, as pairs of a name and the arguments."""

    def collect(timer):
        seen = []
        for name in ("ready", "connected"):
            timer.on(name, lambda name=name: seen.append((name,)))
        for name in ("error", "disconnected"):
            timer.on(name, lambda error, name=name: seen.append((name, error)))
        return seen

    return collect


@pytest.mark.fault("F109")
class TestOutages:
    """A server that is down while nodes join."""

    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.blackhole])
    def test_the_node_joins_as_soon_as_the_server_answers(self, clean, proxy, make, tries, fault):
        """A web site starts while Redis is down, and receives its events when Redis is back."""
        fault(proxy)
        timer = make(url=proxy.url, timeout=LONGEST_CALL)
        caught, ready = Catch(timer, "event"), Catch(timer, "ready")
        make("other").post({"n": 1})
        timer.join(wait=False)
        assert not timer.joined
        tries.reach(1)
        assert ready.empty()
        proxy.heal()
        assert () == ready.next()
        assert timer.joined
        assert [{"n": 1}] == caught.next()
        eventually(lambda: timer.health().ok)

    def test_health_says_why_the_node_has_not_joined(self, cut_off, proxy):
        """An operator reads there that Redis is down, and not only that the node is missing."""
        cut_off.join(wait=False)
        assert cut_off.health().joining
        eventually(lambda: cut_off.health().error)
        health = cut_off.health()
        assert (False, False, True) == (health.ok, health.joined, health.joining)
        assert "refused" in health.error
        assert "joining" in repr(health)
        proxy.heal()
        eventually(lambda: cut_off.joined)
        eventually(lambda: cut_off.health().error is None)
        assert not cut_off.health().joining
        cut_off.leave()
        assert not cut_off.health().joining

    def test_an_outage_is_emitted_once(self, cut_off, proxy, tries, emitted):
        """An outage of an hour has thousands of tries, and must not fill the error tracker."""
        seen = emitted(cut_off)
        cut_off.join(wait=False)
        tries.reach(4)
        proxy.heal()
        eventually(lambda: ("ready",) in seen)
        assert ["disconnected", "error", "connected", "ready"] == [name for name, *_ in seen]
        assert "the node keeps trying" in str(seen[1][1])
        assert isinstance(seen[1][1], StoreError)

    def test_a_node_is_not_ready_before_its_first_claim(self, make, monkeypatch, emitted):
        """Redis may go away after the node has registered. One outage is then reported once."""
        timer = make(timeout=LONGEST_CALL)
        seen, failed = emitted(timer), []

        def start(*arguments, **options):
            failed.append(1)
            raise ConnectionError("gone")

        with monkeypatch.context() as patched:
            patched.setattr(timer._store.claims, "start", start)
            timer.join(wait=False)
            eventually(lambda: len(failed) >= 3)
            assert timer.health().joining
            assert "gone" in timer.health().error
            with pytest.raises(StoreError, match="went away while joining: gone"):
                timer.join()
        eventually(lambda: ("ready",) in seen)
        assert timer.joined
        assert ["disconnected", "error", "connected", "ready"] == [name for name, *_ in seen]

    def test_a_server_that_refuses_the_user_is_tried_again(self, make, client, server, emitted):
        """The operator grants the permission, and the node joins without a restart."""
        user = ["ACL", "SETUSER", "unregistered", "on", "nopass", "~*", "&*", "+@all"]
        client.execute_command(*user, "-hset")
        with server.client(username="unregistered", password="x") as limited:
            timer = make(url=limited)
            seen = emitted(timer)
            timer.join(wait=False)
            eventually(lambda: len(seen) >= 2)
            assert "+hset" in timer.health().error
            client.execute_command(*user, "+hset")
            # Does not wait for the next try of the joiner, which pauses for 5 s.
            timer.join()
            assert timer.joined
            timer.leave()
        assert ["disconnected", "error"] == [name for name, *_ in seen][:2]
        client.execute_command("ACL", "DELUSER", "unregistered")

    def test_settings_of_the_server_are_checked_after_an_outage(
        self, clean, proxy, make, monkeypatch, tries
    ):
        """The check at the first try found no server, so its warnings would never be seen."""
        checked = []
        monkeypatch.setattr(
            "dtimer.timer.preflight.check_server",
            lambda store, log: checked.append(about := store.server.info()) or bool(about),
        )
        proxy.refuse()
        timer = make(url=proxy.url, timeout=200, lease=600_000)
        timer.join(wait=False)
        tries.reach(2)
        proxy.heal()
        eventually(lambda: timer.joined)
        assert [False, True] == [bool(about) for about in checked]


class TestCalls:
    """Calls while a node joins in the background."""

    def test_a_process_that_can_run_no_node_is_refused_at_once(self, make, monkeypatch):
        """No wait makes such a process fit, so the mistake must not hide in the background."""
        timer = make()
        monkeypatch.setattr(fork, "why_no_node", lambda: "uWSGI runs no threads here")
        with pytest.raises(UsageError, match="uWSGI runs no threads"):
            timer.join(wait=False)
        assert [] == threads()
        assert not timer.health().joining

    def test_a_second_join_without_waiting_changes_nothing(self, cut_off, proxy, tries):
        """Each worker of a server may call it in several hooks: one node joins."""
        for _ in range(3):
            cut_off.join(wait=False)
        tries.reach(1)
        assert 1 == sum("joiner" in name for name in threads())
        proxy.heal()
        eventually(lambda: cut_off.joined)
        incarnation = cut_off._node.incarnation
        cut_off.join(wait=False)
        assert [incarnation] == [node.incarnation for node in cut_off.nodes()]

    def test_join_raises_while_the_node_joins_in_vain(self, cut_off, proxy, tries):
        """A caller that waits learns that Redis is down, and the node still joins later."""
        cut_off.join(wait=False)
        with pytest.raises(StoreError, match="refused"):
            cut_off.join()
        assert cut_off.health().joining
        before = tries.count
        proxy.heal()
        eventually(lambda: cut_off.joined)
        assert tries.count >= before

    def test_join_waits_for_the_node_that_joins_in_the_background(self, make, tries):
        """From the return of join() on the program may rely on the node, and there is one."""
        timer = make()
        timer.join(wait=False)
        timer.join()
        assert timer.joined
        assert 1 == tries.count
        assert 1 == len(timer.nodes())

    def test_a_leave_ends_a_join_that_waits_for_the_background(self, clean, proxy, make, tries):
        """Neither call may wait for the other: a site that stops in an outage must stop."""
        proxy.blackhole()
        timer = make(url=proxy.url, timeout=LONGEST_CALL)
        timer.join(wait=False)
        tries.reach(1)
        joining = in_thread(timer.join)
        with background(timer.leave):
            eventually(lambda: timer._node.leaving)
            proxy.refuse()
            proxy.heal()
        joining.exception(PATIENCE)
        assert not timer.joined

    def test_a_handler_may_join_while_the_node_joins(self, make, monkeypatch):
        """The first events may start before the node counts as joined."""
        timer, joined = make(), []

        def handle(events):
            timer.join()
            joined.append(timer.joined)

        timer.on("event", handle)
        timer.post({})
        timer.join(wait=False)
        eventually(lambda: joined)
        assert [True] == joined


class TestLeave:
    """The end of a node that has not joined yet."""

    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.blackhole, Proxy.heal])
    def test_leave_ends_the_tries_and_leaves_nothing_behind(
        self, clean, proxy, make, client, fault
    ):
        """Also right after the join, before its thread has done anything."""
        fault(proxy)
        timer = make(url=proxy.url, timeout=300, lease=600_000)
        with nothing_left(client):
            for _ in range(20 if fault is Proxy.heal else 2):
                timer.join(wait=False)
                timer.leave()
                assert not timer.joined
                assert not timer.health().joining
                eventually(lambda: not threads())
            # A proxy that passes nothing on does not notice that its client has closed.
            proxy.cut()
        assert [] == make("other").nodes()
        proxy.heal()
        with timer:
            assert timer.joined

    def test_leave_ends_a_pause_between_two_tries(self, cut_off, monkeypatch):
        """A process must not wait for a pause before it exits."""
        resting = threading.Event()
        rest = Joiner._rest

        def rest_for_long(joiner, seconds):
            resting.set()
            rest(joiner, LATER)

        monkeypatch.setattr(Joiner, "_rest", rest_for_long)
        cut_off.join(wait=False)
        assert resting.wait(PATIENCE)
        with background(cut_off.leave):
            pass
        eventually(lambda: not threads())

    def test_a_listener_may_leave(self, cut_off):
        """A program may decide in its listener of 'error' to do without the node."""
        left = threading.Event()

        def give_up(error):
            cut_off.leave()
            left.set()

        cut_off.on("error", give_up)
        cut_off.join(wait=False)
        assert left.wait(PATIENCE)
        eventually(lambda: not threads())
        assert not cut_off.health().joining

    def test_a_dropped_timer_ends_its_tries(self, clean, proxy, namespace):
        """Its thread must not try for ever: the program cannot reach the node any more."""
        proxy.refuse()
        timer = DTimer("dropped", proxy.url, ns=namespace, timeout=200, lease=600_000)
        timer.join(wait=False)
        reference = weakref.ref(timer)
        with pytest.warns(ResourceWarning, match="'dropped' was dropped"):
            del timer
            gc.collect()
        assert reference() is None
        eventually(lambda: not threads())


class TestThreads:
    """A process that can start no more threads for a while."""

    @pytest.mark.parametrize("name", ["callbacks", "handler-2", "listener", "claimer"])
    def test_the_node_joins_when_threads_can_be_started_again(
        self, make, monkeypatch, emitted, name
    ):
        """The joiner needs the missing thread, so it must not end: nothing would start it again."""
        timer = make(concurrency=3)
        seen = emitted(timer)
        start, refused = threading.Thread.start, []

        def start_another(thread):
            if name in thread.name:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start_another)
            timer.join(wait=False)
            eventually(lambda: len(refused) >= 3)
            assert "can't start new thread" in timer.health().error
        eventually(lambda: timer.joined)
        assert 3 == sum("handler" in name for name in threads())
        eventually(lambda: ("ready",) in seen)
        assert 1 == [name for name, *_ in seen].count("error")

    def test_join_fails_if_the_joiner_cannot_be_started(self, make, monkeypatch):
        """Nothing would run in the background, so the caller must learn it."""
        timer = make()

        def start(thread):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                timer.join(wait=False)
        assert [] == threads()
        with timer:
            assert timer.joined


def test_run_raises_if_the_server_is_down_and_says_what_to_do(cut_off):
    """A worker script is restarted by its supervisor, so run() must not hide the outage."""
    with pytest.raises(StoreError, match="refused") as raised:
        cut_off.run()
    assert "supervisor" in raised.value.__notes__[0]
    assert "join(wait=False)" in raised.value.__notes__[0]
    assert [] == threads()
    assert not cut_off.health().joining


def test_a_registration_of_a_node_that_left_while_joining_is_removed(
    make, client, namespace, monkeypatch
):
    """Another node would otherwise count it among those that could start an event."""
    timer = make()
    add = Registration.add

    def add_and_leave(registration):
        add(registration)
        timer._node.stop(None)

    monkeypatch.setattr(Registration, "add", add_and_leave)
    timer.join(wait=False)
    eventually(lambda: timer._node.ended)
    assert [] == client.hvals(Keys.of(namespace).nodes)
