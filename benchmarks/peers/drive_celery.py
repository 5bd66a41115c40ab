"""Drive Celery on Redis: tasks with an ``eta``, and one worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from driving import Peer, main, moment, record


class OneWorker(Peer):
    """An app with one task. ``settings`` are for the app, ``arguments`` for the worker."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._app = Celery("bench", broker=self.url)
        self._app.conf.update(self.options.get("settings", {}))
        self._task = self._app.task(name="handle", ignore_result=True)(record)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        worker_ready.connect(lambda **_: ready(), weak=False)
        arguments = self.options.get("arguments", [])
        self._app.worker_main(["worker", "--loglevel", "ERROR", *arguments])

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._task.apply_async((body,), eta=moment(due))


main(OneWorker)
