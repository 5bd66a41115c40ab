"""Joining and leaving: what a joined node provides, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
import warnings
import weakref

import pytest
from background import background, in_thread, together
from gated import Gated
from leftovers import descriptors, nothing_left, threads
from proxy import Proxy
from servers import LATER, LONGEST_CALL, PATIENCE, PROMPT, eventually

from dtimer import DTimer, OptionError, State, StoreError, UsageError
from dtimer.faultpoints import arm
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from dtimer.timer.node import Node


def assert_joins(timer):
    """Assert that nothing is left of a failed join, and that the timer can join now."""
    assert not timer.joined
    assert [] == threads()
    with timer:
        assert timer.joined


def join_and_begin(timer, then=lambda events: None):
    """Join, and return a gated handler that has begun to handle an event, and the event."""
    handler = Gated(timer, then)
    timer.join()
    timer.post({})
    (ev,) = handler.begun()
    return handler, ev


@contextlib.contextmanager
def leaving(timer):
    """Run the block while another thread is in leave(), which must return after the block."""
    with background(timer.leave) as future:
        eventually(lambda: timer._node.leaving)
        yield future


def state_and_attempt(timer, id):
    record = timer.peek(id)
    return record.state, record.attempt


@contextlib.contextmanager
def hurried(timer):
    """
    Give the calls of *timer* a deadline of 300 ms inside this block.

    A timer made with that deadline would have it too while the server answers, where a busy machine
    is late.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timer._store._scripts, "timeout", 0.3)
        for name in ("socket_timeout", "socket_connect_timeout"):
            patched.setitem(timer._store.server.source._settings, name, 0.1)
        yield


@pytest.fixture
def make_unreferenced(make, server, namespace):
    """A function: make a timer that the fixtures do not refer to, so that it can be collected."""
    return lambda: DTimer("dropped", server.url, ns=namespace)


