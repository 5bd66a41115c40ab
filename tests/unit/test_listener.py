"""The listener, with a fake subscription: when it hears, when it is deaf, and its reports."""

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

HOUR = 3_600.0  # seconds: longer than any test
ECHO, WAKE = "ns:echo:me", "ns:wake:me"


class FakeSubscription:
    """A subscription that receives the messages of the test."""

    def __init__(self, error):
        self._error = error
        self._messages = queue.SimpleQueue()
        self._bell = Bell()
        self.waits = 0
        self.closed = 0

    def open(self):
        if self._error:
            raise self._error

    def receive(self, channels):
        """Make the subscription receive a message on each channel, or raise an exception."""
        self._messages.put(channels)
        self._bell.ring()

    def wait(self, seconds, also):
        self.waits += 1
        readable, _, _ = select.select([self._bell.descriptor, also], [], [], seconds)
        return self._bell.descriptor in readable

    def hear(self):
        self._bell.clear()
        channels = self._messages.get_nowait()
        if not self._messages.empty():
            self._bell.ring()
        if isinstance(channels, Exception):
            raise channels
        return channels

    def close(self):
        self.closed += 1
        self._bell.close()

    def wait_for_rounds(self, more):
        """Return when the listener has waited *more* times on this subscription."""
        waits = self.waits
        eventually(lambda: self.waits > waits + more)


class Harness:
    """
    A listener, the subscriptions it makes, and the changes it reports.

    Args:
        echo_every: Seconds of silence after which an echo is due.
        echo_timeout: Seconds after which an echo is missing.
        errors: The errors of the first attempts to open a subscription.
        lasting: The types of errors that last until an operator acts.
        subscription: Makes a subscription.
    """

    def __init__(
        self, *, echo_every=HOUR, echo_timeout=HOUR, errors=(), lasting=(), subscription=None
    ):
        self.errors = list(errors)
        self._lasting = tuple(lasting)
        self._make_subscription = subscription or self._subscribe
        self._subscriptions = queue.SimpleQueue()
        self._changes = queue.SimpleQueue()
        self.rings = 0
        self.listener = Listener(
            "dtimer-listener",
            store=self,
            bell=self,
            contact=self,
            echo_every=echo_every,
            timeout=echo_timeout,
            log=Logged().log,
        )

    def _subscribe(self):
        subscription = FakeSubscription(self.errors.pop(0) if self.errors else None)
        self._subscriptions.put(subscription)
        return subscription

    # The store, the bell and the contact of the listener

    def subscription(self):
        return self._make_subscription()

    def needs_operator(self, error):
        return isinstance(error, self._lasting)

    def ring(self):
        self.rings += 1

    def hearing_changed(self, error, deaf_since):
        assert self.listener.deaf_since == deaf_since
        self._changes.put(error)

    def next_subscription(self):
        """Return the next subscription that the listener makes."""
        return self._subscriptions.get(timeout=PATIENCE)

    def next_change(self):
        """Return the next change that the listener reports: an error, or None if it hears."""
        return self._changes.get(timeout=PATIENCE)

    def start_and_hear(self):
        """Start the listener and let it receive its first echo; return the subscription."""
        self.listener.start()
        subscription = self.next_subscription()
        subscription.receive([ECHO])
        assert self.next_change() is None
        return subscription

    def stop(self):
        """Stop the listener, and wait for the end of its thread."""
        self.listener.stop()
        assert self.listener.join(PATIENCE)


@pytest.fixture
def make_harness():
    made = []

    def make(**options):
        made.append(Harness(**options))
        return made[-1]

    yield make
    for harness in made:
        harness.stop()
        harness.listener.close()


@pytest.fixture
def harness(make_harness):
    return make_harness()


