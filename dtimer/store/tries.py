"""The ways to try a call once: whole, in two halves, and with its copies waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from dtimer.errors import StoreError
from dtimer.store.cluster import ClusterWire
from dtimer.store.faults import Fate, fate
from dtimer.store.scripts import Script
from dtimer.store.wire import Argument, Wire, is_a_reply

# How late the server may be to notice that a time-out is over.
_OVERSHOOT = 0.1

AnyWire = Wire | ClusterWire


def run(
    wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float, limit: float
) -> Any:
    """Run a script by its name, or whole where the server does not know it."""
    try:
        return wire.run(script, arguments, until, limit)
    except Exception as e:
        if fate(e, wire.sent) is not Fate.NO_SCRIPT:
            raise
    # Nothing ran: a server that was restarted, promoted, or told SCRIPT FLUSH.
    return run_whole(wire, script, arguments, until, limit)


def receive(
    wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float, limit: float
) -> Any:
    """Return the reply to a script that was sent, as `run` does."""
    try:
        return wire.receive(until, limit)
    except Exception as e:
        if fate(e, wire.sent) is not Fate.NO_SCRIPT:
            raise
    return run_whole(wire, script, arguments, until, limit)


def run_whole(
    wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float, limit: float
) -> Any:
    """Run a script that is sent itself, and not its name."""
    return wire.run(script, arguments, until, limit, whole=True)


class Copied:
    """
    An operation, and how many replicas have it: two steps, of which the second may fail.

    Tried again, both are: the operation is remembered by the server and does not act twice,
    but is written anew, because a connection waits for the copies of its own writes.
    """

    def __init__(self, replicas: int, deadline: float) -> None:
        self._replicas = replicas
        self._deadline = deadline
        #: True when the operation was done, for certain.
        self.done = False
        self.reply: Any = None
        self.acknowledged = 0
        #: Why nobody could be asked.
        self.error: StoreError | None = None

    def run(
        self,
        wire: AnyWire,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float,
    ) -> None:
        """Take both steps, on one connection."""
        reply = run(wire, script, arguments, until, limit)
        if not self.done:
            # What a repetition says is shorter.
            self.done, self.reply = True, reply
        left = self._deadline - time.monotonic()
        # The server looks a few times a second whose wait is over; the reply needs time, too.
        wait = max(left / 4, 0.9 * left - _OVERSHOOT, 0.001)
        self.acknowledged = wire.wait(self._replicas, round(wait * 1000), self._deadline)


class Asked:
    """
    A call in a single try whose reply nobody has read yet. Somebody has to, once.

    Args:
        wire: Nobody else's until then.
        script: To be run.
        arguments: Its arguments.
        lasts: For how many seconds the try lasts where no byte of the reply arrives, and
        longest: for how many where some do.
        end: Called when the wire is free again, and with whether it is to be closed.
    """

    def __init__(
        self,
        wire: AnyWire,
        script: Script,
        arguments: Sequence[Argument],
        *,
        lasts: float,
        longest: float,
        end: Callable[[bool], None],
    ) -> None:
        self._wire = wire
        self._script = script
        self._arguments = arguments
        self._lasts = lasts
        self._longest = longest
        self._began = time.monotonic()
        self._end = end
        #: How many bytes had arrived of a reply that broke off; 0 where none did.
        self.arrived = 0
        try:
            wire.send(script, arguments, self._began + lasts, self._began + longest)
        except BaseException as e:
            self._over(e)
            raise

    def _over(self, error: BaseException | None) -> None:
        # What was broken off may have left a reply unread, for the next call to take for its own.
        replied = error is None or is_a_reply(error)
        misled = error is not None and fate(error, self._wire.sent) is Fate.RECONNECT
        self._end(misled or not replied)

    def answer(self, *, lay: bool = False) -> Any:
        """
        Return the reply, waiting for it until the try is over.

        Where something else was done since it was sent, and it *lay*, the try begins now.

        Raises:
            Exception: whatever the client library raises, translated by nobody.
        """
        error: BaseException | None = None
        try:
            began = time.monotonic() if lay else self._began
            until, limit = began + self._lasts, began + self._longest
            return receive(self._wire, self._script, self._arguments, until, limit)
        except BaseException as e:
            error = e
            # Before the wire is another caller's.
            self.arrived = self._wire.arrived
            raise
        finally:
            self._over(error)
