"""Joining and leaving: what a node is while it is there, and that nothing is left of it."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import warnings
import weakref

import pytest
from gated import Gated
from leftovers import descriptors, nothing_left, threads
from proxy import Proxy
from servers import PATIENCE, PROMPT, Server, eventually

from dtimer import DTimer, OptionError, State, StoreError, UsageError
from dtimer.faultpoints import arm
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from dtimer.timer.life import Life

LATER = 3_600_000  # ms; no test is there to see it


def together(count, act):
    """Call *act* with its number on so many threads that start at once; raise what they raise."""
    start = threading.Barrier(count)
    raised = []

    def run(n):
        try:
            start.wait(PATIENCE)
            act(n)
        except BaseException as e:
            raised.append(e)

    crew = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(3 * PATIENCE)
        assert not thread.is_alive(), "it hangs"
    for error in raised:
        raise error


class TestJoin:
    """What holds when join() returns."""

    def test_registered_subscribed_and_claimed(self, make, client, namespace):
        """
        When join() returns the node is registered and subscribed, and what was due has
        been claimed.
        """
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

    def test_it_says_ready(self, make):
        """'connected' and 'ready' are emitted once each by a join."""
        timer = make()
        said = [Catch(timer, name) for name in ("connected", "ready")]
        timer.join()
        timer.join()
        timer.leave()
        for caught in said:
            assert () == caught.next()
            assert caught.empty()

    def test_again_changes_nothing(self, make):
        """Joining a node that has joined changes nothing, and one leave ends it."""
        timer = make()
        timer.join()
        (before,) = timer.nodes()
        timer.join()
        (after,) = timer.nodes()
        assert before.incarnation == after.incarnation
        timer.leave()
        assert not timer.joined

    def test_after_leave_it_is_another_life(self, make):
        """A node that has left may join again: under another incarnation, and it receives."""
        timer = make()
        caught = Catch(timer, "event")
        lives = set()
        for n in range(3):
            with timer:
                lives.add(timer.nodes()[0].incarnation)
                timer.post({"n": n})
                assert [{"n": n}] == caught.next()
        assert 3 == len(lives)

    @pytest.mark.fault("F70")
    def test_two_nodes_of_one_name(self, make):
        """An id may be shared: each of two nodes is registered, and holds its own leases."""
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

    def test_what_changes_meanwhile_holds(self, make, monkeypatch):
        """max_events that is set while the node joins holds from then on."""
        timer = make()
        told = threading.Event()

        def connected():
            timer.max_events = 4
            told.set()

        timer.on("connected", connected)
        start = Life.start

        def slow(life):
            start(life)
            assert told.wait(PATIENCE)

        monkeypatch.setattr(Life, "start", slow)
        with timer:
            timer.post_many([({}, 0)] * 4)
            assert 4 == len(Catch(timer, "event").next())

    def test_nobody_there(self, make, namespace):
        """
        Where Redis is not, join() raises a StoreError within its deadline, and leaves
        neither a thread nor a descriptor behind.
        """
        with Server(tcp=True) as gone:
            url = gone.url
        timer = DTimer("node", url, ns=namespace, timeout=500)
        began = time.monotonic()
        with pytest.raises(StoreError):
            timer.join()
        assert time.monotonic() - began < PROMPT
        assert not timer.joined
        assert [] == threads()
        timer.leave()

    def test_nobody_answers(self, server, clean, namespace):
        """
        Where connections are taken and nothing is answered, join() gives up as well:
        nothing is left, and the node may join when the way is open.
        """
        with Proxy(server) as proxy:
            proxy.blackhole()
            timer = DTimer("node", proxy.url, ns=namespace, timeout=300)
            began = time.monotonic()
            with pytest.raises(StoreError):
                timer.join()
            assert time.monotonic() - began < PROMPT
            assert [] == threads()
            proxy.heal()
            with timer:
                assert timer.joined

    def test_it_goes_away_in_the_middle(self, make, monkeypatch, client, namespace):
        """When Redis goes away between registering and the first turn, join() says so."""
        timer = make(timeout=3_000)
        monkeypatch.setattr(timer._store, "ask", _raiser(ConnectionError("gone")))
        with pytest.raises(StoreError, match="went away while joining: gone"):
            timer.join()
        monkeypatch.undo()
        assert not timer.joined
        assert [] == threads()
        with timer:
            assert timer.joined
        # The registration that could not be taken back is forgotten after a while.
        client.delete(Keys.of(namespace).nodes, Keys.of(namespace).alive)

    def test_health_counts_what_was_not_emitted(self, make, monkeypatch):
        """What listeners never hear of, because they are too far behind, shows in health()."""
        monkeypatch.setattr("dtimer.engine.herald._MOST", 0)
        with make() as timer:
            assert timer.health().dropped > 0, "'ready' was announced"

    @pytest.mark.parametrize("which", ["herald", "hand-2", "listener", "claimer"])
    def test_no_more_threads(self, make, monkeypatch, which):
        """A process that can start no more threads gets that error, and nothing is left."""
        timer = make(concurrency=3)
        start = threading.Thread.start

        def limited(thread):
            if which in thread.name:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        with pytest.raises(RuntimeError, match="can't start"):
            timer.join()
        monkeypatch.undo()
        assert not timer.joined
        assert [] == timer.nodes()
        assert [] == threads()
        with timer:
            assert timer.joined

    def test_interrupted(self, make, monkeypatch):
        """An interrupt in the middle of join() leaves nothing behind."""
        timer = make()
        monkeypatch.setattr("dtimer.engine.reach.Reach.tried", _Interrupted(), raising=False)
        with pytest.raises(KeyboardInterrupt):
            timer.join()
        monkeypatch.undo()
        assert not timer.joined
        assert [] == timer.nodes()
        assert [] == threads()

    def test_pubsub_is_forbidden(self, make, client, namespace, server):
        """A user who may not subscribe may join: events come by the poll, and it says so."""
        client.execute_command(
            *["ACL", "SETUSER", "deafened", "on", "nopass", "~*", "&*", "+@all", "-subscribe"]
        )
        with server.client(username="deafened", password="x") as user:
            timer = make(url=user, poll_interval=50)
            caught, errors = Catch(timer, "event"), Catch(timer, "error")
            with timer:
                assert "wakes do not arrive" in str(errors.next())
                assert timer.health().deaf
                timer.post({"n": 1})
                assert [{"n": 1}] == caught.next()
            assert errors.empty()
        client.execute_command("ACL", "DELUSER", "deafened")


def _raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail


class _Interrupted:
    """Stands where a thread waits, and is interrupted there."""

    def wait(self, timeout=None):
        raise KeyboardInterrupt

    def is_set(self):
        return True

    def set(self):
        pass

    def __set__(self, owner, value):
        pass


class TestLeave:
    """What holds when leave() returns, and who may call it when."""

    def test_nothing_is_left(self, make, client, namespace):
        """
        After leave() there is no thread, descriptor, connection or registration; all
        events gone, a handful of keys remains however many there were.
        """
        timer = make(max_events=50)
        with nothing_left(client), timer:
            timer.on("event", lambda events: None)
            timer.post_many([({}, 0)] * 200)
            eventually(lambda: timer.stats().totals.get("confirmed") == 200)
        assert [] == threads()
        keys = client.keys(f"dtimer:{{{namespace}}}:*")
        assert {b"sys", b"memo_a", b"memo_b"} >= {key.rpartition(b":")[2] for key in keys}

    def test_at_any_time(self, make):
        """leave() is legal before join, and any number of times."""
        timer = make()
        timer.leave()
        timer.leave(0)
        timer.join()
        timer.leave()
        timer.leave()
        with pytest.raises(OptionError):
            timer.leave("soon")

    def test_posting_needs_no_joining(self, make, client):
        """A timer that has left may post; leave() then drops that connection too."""
        timer = make()
        with timer:
            pass
        with nothing_left(client):
            timer.post({}, LATER)
            timer.leave()

    def test_running_handlers_end_first(self, make):
        """leave() waits for the handler that runs, and its event is confirmed."""
        timer = make()
        handler = Gated(timer)
        timer.join()
        id = timer.post({})
        handler.begun()
        leaving = threading.Thread(target=timer.leave)
        leaving.start()
        eventually(lambda: timer._life.leaving)
        assert timer.joined
        handler.go_on()
        leaving.join(PATIENCE)
        assert not timer.joined
        assert timer.peek(id) is None

    @pytest.mark.fault("F60")
    def test_no_new_claims(self, make):
        """While a node leaves it claims nothing: what falls due then is others'."""
        timer, other = make("leaving"), make("other")
        handler = Gated(timer)
        caught = Catch(other, "event")
        timer.join()
        timer.post({"n": 1})
        handler.begun()
        leaving = threading.Thread(target=timer.leave)
        leaving.start()
        eventually(lambda: not any(node.waiting for node in timer.nodes()))
        eventually(lambda: timer._life.leaving)
        with other:
            timer.post({"n": 2})
            handler.go_on(2)
            assert [{"n": 2}] == caught.next()
            leaving.join(PATIENCE)
        assert 0 == handler.waiting

    @pytest.mark.fault("F60")
    def test_a_handler_that_hangs_is_given_up(self, make):
        """
        leave(timeout) gives back what still runs then, its attempt charged: the handler
        can see that, its confirm is void, and the next node has the event at once.
        """
        timer, other = make("hanging"), make("other", auto_confirm=False)
        handler = Gated(timer)
        caught = Catch(other, "event")
        timer.join()
        id = timer.post({})
        (ev,) = handler.begun()
        assert not ev.lease_lost
        began = time.monotonic()
        timer.leave(100)
        assert 0.1 <= time.monotonic() - began < PROMPT
        assert not timer.joined
        assert ev.lease_lost
        assert (State.SCHEDULED, 1) == (timer.peek(id).state, timer.peek(id).attempt)
        with other:
            (again,) = caught.next()
            assert 2 == again.attempt
            assert ev.confirm() is False
            assert again.confirm() is True
        handler.go_on()
        handler.ended()
        eventually(lambda: not threads())

    def test_a_shorter_timeout_counts(self, make):
        """A second leave() with a timeout hurries the first, which had none."""
        timer = make()
        handler = Gated(timer)
        timer.join()
        timer.post({})
        handler.begun()
        patient = threading.Thread(target=timer.leave)
        patient.start()
        eventually(lambda: timer._life.leaving)
        timer.leave(0)
        patient.join(PATIENCE)
        assert not patient.is_alive()
        handler.go_on()

    @pytest.mark.fault("F68")
    def test_by_a_handler(self, make):
        """
        A handler may call leave(): it returns at once, and the node ends when the handler
        has, its event confirmed.
        """
        timer = make()
        told = []

        def handle(events):
            timer.leave()
            told.append(timer.joined)

        timer.on("event", handle)
        timer.join()
        id = timer.post({})
        eventually(lambda: not timer.joined)
        assert [True] == told
        assert timer.peek(id) is None
        assert [] == timer.nodes()
        with timer:
            assert timer.joined

    @pytest.mark.fault("F68")
    @pytest.mark.parametrize("said", ["error", "retry", "connected", "ready"])
    def test_by_a_listener(self, make, said):
        """Whoever listens to an event of the node may call leave() there."""
        timer = make(backoff=LATER)
        done = threading.Event()

        def listen(*arguments):
            timer.leave()
            done.set()

        timer.on(said, listen)
        timer.on("event", lambda events: 1 / 0)
        timer.join()
        timer.post({})
        assert done.wait(PATIENCE)
        eventually(lambda: not timer.joined)

    def test_joining_from_a_handler_that_left(self, make):
        """
        join() by a handler of a node that leaves would wait for that very handler: it is
        a UsageError. The handler may call it on a node that stays, where it means nothing.
        """
        timer = make()
        told = []

        def handle(events):
            timer.join()
            timer.leave()
            try:
                timer.join()
            except UsageError as e:
                told.append(e)

        timer.on("event", handle)
        timer.join()
        timer.post({})
        eventually(lambda: not timer.joined)
        assert 1 == len(told)

    def test_two_threads(self, make):
        """Two threads may leave at once: both return when the node has ended."""
        for _ in range(10):
            timer = make()
            timer.join()

            def leave(_, timer=timer):
                timer.leave()
                assert not timer.joined

            together(2, leave)

    def test_while_another_thread_joins_again(self, make):
        """
        One thread leaves, another wants to join again, and the handler that both wait for
        calls leave() as well: none of them waits for ever.
        """
        timer = make()
        handler = Gated(timer, lambda events: timer.leave())
        timer.join()
        timer.post({})
        handler.begun()
        leaving = threading.Thread(target=timer.leave)
        joining = threading.Thread(target=timer.join)
        leaving.start()
        eventually(lambda: timer._life.leaving)
        joining.start()
        # It has nothing to show while it waits but the lock that it must not hold.
        eventually(joining.is_alive)
        handler.go_on()
        handler.ended()
        leaving.join(PATIENCE)
        joining.join(PATIENCE)
        assert not leaving.is_alive()
        assert not joining.is_alive()
        assert timer.joined

    def test_a_listener_may_post_to_the_last(self, make, client):
        """
        What a listener of the node does with it while it leaves, leaves no connection
        behind either.
        """
        timer = make(backoff=LATER)
        posted = threading.Event()

        def again(ev):
            listener = timer._life._listener
            eventually(listener._stopping.is_set)
            listener.join(PATIENCE)
            timer.post({}, LATER)
            posted.set()

        timer.on("retry", again)
        timer.on("error", lambda _: None)
        handler = Gated(timer, lambda events: 1 / 0)
        with nothing_left(client):
            timer.join()
            timer.post({})
            handler.begun()
            leaving = threading.Thread(target=timer.leave)
            leaving.start()
            eventually(lambda: timer._life.leaving)
            handler.go_on()
            leaving.join(PATIENCE)
            assert posted.is_set()

    @pytest.mark.fault("F60")
    def test_unstarted_claims_are_handed_back(self, make, server):
        """
        What was claimed and not started when the node was asked to leave, goes back at
        once and unused: the next node has it, as its first attempt.

        The reply of the claim is lost, and the way is closed until the node leaves; so
        the claim is learned of, by asking again, only then.
        """
        with Proxy(server) as proxy:
            timer, other = make("leaving", proxy.url, poll_interval=LATER), make("other")
            started, caught = Catch(timer, "event"), Catch(other, "event")
            timer.join()
            eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
            proxy.drop_reply_once(timer._life.incarnation.encode())
            proxy.refuse()
            other.post({"n": 1}, id="tea")
            assert proxy.wait_dropped()
            eventually(lambda: other.peek("tea").state is State.IN_FLIGHT)
            life = timer._life
            leaving = threading.Thread(target=timer.leave)
            leaving.start()
            # By now whatever it claims is handed back, and not before.
            eventually(lambda: life._dispatcher._returning)
            proxy.heal()
            leaving.join(PATIENCE)
            assert (State.SCHEDULED, 0) == (other.peek("tea").state, other.peek("tea").attempt)
            with other:
                (ev,) = caught.next()
                assert 1 == ev.attempt
            assert started.empty()
            assert 1 == other.stats().totals["released"]

    @pytest.mark.parametrize("point", ["turn.asking", "claim.answered", "claim.handed"])
    def test_releases_what_is_claimed_while_it_is_told_to_leave(self, make, point):
        """
        A leave that comes at any moment of a claim strands nothing: the event waits for another
        node at its own due time, uncharged, and not for the end of a lease.
        """
        timer = make(look_ahead=1_000, lease=LATER, poll_interval=LATER)
        said = Catch(timer, "event")
        timer.join()
        life = timer._life
        with arm(point, lambda: life.stop(None)):
            id = timer.post({}, 900, max_retries=0)
            eventually(lambda: life.over)
        record = timer.peek(id)
        assert (State.SCHEDULED, 0) == (record.state, record.attempt)
        assert [] == [letter.id for letter in timer.dead()]
        assert said.empty()

    def test_a_word_about_an_event_after_it_leaves_nothing_open(self, make):
        """
        What is confirmed after the node has left, by work that outlived its handler, is recorded;
        the connection that this takes is closed again, for no second leave will do it.
        """
        before = descriptors()
        timer = make(auto_confirm=False)
        said = Catch(timer, "event")
        timer.post_many([({}, 0), ({}, 0)])
        timer.join()
        (first,), (second,) = said.next(), said.next()
        timer.leave()
        assert first.extend(LATER) is True
        assert second.confirm() is True
        assert set() == descriptors() - before
        timer.join()
        assert first.confirm() is True
        assert timer.health().joined, "a node that has joined again keeps its connections"
        del timer

    def test_run_returns_when_another_thread_leaves(self, make):
        """run() on a thread of its own blocks until somebody makes the node leave."""
        timer = make()
        ready = Catch(timer, "ready")
        running = threading.Thread(target=timer.run)
        running.start()
        ready.next()
        timer.leave()
        running.join(PATIENCE)
        assert not running.is_alive()


