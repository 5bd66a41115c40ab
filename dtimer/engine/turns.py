"""What the engine asks of the store."""

from __future__ import annotations

from typing import Protocol

from dtimer.engine.heart import Renewals
from dtimer.model.claims import Answer, TurnRequest


class Turns(Renewals, Protocol):
    """What the claimer asks of the store."""

    def ask(self, request: TurnRequest) -> Answer:
        """Ask for a turn, in one try; return what waits for the answer and returns it."""
        ...

    @property
    def busy(self) -> bool:
        """Whether something that may take long is to be done before the next turn is asked for."""
        ...

    def register(self) -> None:
        """Register the node, again: its registration is gone."""
        ...

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        ...

    def supply(self, schedule: str) -> None:
        """Bring a schedule more nominal times."""
        ...

    def slow(self, error: BaseException | None) -> bool:
        """Tell whether an error needs a person."""
        ...
