"""What happens to a whole process, and so to each of its timers: it forks, and it ends."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol


class Watched(Protocol):
    """Who wants to know."""

    def at_exit(self) -> None:
        """The interpreter is about to end; threads that run still run."""

    def after_fork(self) -> None:
        """This is a forked child, with none of its parent's threads."""


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(timer: Watched) -> None:
    """Tell *timer* when this process forks or ends, for as long as it lives."""
    _watched.add(timer)


def _at_exit() -> None:
    for timer in list(_watched):
        timer.at_exit()


def _after_fork_in_child() -> None:
    for timer in list(_watched):
        timer.after_fork()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
