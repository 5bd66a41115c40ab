"""Handle forks and exits of the process for all its timers, and check that a node can run in it."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import weakref
from typing import Any, NoReturn, Protocol

from dtimer.engine.service import on_service_thread


class Watched(Protocol):
    """A timer that is called when the process forks or exits."""

    def _at_exit(self) -> None:
        """Called before the interpreter exits. Running threads still run."""

    def _after_fork(self) -> None:
        """Called in a forked child, which has none of its parent's threads."""


def why_no_node() -> str | None:
    """Return why no node can join in this process; None if a node can join."""
    if sys.platform == "win32":
        return (
            "dtimer's nodes do not run on Windows, where select cannot wait for a pipe;"
            " posting works. Join on Linux, macOS, or in WSL"
        )
    return _why_not_uwsgi(sys.modules.get("uwsgi")) or _why_not_patched()


def _why_not_uwsgi(uwsgi: Any) -> str | None:
    if not getattr(uwsgi, "has_threads", True):
        return "uWSGI runs no threads here: start it with enable-threads"
    facts = {
        name: getattr(uwsgi, name, lambda: None)()
        for name in ("worker_id", "masterpid", "mule_id", "i_am_the_spooler")
    }
    if facts["worker_id"] != 0 or facts["mule_id"] or facts["i_am_the_spooler"]:
        return None
    if facts["masterpid"] or getattr(uwsgi, "numproc", 1) > 1:
        # The workers would inherit locks that threads of this process hold, but not the threads.
        return (
            "this process of uWSGI is about to fork its workers: join in each of them, in a"
            " function with @postfork (of uwsgidecorators), or load the application there with"
            " lazy-apps = true"
        )
    return None


def _why_not_patched() -> str | None:
    patched = getattr(sys.modules.get("eventlet.patcher"), "is_monkey_patched", None)
    if patched is not None and any(map(patched, ("thread", "socket", "select"))):
        # All greenlets stop while one of them waits for a SimpleQueue.
        return "eventlet has replaced the modules that threads need: use gevent, or neither"
    patched = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    waits = ("socket", "select", "queue")
    if patched is not None and any(map(patched, waits)) and not patched("threading"):
        return (
            "gevent has replaced sockets but not threads, so a thread that waits stops all the"
            " others: call gevent.monkey.patch_all() without thread=False, or do not patch"
        )
    return None


def end_child(error: BaseException | None) -> NoReturn:
    """
    End a process that a listener has forked, after the listener has ended.

    The child's only thread is a copy of a thread of the node. It must not continue, because the
    parent does that work. As in a child of ``multiprocessing``, functions registered with
    ``atexit`` are not called, because the parent has registered them.

    Args:
        error: The exception of the listener, or None. ``SystemExit`` provides the exit status.
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


def end_child_of_listener(pid: int, error: BaseException | None) -> None:
    """
    End this process if user code has forked it on a thread of a node; otherwise do nothing.

    A child that was forked on a thread of the user continues there, as after any other fork.

    Args:
        pid: The process that called the user code.
        error: See `end_child`.
    """
    if os.getpid() != pid and on_service_thread():
        end_child(error)


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(timer: Watched) -> None:
    """Call *timer* when this process forks or exits, unless the timer is gone by then."""
    _watched.add(timer)


def _at_exit() -> None:
    for timer in list(_watched):
        timer._at_exit()  # noqa: SLF001 - a user of the timer must not see it


def _after_fork_in_child() -> None:
    for timer in list(_watched):
        timer._after_fork()  # noqa: SLF001


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
