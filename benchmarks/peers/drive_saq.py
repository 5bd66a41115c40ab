"""Drive SAQ: scheduled jobs, and one worker. A job is due at a whole second, the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from driving import AsyncPeer, main, record
from saq import Queue, Worker


async def handle(_: Any, *, body: dict[str, Any]) -> None:
    """Record the event."""
    record(body)


class OneWorker(AsyncPeer):
    """A queue, or a worker of it with the options."""

    async def connect(self) -> None:
        """See `AsyncPeer.connect`."""
        self._queue = Queue.from_url(self.url)
        await self._queue.connect()

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""

        async def started(_: Any) -> None:
            ready()

        async def work() -> None:
            queue = Queue.from_url(self.url)
            functions = [("handle", handle)]
            await Worker(queue, functions, startup=started, **self.options).start()

        asyncio.run(work())

    async def apost(self, body: dict[str, Any], due: int) -> None:
        """See `AsyncPeer.apost`."""
        await self._queue.enqueue("handle", body=body, scheduled=-(-due // 1_000_000))


main(OneWorker)
