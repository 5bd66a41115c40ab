"""The signals that end `DTimer.run`: caught until the node has left, and then handled as before."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol


class Signals:
    """
    SIGINT and SIGTERM, caught on the main thread, and on no other.

    A signal must not interrupt the end of a node: an exception out of its handler would leave
    things half done. So the second one only hurries that on, and is handled as it was before once
    the node has left.

    Args:
        hurry: Called, by the signal's handler, when another comes while the node leaves.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        self._caught: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._leaving = False
        self._before: dict[int, Any] = {}

    def catch(self) -> None:
        """Catch the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell starts a background job with SIGINT ignored: Ctrl-C is not for that.
            if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._caught.put(number)
        if self._leaving:
            self._hurry()

    def wait(self, seconds: float) -> bool:
        """Wait for a signal, at most so many *seconds*; return whether there was one."""
        try:
            self._caught.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def leaving(self) -> None:
        """Have the next signal, or one that has come already, hurry the node on."""
        self._leaving = True
        if not self._caught.empty():
            self._hurry()

    def put_back(self) -> None:
        """Handle signals as before, and so the one that came while the node left."""
        try:
            self._restore()
        finally:
            # A signal may come as soon as the first handler is restored, and that handler raise.
            self._restore()
        if not self._caught.empty():
            signal.raise_signal(self._caught.get())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None is one that was not installed by Python, which cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Node(Protocol):
    """What is run until a signal comes."""

    @property
    def joined(self) -> bool:
        """True while it has joined."""
        ...

    def join(self) -> None:
        """Join."""

    def leave(self) -> None:
        """Leave, once running handlers have ended."""

    def hurry(self) -> None:
        """Have a `leave` that waits for handlers wait no longer."""


def run(node: Node) -> None:
    """See `DTimer.run`."""
    signals = Signals(node.hurry)
    try:
        # First of all, for a signal that comes while it joins.
        signals.catch()
        node.join()
        while node.joined and not signals.wait(0.5):
            pass
    finally:
        try:
            signals.leaving()
            node.leave()
        finally:
            signals.put_back()
