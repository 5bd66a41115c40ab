"""Make calls on other threads, and check that they end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from servers import PATIENCE


def in_thread(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Make a call on a new thread; return its result to come."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run).start()
    return future


@contextlib.contextmanager
def background(call: Callable[..., Any], *arguments: Any) -> Iterator[Future[Any]]:
    """Make a call on a new thread; wait after the block until it ends, and raise what it raised."""
    future = in_thread(call, *arguments)
    yield future
    future.result(PATIENCE)


def together(count: int, call: Callable[[int], Any]) -> None:
    """Make *count* calls, numbered from 0, that start together; raise what one of them raised."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(PATIENCE)
        call(number)

    for future in [in_thread(run, number) for number in range(count)]:
        future.result(3 * PATIENCE)