@pytest.mark.fault("F69")
class TestStorms:
    """Again and again, and all at once."""

    def test_again_and_again(self, make, client):
        """Two hundred lives of one node leave nothing behind, and each of them works."""
        timer = make()
        caught = Catch(timer, "event")
        with timer:
            pass
        with nothing_left(client):
            for n in range(200):
                timer.join()
                if n % 20 == 0:
                    timer.post({"n": n})
                    assert [{"n": n}] == caught.next()
                timer.leave(0)
        assert [] == timer.nodes()

    def test_all_at_once(self, make, client):
        """Ten threads that join and leave one node as they like neither hang nor fail."""
        timer = make()
        timer.on("event", lambda events: None)

        def storm(n):
            for turn in range(50):
                if (n + turn) % 2:
                    timer.join()
                else:
                    timer.leave(0 if turn % 3 else None)
                timer.post({})

        with nothing_left(client):
            together(10, storm)
            with timer:
                eventually(lambda: timer.stats().totals.get("confirmed") == 500)

    def test_posts_from_many_threads(self, make, client):
        """What many threads post through one timer arrives whole, each event once."""
        timer = make(max_events=100, concurrency=2)
        caught = []
        timer.on("event", lambda events: caught.extend(ev["n"] for ev in events))
        numbers = itertools.count()

        def post(_):
            for _ in range(50):
                timer.post({"n": next(numbers)})

        with timer:
            together(8, post)
            eventually(lambda: timer.stats().totals.get("confirmed") == 400)
        assert list(range(400)) == sorted(caught)