class TestHearing:
    """The listener trusts a subscription once it has received a message through it."""

    def test_hears_only_after_the_first_echo(self, harness):
        """An open subscription may deliver nothing. The listener rings, as a wake may be lost."""
        harness.listener.start()
        subscription = harness.next_subscription()
        assert harness.listener.tried.wait(PATIENCE)
        eventually(lambda: harness.rings == 1)
        assert not harness.listener.hears
        subscription.receive([ECHO])
        assert harness.next_change() is None
        assert harness.listener.hears
        assert harness.listener.deaf_since is None
        assert time.monotonic() - harness.listener.heard < PATIENCE

    def test_a_wake_rings_and_an_expected_echo_does_not(self, harness):
        """An echo proves only that the node hears."""
        subscription = harness.start_and_hear()
        eventually(lambda: harness.rings == 2)
        subscription.receive([ECHO])
        subscription.receive([WAKE])
        eventually(lambda: harness.rings == 3)
        subscription.receive([ECHO, WAKE])
        eventually(lambda: harness.rings == 4)

    def test_silence_without_an_expected_echo_does_not_mean_deaf(self, make_harness):
        """There may simply be nothing to hear."""
        harness = make_harness(echo_timeout=0.004)
        subscription = harness.start_and_hear()
        subscription.wait_for_rounds(5)
        assert harness.listener.hears
        assert not subscription.closed

    def test_messages_on_other_channels_do_not_prove_hearing(self, make_harness):
        """Only the node's own channels prove that its wakes arrive."""
        harness = make_harness(echo_timeout=0.02)
        harness.listener.start()
        subscription = harness.next_subscription()
        subscription.receive([])
        subscription.wait_for_rounds(2)
        assert not harness.listener.hears


class TestEcho:
    """When an echo is wanted, and the meaning of a missing one."""

    def test_an_echo_is_due_after_subscribing_and_then_after_each_silence(self, make_harness):
        """No echo is due before the subscription is open, or while an echo is expected."""
        harness = make_harness(echo_every=10.0)
        listener = harness.listener
        assert 10.0 == listener.echo_due()
        listener.echo_sent()
        listener.start()
        subscription = harness.next_subscription()
        eventually(lambda: listener.echo_due() == 0.0)
        listener.echo_sent()
        assert 10.0 == listener.echo_due()
        subscription.receive([ECHO])
        harness.next_change()
        assert 0 < listener.echo_due() <= 10.0
        listener.heard -= 20
        assert 0.0 == listener.echo_due()

    def test_a_claim_shortly_before_an_echo_is_due_sends_it(self, make_harness):
        """An echo would otherwise need a claim of its own, an extra request of an idle node."""
        harness = make_harness(echo_every=10.0)
        listener = harness.listener
        harness.start_and_hear()
        assert not listener.echo_wanted
        listener.heard -= 7
        assert not listener.echo_wanted
        listener.heard -= 2
        assert listener.echo_wanted
        assert 0 < listener.echo_due() < 2
        listener.echo_sent()
        assert not listener.echo_wanted

    def test_a_missing_echo_means_deaf_since_it_was_sent_and_subscribes_again(self, make_harness):
        """Wakes after that moment may have been lost."""
        harness = make_harness(echo_timeout=0.05)
        listener = harness.listener
        subscription = harness.start_and_hear()
        before = time.monotonic()
        listener.echo_sent()
        after = time.monotonic()
        assert isinstance(harness.next_change(), Deaf)
        assert before <= listener.deaf_since <= after
        second = harness.next_subscription()
        assert subscription.closed
        assert not listener.hears
        second.receive([ECHO])
        assert harness.next_change() is None
        assert listener.deaf_since is None

    def test_expects_no_echo_of_a_failed_claim(self, make_harness):
        """The server may never have sent that echo."""
        harness = make_harness(echo_timeout=0.05)
        subscription = harness.start_and_hear()
        harness.listener.echo_sent()
        harness.listener.echo_failed()
        subscription.wait_for_rounds(4)
        assert harness.listener.hears
        assert 0 < harness.listener.echo_due()

    def test_a_wake_proves_hearing_like_an_echo(self, make_harness):
        """Both come through the same connection."""
        harness = make_harness(echo_timeout=0.5)
        subscription = harness.start_and_hear()
        harness.listener.echo_sent()
        subscription.receive([WAKE])
        eventually(lambda: harness.listener.echo_due() > 0 and harness.listener._echo_sent is None)
        assert harness.listener.hears


