"""
A node that measures: run by `benchmarks.harness` in a process of its own.

It says that it has joined, and when it has handled as many events as it expects, when
that was: for each event the moment of its handler, when it was due, and how late the
server found it. All moments are in ms since the epoch; the server is on this machine, so
its clock is ours. Its standard input ends it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from dtimer import DTimer
from dtimer.model.event import Event


def main(setting: dict[str, Any]) -> None:
    """Join, receive, and tell."""
    count = setting["count"]
    handled: list[tuple[float, float, float, int]] = []
    over = threading.Event()
    node = DTimer("node", setting["url"], ns=setting["ns"], **setting["options"])

    @node.on("event")
    def handle(events: list[Event]) -> None:
        now = time.time() * 1000
        handled.extend((now, ev.due, ev.lateness_ms, ev.attempt) for ev in events)
        if len(handled) >= count:
            over.set()

    def say(what: object) -> None:
        os.write(1, json.dumps(what).encode() + b"\n")

    with node:
        say("joined")
        if count:
            over.wait()
            say(handled)
        sys.stdin.read()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
