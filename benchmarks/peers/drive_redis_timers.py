"""Drive faststream-redis-timers: messages with a due moment, and one subscriber."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from driving import AsyncPeer, main, moment, record
from faststream import FastStream
from faststream_redis_timers import TimersBroker
from redis.asyncio import Redis


class OneSubscriber(AsyncPeer):
    """A broker with one topic. The options are for its subscriber."""

    async def connect(self) -> None:
        """See `AsyncPeer.connect`."""
        self._broker = TimersBroker(Redis.from_url(self.url))
        await self._broker.start()

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""

        async def work() -> None:
            broker = TimersBroker(Redis.from_url(self.url), logger=None)
            app = FastStream(broker, logger=None)

            @broker.subscriber("bench", **self.options)
            async def handle(body: dict[str, Any]) -> None:
                record(body)

            app.after_startup(ready)
            await app.run()

        asyncio.run(work())

    async def apost(self, body: dict[str, Any], due: int) -> None:
        """See `AsyncPeer.apost`."""
        await self._broker.publish(body, topic="bench", activate_at=moment(due))


main(OneSubscriber)
