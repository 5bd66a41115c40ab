"""Drive Dramatiq on Redis: messages with a delay, and one worker of eight threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from driving import Peer, main, record, seconds_to


class OneWorker(Peer):
    """A broker with one actor."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._broker = RedisBroker(url=self.url)
        dramatiq.set_broker(self._broker)
        self._actor = dramatiq.actor(record, actor_name="handle", broker=self._broker)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        dramatiq.Worker(self._broker, **self.options).start()
        ready()

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._actor.send_with_options(args=(body,), delay=math.ceil(1000 * seconds_to(due)))


main(OneWorker)
