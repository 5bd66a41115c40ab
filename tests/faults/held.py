"""A handler under watch that a test holds by the hand."""

from __future__ import annotations

from typing import Any

from gated import Gated


class _Nobody:
    def on(self, *_: Any) -> None:
        """Listen to nothing: `Watch.node` calls the handler."""


class Held(Gated):
    """To be given to `Watch.node` as its ``handler=``: an event counts when it is let go on."""

    def __init__(self) -> None:
        super().__init__(_Nobody())

    def __call__(self, ev: Any) -> None:
        self.handle([ev])