@pytest.mark.fault("F73")
class TestForgotten:
    """Nodes that nobody made leave."""

    def test_dropped_while_joined(self, make, server, namespace, clean):
        """
        A joined timer that is garbage warns with a ResourceWarning, and its threads end
        as if it had left.
        """
        timer = DTimer("dropped", server.url, ns=namespace)
        timer.join()
        gone = weakref.ref(timer)
        with pytest.warns(ResourceWarning, match="'dropped' was dropped while joined"):
            del timer
            gc.collect()
        assert gone() is None
        eventually(lambda: not threads())
        assert [] == make().nodes()

    def test_dropped_in_a_cycle(self, make, server, namespace, clean):
        """A listener that refers to its timer does not keep a forgotten one alive."""
        timer = DTimer("dropped", server.url, ns=namespace)
        timer.on("event", lambda events, timer=timer: None)
        timer.once("error", lambda error, timer=timer: None)
        timer.join()
        gone = weakref.ref(timer)
        with pytest.warns(ResourceWarning):
            del timer
            gc.collect()
        assert gone() is None
        eventually(lambda: not threads())

    def test_connections_end_before_their_sockets(self, make, server, namespace, clean):
        """
        A timer that only posted, and is forgotten in a cycle, has closed its connections
        before the collector comes to any of its objects: it may come to a socket first,
        which would then complain that nobody closed it.
        """
        seen = []

        class Elder:
            def __del__(self):
                seen.append([lane.wire._connection for lane in self.timer._store._line._idle])

        elder = Elder()
        elder.timer = DTimer("forgotten", server.url, ns=namespace)
        elder.timer.elder = elder
        elder.timer.post({})
        del elder
        gc.collect()
        assert [[]] == seen

    @pytest.mark.parametrize("again", [False, True])
    def test_left_by_a_handler(self, make, server, namespace, clean, again):
        """
        A node that a handler made leave was not forgotten: its end as garbage is no
        occasion for a warning, not even after another life.
        """
        timer = DTimer("left", server.url, ns=namespace)
        there = weakref.ref(timer)
        timer.on("event", lambda events: there().leave())
        timer.join()
        timer.post({})
        eventually(lambda: not there().joined)
        if again:
            timer.join()
            timer.leave()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del timer
            gc.collect()
        assert there() is None
        assert Keys.of(namespace)
