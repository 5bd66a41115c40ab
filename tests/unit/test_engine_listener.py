"""The listener, with a fake subscription: when it hears, when it is deaf, and its reports."""

from __future__ import annotations

import queue
import select
import threading
import time

import pytest
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.listener import Deaf, Listener

LONG = 3_600.0  # seconds: longer than any test


class FakeEar:
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


class Ears:
    """A listener, the subscriptions it makes, and the changes it reports."""

    def __init__(self, *, echo_every=LONG, patience=LONG, fails=(), slow=()):
        self._fails = list(fails)
        self._made = queue.SimpleQueue()
        self.changes = queue.SimpleQueue()
        self.rings = 0
        self.listener = Listener(
            "dtimer-listener",
            ear=self._make,
            ring=self._ring,
            changed=self.changes.put,
            slow=lambda e: isinstance(e, tuple(slow)),
            echo_every=echo_every,
            patience=patience,
        )

    def _make(self):
        ear = FakeEar(self._fails.pop(0) if self._fails else None)
        self._made.put(ear)
        return ear

    def _ring(self):
        self.rings += 1

    def next(self):
        """Return the next subscription that the listener makes."""
        return self._made.get(timeout=PATIENCE)

    def change(self):
        """Return the next change that the listener reports."""
        return self.changes.get(timeout=PATIENCE)


@pytest.fixture
def ears():
    made = []

    def build(**options):
        ears = Ears(**options)
        made.append(ears.listener)
        return ears

    yield build
    for listener in made:
        listener.stop()
        assert listener.join(PATIENCE)
        listener.close()


def proven(ears):
    """Start the listener and let it receive its first echo; return the subscription."""
    ears.listener.start()
    ear = ears.next()
    ear.say(["ns:echo:me"])
    assert ears.change() is None
    return ear


class TestHearing:
    """The listener trusts a subscription once it has received a message through it."""

    def test_hears_only_after_the_first_echo(self, ears):
        """
        A subscription that stands may still deliver nothing.

        It rings at once, because a wake may have been missed before.
        """
        ears = ears()
        ears.listener.start()
        ear = ears.next()
        assert ears.listener.tried.wait(PATIENCE)
        eventually(lambda: ears.rings == 1)
        assert not ears.listener.hears
        ear.say(["ns:echo:me"])
        assert ears.change() is None
        assert ears.listener.hears
        assert ears.listener.deaf_since is None
        assert time.monotonic() - ears.listener.heard < PATIENCE

    def test_a_wake_rings_and_an_expected_echo_does_not(self, ears):
        """An echo proves only that the node hears."""
        ears = ears()
        ear = proven(ears)
        eventually(lambda: ears.rings == 2)
        ear.say(["ns:echo:me"])
        ear.say(["ns:wake:me"])
        eventually(lambda: ears.rings == 3)
        ear.say(["ns:echo:me", "ns:wake:me"])
        eventually(lambda: ears.rings == 4)

    def test_silence_without_an_expected_echo_does_not_mean_deaf(self, ears):
        """There may simply be nothing to hear."""
        ears = ears(patience=0.004)
        ear = proven(ears)
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 5)
        assert ears.listener.hears
        assert not ear.closed

    def test_messages_on_other_channels_do_not_prove_hearing(self, ears):
        """Only the node's own channels prove that its wakes arrive."""
        ears = ears(patience=0.02)
        ears.listener.start()
        ear = ears.next()
        ear.say([])
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 2)
        assert not ears.listener.hears


class TestEcho:
    """When an echo is wanted, and the meaning of a missing one."""

    def test_an_echo_is_due_after_subscribing_and_then_after_each_silence(self, ears):
        """None is due before the subscription stands, or while one is expected."""
        ears = ears(echo_every=10.0)
        listener = ears.listener
        assert 10.0 == listener.echo_due()
        listener.echo_sent()
        listener.start()
        ear = ears.next()
        eventually(lambda: listener.echo_due() == 0.0)
        listener.echo_sent()
        assert 10.0 == listener.echo_due()
        ear.say(["ns:echo:me"])
        ears.change()
        assert 0 < listener.echo_due() <= 10.0
        listener.heard -= 20
        assert 0.0 == listener.echo_due()

    def test_a_claim_shortly_before_an_echo_is_due_sends_it(self, ears):
        """
        An echo seldom needs a claim of its own then, which would cost an idle node
        extra requests.
        """
        ears = ears(echo_every=10.0)
        listener = ears.listener
        proven(ears)
        assert not listener.echo_wanted
        listener.heard -= 7
        assert not listener.echo_wanted
        listener.heard -= 2
        assert listener.echo_wanted
        assert 0 < listener.echo_due() < 2
        listener.echo_sent()
        assert not listener.echo_wanted

    def test_a_missing_echo_means_deaf_since_it_was_sent_and_subscribes_again(self, ears):
        """Wakes after that moment may have been lost."""
        ears = ears(patience=0.05)
        listener = ears.listener
        ear = proven(ears)
        before = time.monotonic()
        listener.echo_sent()
        after = time.monotonic()
        assert isinstance(ears.change(), Deaf)
        assert before <= listener.deaf_since <= after
        second = ears.next()
        assert ear.closed
        assert not listener.hears
        second.say(["ns:echo:me"])
        assert ears.change() is None
        assert listener.deaf_since is None

    def test_expects_no_echo_of_a_failed_claim(self, ears):
        """The server may never have sent that echo."""
        ears = ears(patience=0.05)
        ear = proven(ears)
        ears.listener.echo_sent()
        ears.listener.echo_failed()
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 4)
        assert ears.listener.hears
        assert 0 < ears.listener.echo_due()

    def test_a_wake_proves_hearing_like_an_echo(self, ears):
        """Both come through the same connection."""
        ears = ears(patience=0.5)
        ear = proven(ears)
        ears.listener.echo_sent()
        ear.say(["ns:wake:me"])
        eventually(lambda: ears.listener.echo_due() > 0 and ears.listener._echo_sent is None)
        assert ears.listener.hears


