"""
Declare schedules and report each delivered event as a line of JSON. Run as a process, by path.

The argument is a JSON object: ``name``, ``url``, ``ns``, ``descriptor``, ``intervals`` and
``options``. The descriptor is a pipe that all processes share. Each line is one write, so it is
complete even if the process is killed right after. Once joined, the process reports its process
id. It leaves when its standard input ends.
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
    """Declare the schedules: one for each interval, and one by cron for each second."""
    for interval in intervals:
        timer.every(interval, {}, id=f"every-{interval}", overlap="allow")
    timer.cron("* * * * * *", {}, id="cron-1000", overlap="allow")


def main(text: str) -> None:
    """Run the node that *text*, a JSON object, describes, until standard input ends."""
    setting: dict[str, Any] = json.loads(text)
    timer = DTimer(setting["name"], setting["url"], ns=setting["ns"], **setting["options"])

    def handle(events: list[Event]) -> None:
        for ev in events:
            report = [ev.schedule, round((ev.nominal or 0) * 1000), ev.missed, ev.attempt, ev.due]
            os.write(setting["descriptor"], json.dumps([*report, ev.lateness_ms]).encode() + b"\n")

            # Take 30 ms, so that some processes are killed inside the handler.
            threading.Event().wait(0.03)

    timer.on("event", handle)
    declare(timer, setting["intervals"])
    with timer:
        os.write(setting["descriptor"], json.dumps({"joined": os.getpid()}).encode() + b"\n")
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
