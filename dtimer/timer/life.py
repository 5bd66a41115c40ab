"""
One joined life of a node, from join to leave: the store and the engine, put together.

A node that joins again is another life, with another incarnation, threads and bell.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection
from typing import Any

from dtimer.engine.bell import Bell
from dtimer.engine.claimer import Claimer
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.flag import Flag
from dtimer.engine.herald import Herald
from dtimer.engine.listener import Listener
from dtimer.engine.service import Service
from dtimer.errors import StateRollback, StoreError, UsageError
from dtimer.model.event import Health
from dtimer.model.names import incarnation
from dtimer.model.options import Options
from dtimer.store.store import Store
from dtimer.timer import vetting
from dtimer.timer.contact import Contact
from dtimer.timer.ledger import Ledger
from dtimer.timer.presence import PATIENCE, Presence
from dtimer.timer.turns import Turns
from dtimer.timer.voice import Voice

# An echo after this much silence, in seconds, or five polls where those are quicker.
_ECHO_EVERY = 5.0


class Life:
    """
    The threads of a joined node, and its place in the namespace.

    Args:
        id: The node's.
        options: The node's.
        store: For everything but the subscription.
        voice: Reaches the emitter.
    """

    def __init__(
        self,
        id: str,
        options: Options,
        store: Store,
        voice: Voice,
    ) -> None:
        self.incarnation = incarnation()
        self._options = options
        self._store = store
        self._voice = voice
        self._pid = os.getpid()
        self._over = Flag()
        # The thread that starts it, which cannot wait for its end meanwhile.
        self._starter: int | None = threading.get_ident()
        #: Whether all has been started, and whether the end has been asked for.
        self.begun = self.leaving = False
        self._presence = Presence(id, voice.listens)
        self._turns = Turns(store, self.incarnation, self._presence.entry, options)
        self.bell = Bell()
        self._herald = Herald(f"dtimer-herald-{id}", self._say)
        self._registered = False
        self._contact = Contact(
            store,
            self._herald.announce,
            answered=lambda: self._claimer.answered,
            deaf_since=lambda: self._listener.deaf_since,
        )
        timeout = options.timeout / 1e6
        self._listener = Listener(
            f"dtimer-listener-{id}",
            ear=lambda: store.ear(self.incarnation),
            ring=self.bell.ring,
            changed=self._contact.hearing_changed,
            slow=store.slow,
            echo_every=max(0.25, min(_ECHO_EVERY, 5 * options.poll_interval / 1e6)),
            patience=timeout,
        )
        self._dispatcher = Dispatcher(
            f"dtimer-{id}",
            node=id,
            options=options,
            handle=voice.handle,
            announce=self._herald.announce,
            ring=self._relay,
            alone=self._turns.alone,
            ledger=Ledger(store, self._over.is_set, voice),
            quit=lambda: self.stop(None),
        )
        self._claimer = Claimer(
            f"dtimer-claimer-{id}",
            turns=self._turns,
            bell=self.bell,
            listener=self._listener,
            dispatcher=self._dispatcher,
            options=options,
            appetite=voice.appetite,
            changed=self._contact.reach_changed,
            announce=self._herald.announce,
            farewell=self._farewell,
        )

    def _relay(self) -> None:
        self._claimer.relay()

    def _say(self, event: str, *arguments: Any) -> None:
        """Emit what was announced; on the herald's thread, which may ask Redis."""
        if event != "buried":
            self._voice.announce(event, *arguments)
            return
        with contextlib.suppress(StoreError):
            # None: it was revived, purged or trimmed meanwhile, and is no news any more.
            if letter := self._store.letter(arguments[0]):
                kind = "expired" if letter.reason == "expired" else "dead"
                self._voice.announce(kind, letter)

    def rolled_back(self, error: StateRollback) -> None:
        """Say so, and set right soon what this node can set right."""
        self._turns.rolled_back(error)
        self._herald.announce("error", error)
        self.bell.ring()

    def superseding(self, ids: Collection[str], *, posted: bool) -> None:
        """Note that this process posts, or has posted, events of these ids anew."""
        if not posted:
            self._dispatcher.superseded(ids)
            self._dispatcher.reposts.add(ids)
        elif self._dispatcher.drop(ids):
            # Not a turn on this thread, as on a hand's: it is the poster's own.
            self.bell.ring()

    # Beginning

    def start(self) -> None:
        """
        Register, subscribe, and take the first turn.

        Ends early if the end is asked for meanwhile, as by a signal handler that interrupts it.

        Raises:
            StoreError: Redis is not there; nothing is left running.
        """
        try:
            for step in (self._register, self._set_off, self._first_turn):
                if self.leaving:
                    break
                step()
            if self.leaving and not self._claimer.started:
                self._farewell()
        except BaseException:
            # Also an interrupt by the user, or a process that can have no more threads.
            self.stop(0)
            if self._claimer.started:
                self._claimer.join(2 * self._options.timeout / 1e6)
            else:
                self._farewell()
            raise
        finally:
            self._starter = None
        if not self.leaving:
            self.begun = True
            self._herald.announce("ready")
            self._herald.later(PATIENCE, self._show_listening)

    def listened(self, *, more: bool) -> None:
        """Note that there is one more listener of ``'event'``, or one less."""
        self.bell.ring()
        if not more or not self._presence.listening:
            self._herald.later(0.0 if more else PATIENCE, self._show_listening)

    def _show_listening(self) -> None:
        if not self.leaving and self._presence.outdated():
            with contextlib.suppress(StoreError):
                self._store.describe(self.incarnation, self._presence.entry())

    def _register(self) -> None:
        vetting.server(self._store)
        try:
            self._turns.register()
            self._registered = True
        except StoreError as e:
            if self._store.slow(e):
                # The first thing that was refused may not be the only one.
                vetting.permissions(self._store)
            raise
        vetting.permissions(self._store)

    def _set_off(self) -> None:
        # A clock of a test rings when it is moved.
        if attach := getattr(self._options.now, "attach", None):
            attach(self.bell.ring)
        self._herald.start()
        self._dispatcher.start()
        self._listener.start()
        # Subscribed before the first claim, so that no wake falls between. Where
        # subscribing is not possible the node polls, and says so.
        self._listener.tried.wait(2 * self._options.timeout / 1e6)

    def _first_turn(self) -> None:
        self._claimer.start()
        if self.leaving:
            # Asked for before the thread had the flag that stops it.
            self._claimer.stop()
            return
        self._claimer.reach.tried.wait(2 * self._options.timeout / 1e6)
        reached = self._claimer.answered is not None or self._claimer.capacity.error is not None
        if not (reached or self.leaving):
            error = self._claimer.reach.error
            if error is None:
                raise UsageError("the threads of the node do not run, or far too slowly")
            raise StoreError(f"Redis went away while joining: {error}") from error
        self._contact.say_if_deaf()

    # End

    def stop(self, timeout: float | None) -> None:
        """Ask for the end, running handlers given *timeout* seconds. Does not wait."""
        self._claimer.stop_within(timeout)
        # Only then: a join() out of a signal handler would wait for an end that nobody brings.
        self.leaving = True
        if self._starter is not None:
            self._claimer.stop_within(None)  # It may have been started meanwhile.

    def wait(self, timeout: float | None = None) -> bool:
        """
        Wait for the end, and return whether it has come.

        A thread of the node does not wait for itself, nor does the one that starts it: the end
        comes when it returns.
        """
        own = (self._claimer, self._dispatcher, self._herald, self._listener)
        if self._starter == threading.get_ident() or any(part.current for part in own):
            return self._over.is_set()
        return self._over.wait(timeout)

    def _farewell(self) -> None:
        """The last act of the claimer's thread, or of the caller where it never was."""
        try:
            if self._registered and self._claimer.reach.error is None:
                # Where Redis does not answer the registration ends by itself.
                with contextlib.suppress(StoreError):
                    self._store.leave(self.incarnation)
            self._listener.stop()
            self._dispatcher.stop()
            self._herald.stop()
            self._listener.join(self._options.timeout / 1e6)
            # A hand may still be at work when the deadline has passed; the others end now.
            self._dispatcher.join_idle(max(1.0, self._options.timeout / 1e6))
            self._herald.join(1.0)
            # Last, because listeners may post whatever they like until then.
            self._store.release()
        finally:
            if not self._listener.started:
                self._listener.close()
            self.bell.close()
            self._over.set()

    def after_fork(self) -> None:
        """Close, in a forked child, what the threads that it has not would have closed."""
        self.bell.after_fork()
        self._listener.after_fork()

    # Looking

    @property
    def max_events(self) -> int:
        """How many events are handed to a handler at a time, from the next batch on."""
        return self._dispatcher.max_events

    @max_events.setter
    def max_events(self, value: int) -> None:
        self._dispatcher.max_events = value
        self.bell.ring()

    @property
    def over(self) -> bool:
        """True when everything has ended."""
        return self._over.is_set()

    def _services(self) -> list[Service]:
        return [self._claimer, self._listener, self._herald, *self._dispatcher.hands]

    def health(self) -> Health:
        """See `DTimer.health`."""
        now = time.monotonic()
        answered, heard = self._claimer.answered, self._listener.heard
        age = None if answered is None else (now - answered) * 1000
        # Between two turns lies a poll at most, then a try, then a pause.
        fresh = age is not None and age < self._options.poll_interval / 1e3 + 1_000
        deaf = not self._listener.hears
        failing = [s.failure for s in self._services() if s.failure is not None]
        slow = self._claimer.capacity.error
        error = self._claimer.reach.error or slow or (failing[0] if failing else None)
        return Health(
            ok=fresh and error is None and not deaf,
            joined=True,
            deaf=deaf,
            claim_age_ms=age,
            heard_age_ms=None if heard is None else (now - heard) * 1000,
            handlers=self._dispatcher.running,
            stuck=self._dispatcher.stuck(),
            error=None if error is None else str(error) or repr(error),
            restarts=sum(s.failures for s in self._services()),
            listening=self._voice.listens(),
            dropped=self._herald.dropped,
        )
