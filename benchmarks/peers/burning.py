"""
Threads that compute beside a consumer, in its process: loops of pure Python that never wait.

Such a thread releases the interpreter's lock only when another thread asks for it, after the switch
interval.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

#: Additions between two updates of a thread's count. They take about a tenth of a millisecond.
_LOOP = 2_000


class Burners:
    """Daemon threads that compute, and the counts of their loops."""

    def __init__(self) -> None:
        self._loops: list[int] = []

    def start(self, wanted: dict[str, Any]) -> None:
        """Set the switch interval (``switch``, in seconds), and start ``threads`` threads."""
        if (switch := wanted.get("switch")) is not None:
            sys.setswitchinterval(switch)
        for _ in range(wanted.get("threads", 0)):
            self._loops.append(0)
            place = len(self._loops) - 1
            threading.Thread(target=self._burn, args=(place,), daemon=True).start()

    def _burn(self, place: int) -> None:
        loops = self._loops
        while True:
            total = 0
            for number in range(_LOOP):
                total += number
            loops[place] += 1

    def told(self) -> dict[str, Any]:
        """Return the additions so far, the moment, and the CPU time of the process, in seconds."""
        additions = sum(self._loops) * _LOOP
        return {"additions": additions, "at": time.perf_counter(), "cpu": time.process_time()}
