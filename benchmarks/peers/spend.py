"""
Do one work with the dtimer that PYTHONPATH leads to; print its cost as JSON.

Called as ``spend.py URL SERVER_PID WORK COUNT``. Uses only features that every version has.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dtimer import DTimer, Event

_HOUR = 3_600_000
# Milliseconds until a lone event is due, and seconds between two of them.
_SOON, _PAUSE = 30, 0.05
_PATIENCE = 120


def server_cpu(pid: int) -> float:
    """Return the seconds of CPU that the threads of a process have used."""
    # In nanoseconds, where /proc/PID/stat counts ticks of 10 ms.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text("ascii").split()[0]) for task in tasks) / 1e9


class Spender:
    """A client process that does a work and measures it."""

    def __init__(self, url: str, pid: int) -> None:
        self._pid = pid
        self._timer = DTimer("node", url, ns="compare", timeout=10_000)
        self._late: list[float] = []
        self._came = threading.Event()
        self._wanted = 0

    def _measured(self, count: int, act: Callable[[], None]) -> dict[str, float]:
        client, server = time.process_time(), server_cpu(self._pid)
        act()
        spent = {
            "client": (time.process_time() - client) / count * 1e6,
            "server": (server_cpu(self._pid) - server) / count * 1e6,
        }
        return spent | {"sum": sum(spent.values())}

    def post(self, count: int) -> dict[str, float]:
        """Post one by one."""

        def act() -> None:
            for _ in range(count):
                self._timer.post({"n": 1}, _HOUR)

        return self._measured(count, act)

    def post_many(self, count: int) -> dict[str, float]:
        """Post in bulk."""
        items = [({"n": n}, _HOUR) for n in range(count)]

        def act() -> None:
            self._timer.post_many(items)

        return self._measured(count, act)

    def _listen(self, wanted: int) -> None:
        self._wanted = wanted
        self._timer.on("event", self._handle)

    def _handle(self, events: list[Event]) -> None:
        self._late += [event.lateness_ms for event in events]
        if len(self._late) >= self._wanted:
            self._came.set()

    def drain(self, count: int, batch: int) -> dict[str, float]:
        """Handle and confirm overdue events."""
        self._timer.post_many([({"n": n}, 0) for n in range(count)])
        self._timer.max_events = batch
        self._listen(count)

        def act() -> None:
            self._timer.join()
            assert self._came.wait(_PATIENCE)
            self._timer.leave()

        return self._measured(count, act)

    def lone(self, count: int) -> dict[str, float]:
        """Handle events that come one at a time, and record how late they are."""
        self._listen(count)
        self._timer.join()

        def act() -> None:
            for _ in range(count):
                self._timer.post({"n": 1}, _SOON)
                time.sleep(_PAUSE)
            assert self._came.wait(_PATIENCE)

        spent = self._measured(count, act)
        self._timer.leave()
        return spent | {"late": statistics.median(self._late) * 1000}


def main() -> None:
    """Run the program."""
    url, pid, work, count = sys.argv[1:]
    spender = Spender(url, int(pid))
    if work.startswith("drain"):
        spent = spender.drain(int(count), int(work.removeprefix("drain")))
    else:
        spent = getattr(spender, work)(int(count))
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
