"""
Drive APScheduler 3 with its Redis store: a background scheduler, and jobs with a date trigger.

Such a job runs once.

A scheduler learns only of jobs that its own process adds, so the consumer posts to itself. By
default APScheduler drops jobs that are more than a second late; here it drops none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from driving import Peer, main, moment


class OneScheduler(Peer):
    """A background scheduler. In a process that only posts, it stays paused."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        parts = urlsplit(self.url)
        store = RedisJobStore(host=parts.hostname, port=parts.port)
        self._scheduler = BackgroundScheduler(
            jobstores={"default": store},
            job_defaults={"misfire_grace_time": None},
            **self.options,
        )
        if self.role == "post":
            self._scheduler.start(paused=True)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        self._scheduler.start()
        ready()

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._scheduler.add_job("driving:record", "date", run_date=moment(due), args=(body,))


main(OneScheduler)
