"""Use a timer from asyncio: a coroutine function as handler, and calls from coroutines."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import wait
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from dtimer.errors import OptionError, UsageError
from dtimer.model.event import Event
from dtimer.model.times import Duration
from dtimer.timer import DTimer

P = ParamSpec("P")
T = TypeVar("T")
Events = TypeVar("Events", bound=list[Event] | Event)

# Seconds between two checks of whether a coroutine should be cancelled.
_SLICE = 0.5


class AsyncioBridge:
    """
    Connects a timer, which has threads, to an event loop.

    Args:
        timer: The timer.
        calls: How many calls of `call` may run at a time. Each uses a thread and a connection.
        drain: How long running handlers may take when the loop ends; None for no limit.
    """

    def __init__(self, timer: DTimer, *, calls: int = 4, drain: Duration | None = None) -> None:
        self._timer, self._calls, self._drain = timer, calls, drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limits: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Join in the background, and leave at the end. The lifespan of an ASGI application."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._timer.join, wait=False)
        try:
            yield
        finally:
            await asyncio.to_thread(self._timer.leave, self._drain)

    async def call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await a call of the timer, or of an event, that is made on another thread."""
        limit = asyncio.Semaphore(self._calls)
        async with self._limits.setdefault(asyncio.get_running_loop(), limit):
            return await asyncio.to_thread(method, *args, **kwargs)

    def handler(
        self, function: Callable[[Events], Coroutine[Any, Any, object]]
    ) -> Callable[[Events], None]:
        """
        Return a handler that runs a coroutine function on the loop of `lifespan`. Also a decorator.

        A handler thread waits for the coroutine. Its exceptions are those of the handler. It is
        cancelled when the node has lost the leases of its events.

        Raises:
            OptionError: *function* is not a coroutine function.
        """
        if not inspect.iscoroutinefunction(function):
            raise OptionError(f"a coroutine function is needed, not {function!r:.80}")

        @functools.wraps(function)
        def handle(events: Events) -> None:
            loop = self._loop
            if loop is None or loop.is_closed():
                raise UsageError("the handler needs an event loop: join within `lifespan`")
            future = asyncio.run_coroutine_threadsafe(function(events), loop)
            batch = events if isinstance(events, list) else [events]
            while not wait([future], _SLICE).done:
                if loop.is_closed():
                    raise UsageError(f"the event loop was closed while {function!r:.80} ran")
                if all(ev.lease_lost for ev in batch):
                    future.cancel()
            future.result()

        return handle
