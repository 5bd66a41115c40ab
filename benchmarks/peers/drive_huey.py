"""Drive Huey on Redis: scheduled tasks, and a consumer of one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from driving import Peer, main, record, seconds_to
from huey import RedisHuey


class OneConsumer(Peer):
    """A Huey with one task. The options are for its consumer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._huey = RedisHuey("bench", url=self.url)
        self._task = self._huey.task(name="handle")(record)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        # Huey calls this on each of its threads, and the protocol has one answer.
        answers = [ready]
        self._huey.on_startup(name="ready")(lambda: answers and answers.pop()())
        self._huey.create_consumer(**self.options).run()

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._task.schedule((body,), delay=seconds_to(due))


main(OneConsumer)