class TestJoin:
    """The state after join() has returned."""

    def test_join_registers_subscribes_and_claims(self, make, client, namespace):
        """A program may rely on the node from the return of join() on."""
        timer = make("tea")
        handler = Gated(timer)
        id = timer.post({})
        assert not timer.joined
        timer.join()
        assert timer.joined
        assert State.IN_FLIGHT is timer.peek(id).state
        (node,) = timer.nodes()
        assert "tea" == node.id
        channels = client.pubsub_channels(f"dtimer:{{{namespace}}}:*")
        assert {b"wake", b"echo"} == {channel.split(b":")[-2] for channel in channels}
        eventually(lambda: timer.health().ok)
        handler.go_on()

    def test_joining_twice_changes_nothing(self, make):
        """A second join emits nothing and keeps the incarnation, and one leave ends the node."""
        timer = make()
        catches = [Catch(timer, name) for name in ("connected", "ready")]
        timer.join()
        before = timer.nodes()[0].incarnation
        timer.join()
        assert [before] == [node.incarnation for node in timer.nodes()]
        timer.leave()
        assert not timer.joined
        for caught in catches:
            assert () == caught.next()
            assert caught.empty()

    def test_a_node_may_join_again_as_a_new_incarnation(self, make):
        """A node must not settle events that it held before it left."""
        timer = make()
        caught = Catch(timer, "event")
        incarnations = set()
        for n in range(3):
            with timer:
                incarnations.add(timer.nodes()[0].incarnation)
                timer.post({"n": n})
                assert [{"n": n}] == caught.next()
        assert 3 == len(incarnations)

    @pytest.mark.fault("F70")
    def test_two_nodes_may_share_an_id(self, make):
        """Two nodes with the same id are registered separately, and each holds its own leases."""
        one, two = make("same"), make("same")
        first, second = Gated(one), Gated(two)
        with one, two:
            assert ["same", "same"] == [node.id for node in one.nodes()]
            eventually(lambda: all(node.waiting for node in one.nodes()))
            one.post_many([({}, 0)] * 2)
            (a,), (b,) = first.begun(), second.begun()
            assert a.id != b.id
            first.go_on()
            second.go_on()
            eventually(lambda: one.stats().totals.get("confirmed") == 2)

    def test_max_events_set_during_join_applies(self, make, monkeypatch):
        """A value of max_events that is set while the node joins applies from then on."""
        timer = make()
        changed = threading.Event()

        def connected():
            timer.max_events = 4
            changed.set()

        timer.on("connected", connected)
        start = Node.start

        def start_and_wait(node, *, leaving):
            start(node, leaving=leaving)
            assert changed.wait(PATIENCE)

        monkeypatch.setattr(Node, "start", start_and_wait)
        with timer:
            timer.post_many([({}, 0)] * 4)
            assert 4 == len(Catch(timer, "event").next())

    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.blackhole])
    def test_join_fails_within_its_deadline_if_the_server_does_not_answer(self, make, proxy, fault):
        """The server may refuse connections, or accept them and not answer."""
        timer = make(url=proxy.url, timeout=LONGEST_CALL)
        fault(proxy)
        began = time.monotonic()
        with hurried(timer), pytest.raises(StoreError, match="within 300 ms"):
            timer.join()
        assert time.monotonic() - began < LONGEST_CALL / 2_000
        assert [] == threads()
        proxy.heal()
        assert_joins(timer)

    def test_join_fails_if_redis_goes_away_after_registering(
        self, make, monkeypatch, client, namespace
    ):
        """If the first claim fails, join() raises its error although the node is registered."""

        def start(*arguments, **options):
            raise ConnectionError("gone")

        timer = make(timeout=3_000)
        monkeypatch.setattr(timer._store.claims, "start", start)
        with pytest.raises(StoreError, match="went away while joining: gone"):
            timer.join()
        monkeypatch.undo()
        assert_joins(timer)
        # The failed node could not remove its registration, which would expire after a minute.
        client.delete(Keys.of(namespace).nodes, Keys.of(namespace).alive)

    def test_health_counts_what_was_not_emitted(self, make, monkeypatch):
        """Items that are dropped because listeners are too slow are counted in health()."""
        monkeypatch.setattr("dtimer.engine.callbacks._MOST", 0)
        with make() as timer:
            assert timer.health().dropped > 0, "'ready' was announced"

    @pytest.mark.parametrize("name", ["callbacks", "handler-2", "listener", "claimer"])
    def test_join_fails_cleanly_if_no_thread_can_be_started(self, make, monkeypatch, name):
        """The threads that were started before the error must end."""
        timer = make(concurrency=3)
        start = threading.Thread.start

        def start_another(thread):
            if name in thread.name:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_another)
        with pytest.raises(RuntimeError, match="can't start"):
            timer.join()
        monkeypatch.undo()
        assert [] == timer.nodes()
        assert_joins(timer)

    def test_an_interrupted_join_leaves_nothing_behind(self, make, monkeypatch):
        """A KeyboardInterrupt during join() leaves no thread and no registration behind."""

        class InterruptedEvent:
            def wait(self, timeout=None):
                raise KeyboardInterrupt

            def is_set(self):
                return True

            def set(self):
                pass

            def __set__(self, owner, value):
                pass

        timer = make()
        monkeypatch.setattr(
            "dtimer.engine.connectivity.Connectivity.tried", InterruptedEvent(), raising=False
        )
        with pytest.raises(KeyboardInterrupt):
            timer.join()
        monkeypatch.undo()
        assert [] == timer.nodes()
        assert_joins(timer)

    def test_a_user_who_may_not_subscribe_may_join(self, make, client, server):
        """Without the permission the poll delivers events, and 'error' says why."""
        client.execute_command(
            *["ACL", "SETUSER", "deafened", "on", "nopass", "~*", "&*", "+@all", "-subscribe"]
        )
        with server.client(username="deafened", password="x") as user:
            timer = make(url=user, poll_interval=50)
            caught, errors = Catch(timer, "event"), Catch(timer, "error")
            with timer:
                error = str(errors.next())
                assert "wakes do not arrive" in error
                assert "permission" in error
                assert timer.health().deaf
                timer.post({"n": 1})
                assert [{"n": 1}] == caught.next()
            assert errors.empty()
        client.execute_command("ACL", "DELUSER", "deafened")


