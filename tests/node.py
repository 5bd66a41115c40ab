"""
Run nodes that report their actions and take orders. Run as a process, by path, by `fleet`.

A report is one line of JSON, written by one ``os.write`` to a pipe that all processes of a
fleet share. So it is complete even if the process is killed right after, and the order of the
reports is the order of the writes. Orders come on standard input; its end means to leave.

The payload says what the handler does:

- ``{"hold": n}``: attempts up to the n-th wait for an order to go on.
- ``{"fail": n}``: attempts up to the n-th raise.
- ``{"again": n}``: the handler posts its own id again, n times in total, once each time it runs.
- ``{"take": ms}``: the handler takes this long.
- ``{"brief": true}``: only the start is reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dtimer import DTimer
from dtimer.engine.lag import Lag
from dtimer.model.event import Event


class Reporter:
    """The pipe to which the nodes of this process write their reports."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def report(self, node: str, what: str, **more: Any) -> None:
        """Write a report, in one call."""
        line = json.dumps({"node": node, "what": what, "pid": os.getpid()} | more) + "\n"
        # A pipe may mix a longer line with lines of other processes.
        assert len(line) <= select.PIPE_BUF, line
        os.write(self._descriptor, line.encode())


def make_node(
    name: str, setting: dict[str, Any], reporter: Reporter, permits: queue.SimpleQueue[None]
) -> DTimer:
    """Make the node *name* as the setting says; join, if the setting says so."""
    timer = DTimer(name, setting["pub"], setting["sub"], **setting["options"])

    def handle(events: list[Event]) -> None:
        for ev in events:
            reporter.report(
                name,
                "start",
                id=ev.id,
                attempt=ev.attempt,
                token=ev.token,
                due=ev.due,
                claimed=ev._holder.claim.claimed_us / 1000,
                began=ev.due + ev.lateness_ms,
                batch=len(events),
                schedule=ev.schedule,
                nominal=round((ev.nominal or 0) * 1000),
                missed=ev.missed,
            )
            if ev.get("again"):
                timer.post(ev | {"again": ev["again"] - 1}, id=ev.id)
            if "take" in ev:
                threading.Event().wait(ev["take"] / 1000)
            if ev.attempt <= ev.get("hold", 0):
                permits.get()
            if ev.attempt <= ev.get("fail", 0):
                raise RuntimeError("as the payload says")
            if not ev.get("brief"):
                reporter.report(name, "end", id=ev.id, attempt=ev.attempt, lost=ev.lease_lost)

    timer.on(
        "error", lambda e: reporter.report(name, "error", text=f"{type(e).__name__}: {e}"[:300])
    )
    if setting["join"]:
        timer.on("event", handle)
        timer.join()
        reporter.report(name, "joined")
    return timer


def execute(
    order: dict[str, Any],
    timers: Sequence[DTimer],
    reporter: Reporter,
    permits: queue.SimpleQueue[None],
) -> None:
    if order["do"] == "go on":
        for _ in range(order["times"]):
            permits.put(None)
    elif order["do"] == "post":
        reporter.report(timers[0].id, "posted", ids=timers[0].post_many(order["items"]))
    elif order["do"] == "declare":
        for interval in order["intervals"]:
            payload, id = order["payload"], f"every-{interval}"
            timers[0].every(interval, payload, id=id, overlap="allow")
        timers[0].cron("* * * * * *", order["payload"], id="cron-1000", overlap="allow")
    elif order["do"] == "health":
        for timer in timers:
            reporter.report(timer.id, "health", **asdict(timer.health()))
    elif order["do"] == "cpu":
        reporter.report(timers[0].id, "cpu", seconds=time.process_time())
    else:
        raise ValueError(order)


def main(text: str) -> None:
    """Run the nodes that *text*, a JSON object, describes, until standard input ends."""
    # On a busy machine some nodes lag, and the server prefers the others. The tests count shares.
    Lag.waited = lambda self, late: None  # type: ignore[method-assign]
    setting = json.loads(text)
    reporter = Reporter(setting["descriptor"])
    permits: queue.SimpleQueue[None] = queue.SimpleQueue()
    timers = [make_node(name, setting, reporter, permits) for name in setting["names"]]
    with contextlib.ExitStack() as leaving:
        for timer in timers:
            leaving.callback(timer.leave)
        for line in sys.stdin:
            execute(json.loads(line), timers, reporter, permits)
    threads = [thread.name for thread in threading.enumerate()]
    for timer in timers:
        reporter.report(timer.id, "left", threads=threads)


if __name__ == "__main__":
    main(sys.argv[1])
