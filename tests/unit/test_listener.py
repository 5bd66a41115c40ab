"""The listener, with a fake subscription: when it hears, when it is deaf, and its reports."""

from __future__ import annotations

import queue
import select
import threading
import time

import pytest
from logged import Logged
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.listener import Deaf, Listener

LONG = 3_600.0  # seconds: longer than any test


class FakeSubscription:
    """A subscription that receives what the test says."""

    def __init__(self, fails):
        self._fails = fails
        self._words = queue.SimpleQueue()
        self._bell = Bell()
        self.waits = 0
        self.closed = 0

    def open(self):
        if self._fails:
            raise self._fails

    def say(self, what):
        """Make the subscription receive these channels, or raise this exception."""
        self._words.put(what)
        self._bell.ring()

    def wait(self, seconds, also):
        self.waits += 1
        readable, _, _ = select.select([self._bell.descriptor, also], [], [], seconds)
        return self._bell.descriptor in readable

    def hear(self):
        self._bell.clear()
        what = self._words.get_nowait()
        if not self._words.empty():
            self._bell.ring()
        if isinstance(what, Exception):
            raise what
        return what

    def close(self):
        self.closed += 1
        self._bell.close()


class ListenerHarness:
    """A listener, the subscriptions it makes, and the changes it reports."""

    def __init__(self, *, echo_every=LONG, patience=LONG, fails=(), slow=()):
        self._fails = list(fails)
        self._made = queue.SimpleQueue()
        self.changes = queue.SimpleQueue()
        self.log = Logged()
        self.rings = 0
        self.listener = Listener(
            "dtimer-listener",
            subscription=self._make,
            ring=self._ring,
            changed=self.changes.put,
            needs_operator=lambda e: isinstance(e, tuple(slow)),
            echo_every=echo_every,
            timeout=patience,
            log=self.log.log,
        )

    def _make(self):
        subscription = FakeSubscription(self._fails.pop(0) if self._fails else None)
        self._made.put(subscription)
        return subscription

    def _ring(self):
        self.rings += 1

    def next(self):
        """Return the next subscription that the listener makes."""
        return self._made.get(timeout=PATIENCE)

    def change(self):
        """Return the next change that the listener reports."""
        return self.changes.get(timeout=PATIENCE)


@pytest.fixture
def harness():
    made = []

    def build(**options):
        harness = ListenerHarness(**options)
        made.append(harness.listener)
        return harness

    yield build
    for listener in made:
        listener.stop()
        assert listener.join(PATIENCE)
        listener.close()


def proven(harness):
    """Start the listener and let it receive its first echo; return the subscription."""
    harness.listener.start()
    subscription = harness.next()
    subscription.say(["ns:echo:me"])
    assert harness.change() is None
    return subscription


class TestHearing:
    """The listener trusts a subscription once it has received a message through it."""

    def test_hears_only_after_the_first_echo(self, harness):
        """
        An open subscription may still deliver nothing.

        The listener rings at once, because a wake may have been missed before.
        """
        harness = harness()
        harness.listener.start()
        subscription = harness.next()
        assert harness.listener.tried.wait(PATIENCE)
        eventually(lambda: harness.rings == 1)
        assert not harness.listener.hears
        subscription.say(["ns:echo:me"])
        assert harness.change() is None
        assert harness.listener.hears
        assert harness.listener.deaf_since is None
        assert time.monotonic() - harness.listener.heard < PATIENCE

    def test_a_wake_rings_and_an_expected_echo_does_not(self, harness):
        """An echo proves only that the node hears."""
        harness = harness()
        subscription = proven(harness)
        eventually(lambda: harness.rings == 2)
        subscription.say(["ns:echo:me"])
        subscription.say(["ns:wake:me"])
        eventually(lambda: harness.rings == 3)
        subscription.say(["ns:echo:me", "ns:wake:me"])
        eventually(lambda: harness.rings == 4)

    def test_silence_without_an_expected_echo_does_not_mean_deaf(self, harness):
        """There may simply be nothing to hear."""
        harness = harness(patience=0.004)
        subscription = proven(harness)
        waits = subscription.waits
        eventually(lambda: subscription.waits > waits + 5)
        assert harness.listener.hears
        assert not subscription.closed

    def test_messages_on_other_channels_do_not_prove_hearing(self, harness):
        """Only the node's own channels prove that its wakes arrive."""
        harness = harness(patience=0.02)
        harness.listener.start()
        subscription = harness.next()
        subscription.say([])
        waits = subscription.waits
        eventually(lambda: subscription.waits > waits + 2)
        assert not harness.listener.hears