class TestLeave:
    """The state after leave() has returned, and from where it may be called."""

    def test_leave_leaves_nothing_behind(self, make, client, namespace):
        """
        After leave() no thread, descriptor, connection or registration remains. Once all events are
        confirmed only three keys remain, however many events there were.
        """
        timer = make(max_events=50)
        with nothing_left(client), timer:
            timer.on("event", lambda events: None)
            timer.post_many([({}, 0)] * 200)
            eventually(lambda: timer.stats().totals.get("confirmed") == 200)
        assert [] == threads()
        keys = client.keys(f"dtimer:{{{namespace}}}:*")
        assert {b"sys", b"memo_a", b"memo_b"} >= {key.rpartition(b":")[2] for key in keys}

    def test_leave_is_allowed_at_any_time(self, make):
        """leave() may be called before join, and repeatedly."""
        timer = make()
        timer.leave()
        timer.leave(0)
        timer.join()
        timer.leave()
        timer.leave()
        with pytest.raises(OptionError):
            timer.leave("soon")

    def test_leave_closes_the_connection_of_a_later_post(self, make, client):
        """A timer that has left may post. Another leave() closes the connection of that post."""
        timer = make()
        with timer:
            pass
        with nothing_left(client):
            timer.post({}, LATER)
            timer.leave()

    def test_leave_closes_the_connection_of_a_confirm_during_it(self, make, client, monkeypatch):
        """A confirm that ends in the last steps of leave() leaves no idle connection behind."""
        timer = make(auto_confirm=False)
        with nothing_left(client):
            handler, ev = join_and_begin(timer)
            handler.go_on()
            eventually(lambda: timer.health().handlers == 0)
            close, confirmed = timer._node.bell.close, []

            def confirm_and_close():
                confirmed.append(ev.confirm())
                close()

            monkeypatch.setattr(timer._node.bell, "close", confirm_and_close)
            timer.leave()
            assert [True] == confirmed

    def test_leave_waits_for_running_handlers(self, make):
        """leave() waits for the running handler, and its event is confirmed."""
        timer = make()
        handler, ev = join_and_begin(timer)
        with leaving(timer):
            assert timer.joined
            handler.go_on()
        assert not timer.joined
        assert timer.peek(ev.id) is None

    @pytest.mark.fault("F60")
    def test_a_leaving_node_claims_nothing(self, make):
        """A leaving node claims nothing: another node gets what becomes due."""
        timer, other_node = make("leaving"), make("other")
        caught = Catch(other_node, "event")
        handler, _ = join_and_begin(timer)
        with leaving(timer):
            eventually(lambda: not any(node.waiting for node in timer.nodes()))
            with other_node:
                timer.post({"n": 2})
                handler.go_on(2)
                assert [{"n": 2}] == caught.next()
        assert 0 == handler.waiting

    @pytest.mark.fault("F60")
    def test_leave_with_a_timeout_retries_a_hanging_handlers_event(self, make):
        """
        leave(timeout) gives up events whose handlers still run, with the attempt charged. The
        handler sees lease_lost, its confirm has no effect, and the next node gets the event at
        once.
        """
        timer, other_node = make("hanging"), make("other", auto_confirm=False)
        caught = Catch(other_node, "event")
        handler, ev = join_and_begin(timer)
        assert not ev.lease_lost
        began = time.monotonic()
        timer.leave(100)
        assert 0.1 <= time.monotonic() - began < PROMPT
        assert not timer.joined
        assert ev.lease_lost
        assert (State.SCHEDULED, 1) == state_and_attempt(timer, ev.id)
        with other_node:
            (retry,) = caught.next()
            assert 2 == retry.attempt
            assert ev.confirm() is False
            assert retry.confirm() is True
        handler.go_on()
        handler.ended()
        eventually(lambda: not threads())

    def test_a_second_leave_may_shorten_the_wait(self, make):
        """A second leave() with a timeout shortens the wait of a first one without."""
        timer = make()
        handler, _ = join_and_begin(timer)
        with leaving(timer):
            timer.leave(0)
        handler.go_on()

    @pytest.mark.fault("F68")
    def test_a_handler_may_leave(self, make):
        """leave() returns at once. The node ends after the handler, with its event confirmed."""
        timer = make()
        joined = []

        def handle(events):
            timer.leave()
            joined.append(timer.joined)

        timer.on("event", handle)
        timer.join()
        id = timer.post({})
        eventually(lambda: not timer.joined)
        assert [True] == joined
        assert timer.peek(id) is None
        assert [] == timer.nodes()
        with timer:
            assert timer.joined

    @pytest.mark.fault("F68")
    @pytest.mark.parametrize("emitted", ["error", "retry", "connected", "ready"])
    def test_a_listener_may_leave(self, make, emitted):
        """A listener of any emitted event may call leave()."""
        timer = make(backoff=LATER)
        done = threading.Event()

        def listen(*arguments):
            timer.leave()
            done.set()

        timer.on(emitted, listen)
        timer.on("event", lambda events: 1 / 0)
        timer.join()
        timer.post({})
        assert done.wait(PATIENCE)
        eventually(lambda: not timer.joined)

    def test_join_in_a_handler_of_a_leaving_node_is_an_error(self, make):
        """
        In a handler of a leaving node, join() would wait for that handler itself, so it is a
        UsageError. On a node that stays joined, join() has no effect.
        """
        timer = make()
        errors = []

        def handle(events):
            timer.join()
            timer.leave()
            try:
                timer.join()
            except UsageError as e:
                errors.append(e)

        timer.on("event", handle)
        timer.join()
        timer.post({})
        eventually(lambda: not timer.joined)
        assert 1 == len(errors)

    def test_two_threads_may_leave_at_once(self, make):
        """If two threads leave at once, both calls return after the node has ended."""
        for _ in range(10):
            timer = make()
            timer.join()

            def leave(_, timer=timer):
                timer.leave()
                assert not timer.joined

            together(2, leave)

    def test_leave_and_join_on_several_threads_do_not_deadlock(self, make):
        """
        If a thread leaves, another joins again, and the handler that both wait for calls leave()
        too, none of the three waits for ever.
        """
        timer = make()
        handler, _ = join_and_begin(timer, lambda events: timer.leave())
        with leaving(timer):
            # The joining thread waits for a lock and shows no sign that it has begun to.
            joining = in_thread(timer.join)
            handler.go_on()
            handler.ended()
        joining.result(PATIENCE)
        assert timer.joined

    def test_a_listener_may_post_while_the_node_leaves(self, make, client):
        """A listener that posts while the node leaves does not leave a connection behind."""
        timer = make(backoff=LATER)
        posted = threading.Event()

        def post_after_the_listener_thread(ev):
            listener = timer._node._listener
            eventually(listener._stopping.is_set)
            listener.join(PATIENCE)
            timer.post({}, LATER)
            posted.set()

        timer.on("retry", post_after_the_listener_thread)
        timer.on("error", lambda _: None)
        with nothing_left(client):
            handler, _ = join_and_begin(timer, lambda events: 1 / 0)
            with leaving(timer):
                handler.go_on()
            assert posted.is_set()

    @pytest.mark.fault("F60")
    def test_leave_releases_claimed_events_that_have_not_started(self, make, proxy):
        """
        Events that were claimed and not started before leave() are released at once, with no
        attempt charged. The next node starts each as its first attempt.

        The reply of the claim is lost, and the proxy refuses connections until the node leaves. So
        the node learns of the claim only then, by sending it again.
        """
        timer, other_node = make("leaving", proxy.url, poll_interval=LATER), make("other")
        started, caught = Catch(timer, "event"), Catch(other_node, "event")
        timer.join()
        eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
        proxy.drop_reply_once(timer._node.incarnation.encode())
        proxy.refuse()
        other_node.post({"n": 1}, id="tea")
        assert proxy.wait_dropped()
        eventually(lambda: other_node.peek("tea").state is State.IN_FLIGHT)
        node = timer._node
        with background(timer.leave):
            # From now on, and not before, the node releases every event that it claims.
            eventually(lambda: node._dispatcher._runner.releasing)
            proxy.heal()
        assert (State.SCHEDULED, 0) == state_and_attempt(other_node, "tea")
        with other_node:
            (ev,) = caught.next()
            assert 1 == ev.attempt
        assert started.empty()
        assert 1 == other_node.stats().totals["released"]

    @pytest.mark.parametrize("point", ["claim.asking", "claim.answered", "claim.handed"])
    def test_leave_releases_events_that_are_claimed_meanwhile(self, make, point):
        """
        A leave at any moment of a claim leaves no event to wait for the end of a lease. The event
        keeps its due time, with no attempt charged.
        """
        timer = make(look_ahead=1_000, lease=LATER, poll_interval=LATER)
        caught = Catch(timer, "event")
        timer.join()
        node = timer._node
        with arm(point, lambda: node.stop(None)):
            id = timer.post({}, 900, max_retries=0)
            eventually(lambda: node.ended)
        assert (State.SCHEDULED, 0) == state_and_attempt(timer, id)
        assert [] == list(timer.dead())
        assert caught.empty()

    def test_a_confirm_after_leave_closes_its_connection(self, make):
        """
        Work that outlives its handler may confirm or extend an event after the node has left. The
        call closes its connection again, because no second leave would do so.
        """
        before = descriptors()
        timer = make(auto_confirm=False)
        caught = Catch(timer, "event")
        timer.post_many([({}, 0), ({}, 0)])
        timer.join()
        (first,), (second,) = caught.next(), caught.next()
        timer.leave()
        assert first.extend(LATER) is True
        assert second.confirm() is True
        assert set() == descriptors() - before
        timer.join()
        assert first.confirm() is True
        assert timer.health().joined, "a node that has joined again keeps its connections"
        del timer

    def test_run_returns_if_another_thread_leaves(self, make):
        """run() blocks its thread until another thread makes the node leave."""
        timer = make()
        ready = Catch(timer, "ready")
        with background(timer.run):
            ready.next()
            timer.leave()