class TestLoss:
    """Subscriptions that end, and attempts that fail."""

    def test_reports_a_lost_subscription_rings_and_subscribes_again(self, ears):
        """The bell makes the claimer poll, because wakes are lost meanwhile."""
        broken = ConnectionError("gone")
        ears = ears()
        ear = proven(ears)
        ears._fails = [OSError("refused"), OSError("refused")]
        rings = ears.rings
        before = time.monotonic()
        ear.say(broken)
        assert broken is ears.change()
        since = ears.listener.deaf_since
        assert since >= before
        assert ["refused", "refused"] == [str(ears.change()) for _ in range(2)]
        assert since == ears.listener.deaf_since
        for _ in range(2):
            refused = ears.next()
            # The listener reports the change a moment before it closes the subscription.
            eventually(lambda ear=refused: ear.closed)
        third = ears.next()
        third.say(["ns:echo:me"])
        assert ears.change() is None
        # One ring when the subscription ended, one when the new one stood, and one for its first
        # echo. None for the attempts that failed.
        assert rings + 3 == ears.rings

    def test_a_failed_first_attempt_counts_as_tried_at_once(self, ears, monkeypatch):
        """A caller of join() must not wait through the pause that follows."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        ears = ears(fails=[PermissionError("never")], slow=[PermissionError])
        began = time.monotonic()
        ears.listener.start()
        assert ears.listener.tried.wait(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert "never" == str(ears.change())
        assert ears.next().closed

    def test_reports_a_subscription_that_cannot_be_made_and_tries_again(self, ears):
        """The thread must survive errors before there is a subscription."""
        ears = ears()
        make = ears.listener._ear
        broken = [MemoryError("no ear")]

        def fail():
            if broken:
                raise broken.pop()
            return make()

        ears.listener._ear = fail
        ears.listener.start()
        assert "no ear" == str(ears.change())
        ears.next().say(["ns:echo:me"])
        assert ears.change() is None

    def test_stop_interrupts_listening_and_pauses(self, ears, monkeypatch):
        """leave() must not wait for either."""
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        listening = ears()
        proven(listening)
        resting = ears(fails=[PermissionError()], slow=[PermissionError])
        resting.listener.start()
        resting.change()
        for each in (listening, resting):
            began = time.monotonic()
            each.listener.stop()
            assert each.listener.join(PATIENCE)
            assert time.monotonic() - began < PROMPT
            assert not each.listener.hears

    def test_after_fork_closes_the_subscription_and_the_bell(self, ears):
        """The listener thread, which would have closed them, does not exist in the child."""
        ears = ears()
        ear = proven(ears)
        ears.listener.stop()
        assert ears.listener.join(PATIENCE)
        assert 1 == ear.closed
        ears.listener._opened = ear
        ears.listener._stop_bell = Bell()
        ears.listener.after_fork()
        assert 2 == ear.closed
        assert ears.listener._stop_bell._pipe is None

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
            ear=Opening,
            ring=lambda: None,
            changed=lambda error: None,
            slow=lambda error: False,
            echo_every=1.0,
            patience=1.0,
        )
        listener._loop(stopping)
        assert [1] == in_child


def test_has_one_thread_which_ends_with_it():
    """A leaked thread would keep its connection."""
    ears = Ears()
    proven(ears)
    assert ["dtimer-listener"] == [
        t.name for t in threading.enumerate() if t.name.startswith("dtimer-")
    ]
    ears.listener.stop()
    assert ears.listener.join(PATIENCE)
    assert ears.listener._stop_bell._pipe is None
