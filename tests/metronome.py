"""
A process that declares schedules and says what it is handed, a line of JSON each. Run by its path.

Its arguments are a JSON object: ``name``, ``url``, ``ns``, ``descriptor`` (of a pipe that all
share; a line is one write, and so whole even when its writer is killed right after),
``intervals`` and ``options``. When it has joined it says its process id. It leaves when its
standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from dtimer import DTimer
from dtimer.model.event import Event


def declare(timer: DTimer, intervals: list[int]) -> None:
    """Declare the schedules: one of seconds by cron, the others by interval."""
    for interval in intervals:
        timer.every(interval, {}, id=f"every-{interval}", overlap="allow")
    timer.cron("* * * * * *", {}, id="cron-1000", overlap="allow")


def main(text: str) -> None:
    """Live as the text says."""
    setting: dict[str, Any] = json.loads(text)
    timer = DTimer(setting["name"], setting["url"], ns=setting["ns"], **setting["options"])

    def handle(events: list[Event]) -> None:
        for ev in events:
            said = [ev.schedule, round((ev.nominal or 0) * 1000), ev.missed, ev.attempt, ev.due]
            os.write(setting["descriptor"], json.dumps([*said, ev.lateness_ms]).encode() + b"\n")

            # Work that takes its time: some are killed in the middle of it.
            threading.Event().wait(0.03)

    timer.on("event", handle)
    declare(timer, setting["intervals"])
    with timer:
        os.write(setting["descriptor"], json.dumps({"joined": os.getpid()}).encode() + b"\n")
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
