"""
The listener: the pub/sub thread. It hears, and rings.

Rule 1: what a wake says is not looked at; that it came is all.

Rule 2: a subscription is believed only while it is proven. Half-open sockets raise
nothing for ever, so now and then the node has an echo sent to itself, along with a
claim: heard in time it proves the way through the server, unheard it makes the node
deaf, and the subscription is made anew.

Rule 3: the bell is rung whenever a subscription ends, for the claimer to find out whether
the server has gone with it, and after each new one, for what was missed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached
from dtimer.model.jitter import between

# The part of the time between echoes by which one may be early.
_EARLY = 5

_FIRST_PAUSE, _LONGEST_PAUSE, _SLOW_PAUSE = 0.05, 0.5, 5.0


class Ear(Protocol):
    """A subscription, as the listener needs it."""

    def open(self) -> None:
        """Subscribe, or raise."""

    def wait(self, seconds: float, also: int) -> bool:
        """Wait for something to hear, or for the descriptor *also*."""
        ...

    def hear(self) -> list[str]:
        """Return the channels on which something came."""
        ...

    def close(self) -> None:
        """End the subscription."""


class Deaf(Exception):
    """An echo that was sent did not come back."""


class Listener(Service):
    """
    Args:
        name: The thread's.
        ear: Makes a subscription, not opened yet.
        ring: Rings the claimer's bell.
        changed: Told with None that the node hears, or with the error that it does not.
        slow: Whether an error needs a person, so that trying again may wait.
        echo_every: Seconds of silence after which an echo is wanted.
        patience: Seconds within which an echo has to be heard.
    """

    def __init__(
        self,
        name: str,
        *,
        ear: Callable[[], Ear],
        ring: Callable[[], None],
        changed: Callable[[BaseException | None], None],
        slow: Callable[[BaseException | None], bool],
        echo_every: float,
        patience: float,
    ) -> None:
        super().__init__(name, self._loop, self._lost, self.close)
        self._ear = ear
        self._ring = ring
        self._changed = changed
        self._slow = slow
        self._echo_every = echo_every
        self._patience = patience
        self._stop_bell = Bell()
        self._opened: Ear | None = None
        self._subscribed = False
        self._echo_sent: float | None = None
        self.heard: float | None = None
        #: True while wakes are proven to arrive.
        self.hears = False
        #: Since when they do not, on the monotonic clock; None while they do.
        self.deaf_since: float | None = None
        #: Set when the first attempt to subscribe has ended, well or not.
        self.tried = Flag()

    def echo_due(self) -> float:
        """Return the seconds until an echo is wanted; the claimer sends it, then says so."""
        if not self._subscribed or self._echo_sent is not None:
            return self._echo_every
        if not self.hears or self.heard is None:
            return 0.0
        return max(0.0, self.heard + self._echo_every - time.monotonic())

    @property
    def echo_wanted(self) -> bool:
        """Whether a turn that is taken now should send one, lest it takes a turn of its own."""
        return self.echo_due() <= self._echo_every / _EARLY

    def echo_sent(self) -> None:
        """Note that an echo is on its way, and wait for it from now on."""
        if self._subscribed and self._echo_sent is None:
            self._echo_sent = time.monotonic()

    def echo_failed(self) -> None:
        """Note that the echo was probably not sent: its silence proves nothing."""
        self._echo_sent = None

    def stop(self) -> None:
        """See `Service.stop`."""
        super().stop()
        self._stop_bell.ring()

    def _loop(self, stopping: Flag) -> None:
        pause = _FIRST_PAUSE
        while not stopping.is_set():
            began = time.monotonic()
            ear: Ear | None = None
            rest = 0.0
            try:
                if armed:
                    reached("loop.listener")
                ear = self._ear()
                ear.open()
                self._opened = ear
                if armed:
                    reached("listener.subscribed")
                self._subscribed, self._echo_sent = True, None
                self.tried.set()
                self._ring()
                self._listen(ear, stopping)
            except BaseException as e:
                # Whatever it is: who is deaf says so, and subscribes again.
                self._lost(e)
                if time.monotonic() - began > 10 * _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                pause = min(pause * 2, _LONGEST_PAUSE)
                rest = _SLOW_PAUSE if self._slow(e) else between(pause / 2, pause)
            finally:
                self._subscribed = self.hears = False
                self._opened = None
                if ear is not None:
                    ear.close()
                self.tried.set()
            self._stop_bell.wait(rest)

    def close(self) -> None:
        """Give the descriptors back; the thread does so at its end, if it was started."""
        self._stop_bell.close()

    def after_fork(self) -> None:
        """Close a forked child's copies, for which the thread that had them is missing."""
        self._stop_bell.after_fork()
        if self._opened is not None:
            self._opened.close()

    def _listen(self, ear: Ear, stopping: Flag) -> None:
        while not stopping.is_set():
            if armed:
                reached("loop.listener")
            sent = self._echo_sent
            left = self._patience
            if sent is not None:
                left = sent + self._patience - time.monotonic()
                if left <= 0:
                    raise Deaf("the subscription does not hear its own echo")
            # With no echo on its way, a slice: one may be sent while this waits.
            if not ear.wait(min(left, self._patience / 2), self._stop_bell.descriptor):
                continue
            channels = ear.hear()
            if not channels:
                continue
            self.heard = time.monotonic()
            self._echo_sent = None
            if not self.hears:
                self.hears = True
                self.deaf_since = None
                self._changed(None)
                self._ring()
            elif any(":wake:" in channel for channel in channels):
                self._ring()

    def _lost(self, error: BaseException) -> None:
        if self.deaf_since is None:
            # An echo that was not heard shows that it was deaf before it was known to be.
            sent = self._echo_sent if isinstance(error, Deaf) else None
            self.deaf_since = sent or time.monotonic()
        ended, self._subscribed, self.hears = self._subscribed, False, False
        self._changed(error)
        if ended:
            self._ring()
