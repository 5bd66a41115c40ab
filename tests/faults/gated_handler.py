"""A handler for observed nodes, whose steps a test controls."""

from __future__ import annotations

from typing import Any

from gated import Gated


class _NoTimer:
    def on(self, *_: Any) -> None:
        """Register nothing: `Watch.node` calls the handler."""


class GatedHandler(Gated):
    """
    The ``handler=`` of `Watch.node` for a test that decides when the handler returns.

    An event counts as handled when the test lets the handler return.
    """

    def __init__(self) -> None:
        super().__init__(_NoTimer())

    def __call__(self, ev: Any) -> None:
        self.handle([ev])
