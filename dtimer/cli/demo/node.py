"""
A node of the demo: a process that joins, reports what its handler does, and leaves.

Run as ``python -m dtimer.cli.demo.node URL NAMESPACE ID LEASE``. Reports go to standard
output, a JSON list on a line. The end of standard input means leave, so that no node
outlives the parent, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from dtimer.model.event import Event
from dtimer.timer import DTimer

#: In the payload of the event during which a node is to be killed.
FATAL = "fatal"


class Reports:
    """
    The pipe to the parent.

    A line goes out in a single write, shorter than what a pipe takes whole (512 bytes at
    least): a SIGKILL comes before it or after it, but never tears it.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        # Whatever else prints must not end up between the reports.
        os.dup2(2, 1)

    def __call__(self, *report: object) -> None:
        """Write one report."""
        os.write(self._pipe, (json.dumps(report) + "\n").encode())


def main(url: str, ns: str, id: str, lease: str) -> None:
    """Be a node until standard input ends."""
    report = Reports()
    over = threading.Event()
    timer = DTimer(id, url, ns=ns, lease=int(lease))

    @timer.on("event")
    def handle(events: list[Event]) -> None:
        for event in events:
            fatal = FATAL in event and event.attempt == 1
            report("start", event.id, event.attempt, event.lateness_ms, fatal)
            if fatal:
                # The parent kills this process now. Meanwhile the lease is renewed.
                over.wait()
            report("done", event.id, event.attempt)

    @timer.on("error")
    def failed(error: Exception) -> None:
        report("error", str(error)[:70])

    timer.join()
    report("ready", os.getpid())
    sys.stdin.read()
    over.set()
    timer.leave(1_000)
    report("left")


if __name__ == "__main__":
    main(*sys.argv[1:])
