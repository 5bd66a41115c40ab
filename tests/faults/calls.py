"""Calls of a test whose reply is withheld, or which the server refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from chaos.settings import HASTY

from dtimer import DTimer, OutcomeUnknown, StoreError


@contextlib.contextmanager
def hurried(timer: DTimer) -> Iterator[None]:
    """
    Give the calls of *timer* the deadline of `HASTY` inside this block.

    A timer made with that deadline would have it too while the server answers, where a busy
    machine is late.
    """
    scripts = timer._store._scripts
    patient, scripts.timeout = scripts.timeout, HASTY["timeout"] / 1000
    try:
        yield
    finally:
        scripts.timeout = patient


@contextlib.contextmanager
def definite_failure(words: str | None = None) -> Iterator[Any]:
    """Assert that the block raises a `StoreError` with *words*, and that its outcome is known."""
    with pytest.raises(StoreError, match=words) as raised:
        yield raised
    assert not isinstance(raised.value, OutcomeUnknown)
