"""A short deadline for the calls whose reply a test withholds, and for no others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from chaos.settings import HASTY

from dtimer import DTimer


@contextlib.contextmanager
def hurried(timer: DTimer) -> Iterator[None]:
    """
    Give the calls of *timer* the deadline of `HASTY` inside this block, and restore it afterwards.

    A timer made with that deadline would have it too while the server answers, where a busy
    machine is late.
    """
    line = timer._store._scripts
    patient, line._timeout = line._timeout, HASTY["timeout"] / 1000
    try:
        yield
    finally:
        line._timeout = patient
