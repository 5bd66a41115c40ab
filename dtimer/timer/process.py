"""What happens to a whole process, and so to each of its timers: it forks, and it ends."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import warnings
import weakref
from typing import Any, NoReturn, Protocol


class Watched(Protocol):
    """Who wants to know."""

    def at_exit(self) -> None:
        """The interpreter is about to end; threads that run still run."""

    def after_fork(self) -> None:
        """This is a forked child, with none of its parent's threads."""


def why_no_node() -> str | None:
    """Return why no node can join in this process; None where one can."""
    if sys.platform == "win32":
        return (
            "dtimer's nodes do not run on Windows, where select cannot wait for a pipe;"
            " posting works. Join on Linux, macOS, or in WSL"
        )
    return _why_not_uwsgi(sys.modules.get("uwsgi")) or _why_not_patched()


def _why_not_uwsgi(uwsgi: Any) -> str | None:
    if not getattr(uwsgi, "has_threads", True):
        return "uWSGI runs no threads here: start it with enable-threads"
    asked = {
        name: getattr(uwsgi, name, lambda: None)()
        for name in ("worker_id", "masterpid", "mule_id", "i_am_the_spooler")
    }
    if asked["worker_id"] != 0 or asked["mule_id"] or asked["i_am_the_spooler"]:
        return None
    if asked["masterpid"] or getattr(uwsgi, "numproc", 1) > 1:
        # The workers would inherit the locks of its threads, and not the threads.
        return (
            "this process of uWSGI is about to fork its workers: join in each of them, in a"
            " function with @postfork (of uwsgidecorators), or load the application there with"
            " lazy-apps = true"
        )
    return None


def _why_not_patched() -> str | None:
    patched = getattr(sys.modules.get("eventlet.patcher"), "is_monkey_patched", None)
    if patched is not None and any(map(patched, ("thread", "socket", "select"))):
        # Its greenlets stop altogether where one of them waits for a SimpleQueue.
        return "eventlet has replaced what threads wait with: use gevent, or none"
    patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    waits = ("socket", "select", "queue")
    if patched is not None and any(map(patched, waits)) and not patched("threading"):
        return (
            "gevent has replaced sockets and not threads, so a thread that waits stops the"
            " others: call gevent.monkey.patch_all() without thread=False, or no patch at all"
        )
    return None


def end_child(error: BaseException | None) -> NoReturn:
    """
    End this process, which a listener has forked, now that the listener has ended.

    It has one thread, the copy of one of the library's, with nothing to go back to: the work of
    that thread is the parent's. As in a child of ``multiprocessing`` nothing that was registered
    with ``atexit`` is called, because the parent has registered it.

    Args:
        error: What the listener has raised: ``SystemExit`` has the exit status.
    """
    status = 1
    try:
        if error is None:
            status = 0
        elif isinstance(error, SystemExit):
            status = _status(error.code)
        else:
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(status)


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1


class Ending(Protocol):
    """A life, as it is met when its timer is gone."""

    leaving: bool

    def stop(self, timeout: float | None) -> None:
        """Ask for the end."""


def forgotten(life: Ending, id: str) -> None:
    """End what a timer has left behind that was dropped while joined, and say so."""
    if life.leaving:
        # By itself: a handler called leave, and nobody has waited for the end.
        return
    life.stop(0)
    warnings.warn(
        f"the node {id!r} was dropped while joined; call leave()", ResourceWarning, stacklevel=2
    )


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