class TestLoss:
    """Subscriptions that end, and attempts that fail."""

    def test_reports_a_lost_subscription_rings_and_subscribes_again(self, harness):
        """The bell makes the claimer poll, because wakes are lost meanwhile."""
        broken = ConnectionError("gone")
        subscription = harness.start_and_hear()
        harness.errors = [OSError("refused"), OSError("refused")]
        rings = harness.rings
        before = time.monotonic()
        subscription.receive(broken)
        assert broken is harness.next_change()
        since = harness.listener.deaf_since
        assert since >= before
        assert ["refused", "refused"] == [str(harness.next_change()) for _ in range(2)]
        assert since == harness.listener.deaf_since
        for _ in range(2):
            refused = harness.next_subscription()
            # The listener reports the change a moment before it closes the subscription.
            eventually(lambda subscription=refused: subscription.closed)
        third = harness.next_subscription()
        third.receive([ECHO])
        assert harness.next_change() is None
        # One ring when the subscription ended, one when the new one was open, and one for its first
        # echo. None for the attempts that failed.
        assert rings + 3 == harness.rings

    def test_a_failed_first_attempt_counts_as_tried_at_once(self, make_harness, monkeypatch):
        """A caller of join() must not wait through the pause that follows."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        harness = make_harness(errors=[PermissionError("never")], lasting=[PermissionError])
        began = time.monotonic()
        harness.listener.start()
        assert harness.listener.tried.wait(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert "never" == str(harness.next_change())
        assert harness.next_subscription().closed

    def test_reports_a_subscription_that_cannot_be_made_and_tries_again(self, harness):
        """The thread must survive errors before there is a subscription."""
        make = harness._make_subscription
        errors = [MemoryError("no memory")]

        def fail_once():
            if errors:
                raise errors.pop()
            return make()

        harness._make_subscription = fail_once
        harness.listener.start()
        assert "no memory" == str(harness.next_change())
        harness.next_subscription().receive([ECHO])
        assert harness.next_change() is None

    def test_stop_interrupts_listening_and_pauses(self, make_harness, monkeypatch):
        """leave() must not wait for either."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        listening = make_harness()
        listening.start_and_hear()
        pausing = make_harness(errors=[PermissionError()], lasting=[PermissionError])
        pausing.listener.start()
        pausing.next_change()
        for harness in (listening, pausing):
            began = time.monotonic()
            harness.stop()
            assert time.monotonic() - began < PROMPT
            assert not harness.listener.hears

    def test_after_fork_closes_the_subscription_and_the_bell(self, harness):
        """The listener thread, which would have closed them, does not exist in the child."""
        subscription = harness.start_and_hear()
        harness.stop()
        assert 1 == subscription.closed
        harness.listener._opened = subscription
        harness.listener._stop_bell = Bell()
        harness.listener.after_fork()
        assert 2 == subscription.closed
        assert harness.listener._stop_bell._pipe is None

    def test_after_fork_closes_a_subscription_that_is_being_opened(self, make_harness):
        """A child may be forked while the listener thread waits for the server."""
        stopping, closed, closed_in_child = Flag(), [], []

        class ForkingSubscription:
            """Forks and fails when it is opened, and counts how often it is closed."""

            def open(self):
                listener.after_fork()
                closed_in_child.append(len(closed))
                stopping.set()
                raise ConnectionError

            def close(self):
                closed.append(self)

        listener = make_harness(subscription=ForkingSubscription).listener
        listener._loop(stopping)
        assert [1] == closed_in_child


def test_a_listener_has_one_thread_which_ends_when_it_is_stopped():
    """A leaked thread would keep its connection."""
    harness = Harness()
    harness.start_and_hear()
    threads = [t.name for t in threading.enumerate() if t.name.startswith("dtimer-")]
    assert ["dtimer-listener"] == threads
    harness.stop()
    assert harness.listener._stop_bell._pipe is None