class TestEcho:
    """When an echo is wanted, and the meaning of a missing one."""

    def test_an_echo_is_due_after_subscribing_and_then_after_each_silence(self, harness):
        """No echo is due before the subscription is open, or while an echo is expected."""
        harness = harness(echo_every=10.0)
        listener = harness.listener
        assert 10.0 == listener.echo_due()
        listener.echo_sent()
        listener.start()
        subscription = harness.next()
        eventually(lambda: listener.echo_due() == 0.0)
        listener.echo_sent()
        assert 10.0 == listener.echo_due()
        subscription.say(["ns:echo:me"])
        harness.change()
        assert 0 < listener.echo_due() <= 10.0
        listener.heard -= 20
        assert 0.0 == listener.echo_due()

    def test_a_claim_shortly_before_an_echo_is_due_sends_it(self, harness):
        """
        An echo seldom needs a claim of its own then, which would cost an idle node
        extra requests.
        """
        harness = harness(echo_every=10.0)
        listener = harness.listener
        proven(harness)
        assert not listener.echo_wanted
        listener.heard -= 7
        assert not listener.echo_wanted
        listener.heard -= 2
        assert listener.echo_wanted
        assert 0 < listener.echo_due() < 2
        listener.echo_sent()
        assert not listener.echo_wanted

    def test_a_missing_echo_means_deaf_since_it_was_sent_and_subscribes_again(self, harness):
        """Wakes after that moment may have been lost."""
        harness = harness(patience=0.05)
        listener = harness.listener
        subscription = proven(harness)
        before = time.monotonic()
        listener.echo_sent()
        after = time.monotonic()
        assert isinstance(harness.change(), Deaf)
        assert before <= listener.deaf_since <= after
        second = harness.next()
        assert subscription.closed
        assert not listener.hears
        second.say(["ns:echo:me"])
        assert harness.change() is None
        assert listener.deaf_since is None

    def test_expects_no_echo_of_a_failed_claim(self, harness):
        """The server may never have sent that echo."""
        harness = harness(patience=0.05)
        subscription = proven(harness)
        harness.listener.echo_sent()
        harness.listener.echo_failed()
        waits = subscription.waits
        eventually(lambda: subscription.waits > waits + 4)
        assert harness.listener.hears
        assert 0 < harness.listener.echo_due()

    def test_a_wake_proves_hearing_like_an_echo(self, harness):
        """Both come through the same connection."""
        harness = harness(patience=0.5)
        subscription = proven(harness)
        harness.listener.echo_sent()
        subscription.say(["ns:wake:me"])
        eventually(lambda: harness.listener.echo_due() > 0 and harness.listener._echo_sent is None)
        assert harness.listener.hears


class TestLoss:
    """Subscriptions that end, and attempts that fail."""

    def test_reports_a_lost_subscription_rings_and_subscribes_again(self, harness):
        """The bell makes the claimer poll, because wakes are lost meanwhile."""
        broken = ConnectionError("gone")
        harness = harness()
        subscription = proven(harness)
        harness._fails = [OSError("refused"), OSError("refused")]
        rings = harness.rings
        before = time.monotonic()
        subscription.say(broken)
        assert broken is harness.change()
        since = harness.listener.deaf_since
        assert since >= before
        assert ["refused", "refused"] == [str(harness.change()) for _ in range(2)]
        assert since == harness.listener.deaf_since
        for _ in range(2):
            refused = harness.next()
            # The listener reports the change a moment before it closes the subscription.
            eventually(lambda subscription=refused: subscription.closed)
        third = harness.next()
        third.say(["ns:echo:me"])
        assert harness.change() is None
        # One ring when the subscription ended, one when the new one was open, and one for its first
        # echo. None for the attempts that failed.
        assert rings + 3 == harness.rings

    def test_a_failed_first_attempt_counts_as_tried_at_once(self, harness, monkeypatch):
        """A caller of join() must not wait through the pause that follows."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        harness = harness(fails=[PermissionError("never")], slow=[PermissionError])
        began = time.monotonic()
        harness.listener.start()
        assert harness.listener.tried.wait(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert "never" == str(harness.change())
        assert harness.next().closed

    def test_reports_a_subscription_that_cannot_be_made_and_tries_again(self, harness):
        """The thread must survive errors before there is a subscription."""
        harness = harness()
        make = harness.listener._subscribe
        broken = [MemoryError("no ear")]

        def fail():
            if broken:
                raise broken.pop()
            return make()

        harness.listener._subscribe = fail
        harness.listener.start()
        assert "no ear" == str(harness.change())
        harness.next().say(["ns:echo:me"])
        assert harness.change() is None

    def test_stop_interrupts_listening_and_pauses(self, harness, monkeypatch):
        """leave() must not wait for either."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        listening = harness()
        proven(listening)
        resting = harness(fails=[PermissionError()], slow=[PermissionError])
        resting.listener.start()
        resting.change()
        for each in (listening, resting):
            began = time.monotonic()
            each.listener.stop()
            assert each.listener.join(PATIENCE)
            assert time.monotonic() - began < PROMPT
            assert not each.listener.hears

    def test_after_fork_closes_the_subscription_and_the_bell(self, harness):
        """The listener thread, which would have closed them, does not exist in the child."""
        harness = harness()
        subscription = proven(harness)
        harness.listener.stop()
        assert harness.listener.join(PATIENCE)
        assert 1 == subscription.closed
        harness.listener._opened = subscription
        harness.listener._stop_bell = Bell()
        harness.listener.after_fork()
        assert 2 == subscription.closed
        assert harness.listener._stop_bell._pipe is None

    def test_after_fork_closes_a_subscription_that_is_being_opened(self):
        """A child may be forked while the listener thread waits for the server."""
        stopping, closed, in_child = Flag(), [], []

        class Opening:
            def open(self):
                """Fork, and then fail."""
                listener.after_fork()
                in_child.append(len(closed))
                stopping.set()
                raise ConnectionError

            def close(self):
                """Count."""
                closed.append(self)

        listener = Listener(
            "dtimer-listener",
            subscription=Opening,
            ring=lambda: None,
            changed=lambda error: None,
            needs_operator=lambda error: False,
            echo_every=1.0,
            timeout=1.0,
            log=Logged().log,
        )
        listener._loop(stopping)
        assert [1] == in_child


def test_has_one_thread_which_ends_with_it():
    """A leaked thread would keep its connection."""
    harness = ListenerHarness()
    proven(harness)
    assert ["dtimer-listener"] == [
        t.name for t in threading.enumerate() if t.name.startswith("dtimer-")
    ]
    harness.listener.stop()
    assert harness.listener.join(PATIENCE)
    assert harness.listener._stop_bell._pipe is None