@pytest.mark.fault("F69")
class TestStorms:
    """Repeated and concurrent joins, leaves and posts."""

    def test_ten_threads_may_join_and_leave_concurrently(self, make, client):
        """Ten threads that join and leave one node in any order neither hang nor fail."""
        timer = make()
        timer.on("event", lambda events: None)

        def join_leave_and_post(number):
            for n in range(50):
                if (number + n) % 2:
                    timer.join()
                else:
                    timer.leave(0 if n % 3 else None)
                timer.post({})

        with nothing_left(client):
            together(10, join_leave_and_post)
            with timer:
                eventually(lambda: timer.stats().totals.get("confirmed") == 500)

    def test_concurrent_posts_each_arrive_once(self, make):
        """The posts of many threads through one timer all arrive, each once."""
        timer = make(max_events=100, concurrency=2)
        received = []
        timer.on("event", lambda events: received.extend(ev["n"] for ev in events))
        numbers = itertools.count()

        def post(_):
            for _ in range(50):
                timer.post({"n": next(numbers)})

        with timer:
            together(8, post)
            eventually(lambda: timer.stats().totals.get("confirmed") == 400)
        assert list(range(400)) == sorted(received)


@pytest.mark.fault("F73")
class TestForgotten:
    """Timers that are garbage-collected without leave()."""

    def test_a_dropped_joined_timer_warns_and_ends(self, make, make_unreferenced):
        """The threads end as after leave(), even if listeners refer to the timer."""
        timer = make_unreferenced()
        timer.on("event", lambda events, timer=timer: None)
        timer.once("error", lambda error, timer=timer: None)
        timer.join()
        reference = weakref.ref(timer)
        with pytest.warns(ResourceWarning, match="'dropped' was dropped while joined"):
            del timer
            gc.collect()
        assert reference() is None
        eventually(lambda: not threads())
        assert [] == make().nodes()

    def test_a_collected_timer_closes_its_connections_before_their_sockets(self, make_unreferenced):
        """
        A timer in a reference cycle closes its connections before any of its objects is finalized.
        Otherwise the collector may finalize a socket first, which then warns that it was not
        closed.
        """
        seen = []

        class Elder:
            def __del__(self):
                seen.append(
                    [session.connection._connection for session in self.timer._store._scripts._idle]
                )

        elder = Elder()
        elder.timer = make_unreferenced()
        elder.timer.elder = elder
        elder.timer.post({})
        del elder
        gc.collect()
        assert [[]] == seen

    @pytest.mark.parametrize("joins", [1, 2])
    def test_a_timer_that_a_handler_made_leave_does_not_warn(self, make_unreferenced, joins):
        """A timer whose handler called leave() was not forgotten, even if it joined again."""
        timer = make_unreferenced()
        reference = weakref.ref(timer)
        timer.on("event", lambda events: reference().leave())
        timer.join()
        timer.post({})
        eventually(lambda: not reference().joined)
        if joins == 2:
            timer.join()
            timer.leave()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del timer
            gc.collect()
        assert reference() is None
