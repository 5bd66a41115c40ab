"""Drive RQ: ``enqueue_at``, and a worker with its scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from driving import Item, Peer, main, moment
from redis import Redis
from rq import Queue, SimpleWorker, Worker

logging.disable(logging.INFO)


class Rq(Peer):
    """A queue, and its worker, which forks for each job unless ``simple`` is set."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._redis = Redis.from_url(self.url)
        self._queue = Queue("bench", connection=self._redis)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        kind = SimpleWorker if self.options.get("simple") else Worker
        worker = kind([self._queue], connection=self._redis)
        ready()
        worker.work(with_scheduler=True, logging_level="WARNING")

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._queue.enqueue_at(moment(due), "driving.record", body, result_ttl=0)

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """See `Peer.post_in_bulk`."""
        for start in range(0, len(items), 500):
            with self._redis.pipeline() as pipe:
                for body, due in items[start : start + 500]:
                    self._queue.enqueue_at(
                        moment(due), "driving.record", body, result_ttl=0, pipeline=pipe
                    )
                pipe.execute()


main(Rq)
