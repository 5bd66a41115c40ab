"""Record when a process was starved: a busy machine makes leases expire, as faults do."""

from __future__ import annotations

import threading
import time
from typing import Self

from chaos.history import Writer


class StarvationMonitor:
    """
    Records a ``stall``, with its ``ms``, each time that its process did not run for a while.

    On a starved machine, leases expire without any injected fault. The checker must know these
    times. A context manager.

    Args:
        writer: Records the stalls.
        beat: The seconds between two checks.
        late: The delay of a check, in seconds, from which on it is a stall.
    """

    def __init__(self, writer: Writer, *, beat: float = 0.05, late: float = 0.1) -> None:
        self._writer = writer
        self._beat = beat
        self._late = late
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starvation", daemon=True)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._beat):
            now = time.monotonic()
            if now - before > self._beat + self._late:
                self._writer.note("stall", ms=round((now - before) * 1000))
            before = now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
