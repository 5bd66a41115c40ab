"""Whether a process got to run: a starved machine ends leases as any injected fault does."""

from __future__ import annotations

import threading
import time
from typing import Self

from chaos.history import Writer


class Pulse:
    """
    Notes when its process did not get to run, whoever kept it: a ``stall``, with its ``ms``.

    A machine that is starved makes leases run out without any injected fault. The checker
    has to know. A context manager.

    Args:
        writer: Where it is noted.
        beat: In seconds, how often it looks.
        late: In seconds, what is a stall.
    """

    def __init__(self, writer: Writer, *, beat: float = 0.05, late: float = 0.1) -> None:
        self._writer = writer
        self._beat = beat
        self._late = late
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

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
