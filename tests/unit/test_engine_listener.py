"""The listener, with an ear of the test's own: when it hears, when it is deaf, what it says."""

from __future__ import annotations

import queue
import select
import threading
import time

import pytest
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.bell import Bell
from dtimer.engine.listener import Deaf, Listener

LONG = 3_600.0  # seconds; no test is there to see it


class FakeEar:
    """A subscription into which the test speaks."""

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
        """Have these channels heard, or this exception raised."""
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
    """Makes the ears of a listener, and keeps what it says."""

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
        """The next ear that is made."""
        return self._made.get(timeout=PATIENCE)

    def change(self):
        """The next change that is told of."""
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
    """Start, and let it hear its first echo; return the ear."""
    ears.listener.start()
    ear = ears.next()
    ear.say(["ns:echo:me"])
    assert ears.change() is None
    return ear


class TestHearing:
    """A subscription is believed once something was heard through it."""

    def test_subscribed_is_not_proven(self, ears):
        """After subscribing it rings, but says that it hears only with the first echo."""
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

    def test_each_wake_rings(self, ears):
        """A wake rings the bell; an echo that only confirms what is known does not."""
        ears = ears()
        ear = proven(ears)
        eventually(lambda: ears.rings == 2)
        ear.say(["ns:echo:me"])
        ear.say(["ns:wake:me"])
        eventually(lambda: ears.rings == 3)
        ear.say(["ns:echo:me", "ns:wake:me"])
        eventually(lambda: ears.rings == 4)

    def test_silence_is_no_deafness(self, ears):
        """As long as no echo is on its way, hearing nothing means nothing."""
        ears = ears(patience=0.004)
        ear = proven(ears)
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 5)
        assert ears.listener.hears
        assert not ear.closed

    def test_nothing_but_noise(self, ears):
        """What comes on no channel of ours is not taken for hearing."""
        ears = ears(patience=0.02)
        ears.listener.start()
        ear = ears.next()
        ear.say([])
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 2)
        assert not ears.listener.hears


class TestEcho:
    """When an echo is wanted, and what its absence means."""

    def test_when_it_is_due(self, ears):
        """
        Not before the subscription stands; then at once; not again while one is on its
        way; then after so much silence.
        """
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

    def test_rather_early_than_alone(self, ears):
        """
        It is sent by a turn that is taken a little before it is due: so it seldom needs one of
        its own, which an idle node would be dearer by.
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

    def test_an_echo_that_does_not_come(self, ears):
        """
        An echo that is not heard in time makes the node deaf from the time on at which it
        was sent, and the subscription is made anew.
        """
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

    def test_an_echo_that_was_not_sent(self, ears):
        """An echo of which it is not known that it was sent proves nothing by its silence."""
        ears = ears(patience=0.05)
        ear = proven(ears)
        ears.listener.echo_sent()
        ears.listener.echo_failed()
        waits = ear.waits
        eventually(lambda: ear.waits > waits + 4)
        assert ears.listener.hears
        assert 0 < ears.listener.echo_due()

    def test_any_word_will_do(self, ears):
        """A wake proves the way as well as an echo does."""
        ears = ears(patience=0.5)
        ear = proven(ears)
        ears.listener.echo_sent()
        ear.say(["ns:wake:me"])
        eventually(lambda: ears.listener.echo_due() > 0 and ears.listener._echo_sent is None)
        assert ears.listener.hears


class TestLoss:
    """Subscriptions that end, and such as never were."""

    def test_made_anew(self, ears):
        """A subscription that ends is told of, rings, and is made anew until it stands."""
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
            # The listener tells of it a moment before.
            eventually(lambda ear=refused: ear.closed)
        third = ears.next()
        third.say(["ns:echo:me"])
        assert ears.change() is None
        # For the one that ended, the one that stands, and its first echo: not for those
        # that never stood.
        assert rings + 3 == ears.rings

    def test_the_first_attempt_fails(self, ears, monkeypatch):
        """
        A first attempt that fails counts as tried, at once: whoever joins does not wait
        for the pause that follows.
        """
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 10.0 * LIMIT)
        ears = ears(fails=[PermissionError("never")], slow=[PermissionError])
        began = time.monotonic()
        ears.listener.start()
        assert ears.listener.tried.wait(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert "never" == str(ears.change())
        assert ears.next().closed

    def test_an_ear_that_cannot_be_made(self, ears):
        """Also what goes wrong before there is an ear is told, and tried again."""
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

    def test_stop_ends_every_wait(self, ears, monkeypatch):
        """stop() is heard while it listens, and while it rests after an error."""
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

    def test_in_a_forked_child(self, ears):
        """after_fork() closes what the thread that is missing there would have closed."""
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


def test_it_never_asks_for_a_thread_twice():
    """The listener's own thread is one, named after it, and gone after its end."""
    ears = Ears()
    proven(ears)
    assert ["dtimer-listener"] == [
        t.name for t in threading.enumerate() if t.name.startswith("dtimer-")
    ]
    ears.listener.stop()
    assert ears.listener.join(PATIENCE)
    assert ears.listener._stop_bell._pipe is None
