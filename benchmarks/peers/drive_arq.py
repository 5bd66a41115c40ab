"""Drive arq: deferred jobs, and one worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arq import Worker, create_pool, func
from arq.connections import RedisSettings
from driving import AsyncPeer, main, moment, record


async def handle(_: dict[str, Any], body: dict[str, Any]) -> None:
    """Record the event."""
    record(body)


class OneWorker(AsyncPeer):
    """A pool of connections, or a worker with the options."""

    async def connect(self) -> None:
        """See `AsyncPeer.connect`."""
        self._pool = await create_pool(RedisSettings.from_dsn(self.url))

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""

        async def started(_: dict[str, Any]) -> None:
            ready()

        Worker(
            functions=[func(handle, name="handle")],
            redis_settings=RedisSettings.from_dsn(self.url),
            on_startup=started,
            **self.options,
        ).run()

    async def apost(self, body: dict[str, Any], due: int) -> None:
        """See `AsyncPeer.apost`."""
        await self._pool.enqueue_job("handle", body, _defer_until=moment(due))


main(OneWorker)
