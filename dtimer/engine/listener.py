"""
The listener: the pub/sub thread. It receives wakes, and rings the bell.

Rule 1: the listener ignores the content of a wake. Only its arrival matters.

Rule 2: a subscription is trusted only while it is proven to work. A half-open socket never raises
an error, so a claim now and then asks the server for an echo. An echo that arrives in time proves
the whole path. If none arrives, the node is deaf, and the listener subscribes again.

Rule 3: the listener rings the bell when a subscription ends, because the server may be down. It
also rings after each new subscription, because wakes may have been missed before it.
"""

from __future__ import annotations

import time

from dtimer import log as messages
from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.ports import ContactReports, Subscription, WakeStore
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached
from dtimer.log import Log
from dtimer.model.jitter import between

# A claim may send an echo early, by this fraction (1/5) of the time between echoes.
_EARLY = 5

# Seconds before the next attempt to subscribe: the shortest pause after the first error, the
# longest pause, and the pause after an error that an operator must fix.
_FIRST_PAUSE, _LONGEST_PAUSE, _SLOW_PAUSE = 0.05, 0.5, 5.0


class Deaf(Exception):
    """An echo that was sent did not come back."""


class Listener(Service):
    """
    Keeps a subscription open and proven, on a thread of its own.

    Args:
        name: The name of the thread.
        store: Makes subscriptions, and knows whether an error lasts until an operator fixes its
            cause. The next try is then made after 5 s.
        bell: The claimer's bell.
        contact: Learns when wakes begin to arrive, and when they stop.
        echo_every: The seconds of silence after which an echo is needed.
        timeout: The seconds within which an echo must arrive.
        log: The node's log.
    """

    def __init__(
        self,
        name: str,
        *,
        store: WakeStore,
        bell: Bell,
        contact: ContactReports,
        echo_every: float,
        timeout: float,
        log: Log,
    ) -> None:
        super().__init__(name, self._loop, self._lost, self.close)
        self._store = store
        self._bell = bell
        self._contact = contact
        self._echo_every = echo_every
        self._timeout = timeout
        self._log = log
        self._stop_bell = Bell()
        self._opened: Subscription | None = None
        self._subscribed = False
        self._echo_sent: float | None = None
        #: When a message was last received, on the monotonic clock.
        self.heard: float | None = None
        #: True while wakes are proven to arrive.
        self.hears: bool = False
        #: Since when wakes do not arrive, on the monotonic clock; None while they do.
        self.deaf_since: float | None = None
        #: Set when the first attempt to subscribe has succeeded or failed.
        self.tried: Flag = Flag()

    def echo_due(self) -> float:
        """Return the seconds until an echo is due. The claimer asks for it with a claim."""
        if not self._subscribed or self._echo_sent is not None:
            return self._echo_every
        if not self.hears or self.heard is None:
            return 0.0
        return max(0.0, self.heard + self._echo_every - time.monotonic())

    @property
    def echo_wanted(self) -> bool:
        """True if a claim made now should ask for an echo, to save a claim for the echo alone."""
        return self.echo_due() <= self._echo_every / _EARLY

    def echo_sent(self) -> None:
        """Record that an echo is under way; the time limit for it starts now."""
        if self._subscribed and self._echo_sent is None:
            self._echo_sent = time.monotonic()

    def echo_failed(self) -> None:
        """Record that the echo was probably not sent, so that its absence proves nothing."""
        self._echo_sent = None

    def stop(self) -> None:
        """See `Service.stop`."""
        super().stop()
        self._stop_bell.ring()

    def _loop(self, stopping: Flag) -> None:
        pause = _FIRST_PAUSE
        while not stopping.is_set():
            began = time.monotonic()
            subscription: Subscription | None = None
            rest = 0.0
            try:
                if armed:
                    reached("loop.listener")
                # Assigned before `open`, so that a child forked meanwhile can close it.
                self._opened = subscription = self._store.subscription()
                subscription.open()
                if armed:
                    reached("listener.subscribed")
                self._subscribed, self._echo_sent = True, None
                self.tried.set()
                self._bell.ring()
                self._listen(subscription, stopping)
            except BaseException as e:
                # After any exception: report that the node is deaf, and subscribe again.
                self._lost(e)
                if time.monotonic() - began > 10 * _LONGEST_PAUSE:
                    pause = _FIRST_PAUSE
                pause = min(pause * 2, _LONGEST_PAUSE)
                rest = _SLOW_PAUSE if self._store.needs_operator(e) else between(pause / 2, pause)
                self._log.add(messages.SUBSCRIBING_AGAIN, rest * 1000, e)
            finally:
                self._subscribed = self.hears = False
                self._opened = None
                if subscription is not None:
                    subscription.close()
                self.tried.set()
            self._stop_bell.wait(rest)

    def close(self) -> None:
        """Close the descriptors. The thread does so itself when it ends, if it was started."""
        self._stop_bell.close()

    def after_fork(self) -> None:
        """Close a forked child's copies of the descriptors. The child lacks this thread."""
        self._stop_bell.after_fork()
        if self._opened is not None:
            self._opened.close()

    def _listen(self, subscription: Subscription, stopping: Flag) -> None:
        while not stopping.is_set():
            if armed:
                reached("loop.listener")
            sent = self._echo_sent
            left = self._timeout
            if sent is not None:
                left = sent + self._timeout - time.monotonic()
                if left <= 0:
                    raise Deaf("the subscription does not hear its own echo")
            # Wait in slices, because an echo may be sent, and its time limit start, meanwhile.
            if not subscription.wait(min(left, self._timeout / 2), self._stop_bell.descriptor):
                continue
            channels = subscription.hear()
            if not channels:
                continue
            self.heard = time.monotonic()
            self._echo_sent = None
            if not self.hears:
                self.hears = True
                self.deaf_since = None
                self._contact.hearing_changed(None, None)
                self._bell.ring()
            elif any(":wake:" in channel for channel in channels):
                self._bell.ring()
                if self._log.debugging:
                    self._log.add(messages.WAKE_HEARD)

    def _lost(self, error: BaseException) -> None:
        if self.deaf_since is None:
            # A missing echo shows that the node has been deaf since the echo was sent.
            sent = self._echo_sent if isinstance(error, Deaf) else None
            self.deaf_since = sent or time.monotonic()
        ended, self._subscribed, self.hears = self._subscribed, False, False
        self._contact.hearing_changed(error, self.deaf_since)
        if ended:
            self._bell.ring()
