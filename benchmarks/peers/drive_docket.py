"""Drive docket: tasks with a due moment, and one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from docket import Docket, Worker
from driving import AsyncPeer, main, moment, record


async def handle(body: dict[str, Any]) -> None:
    """Record the event."""
    record(body)


class OneWorker(AsyncPeer):
    """A docket with one task, or a worker of it. Options that end in ``_ms`` become timedeltas."""

    async def connect(self) -> None:
        """See `AsyncPeer.connect`."""
        self._docket = await Docket(name="bench", url=self.url).__aenter__()

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        options = {
            name.removesuffix("_ms"): timedelta(milliseconds=value)
            if name.endswith("_ms")
            else value
            for name, value in self.options.items()
        }

        async def work() -> None:
            async with Docket(name="bench", url=self.url) as docket:
                docket.register(handle)
                async with Worker(docket, **options) as worker:
                    ready()
                    await worker.run_forever()

        asyncio.run(work())

    async def apost(self, body: dict[str, Any], due: int) -> None:
        """See `AsyncPeer.apost`."""
        await self._docket.add(handle, when=moment(due))(body)


main(OneWorker)
