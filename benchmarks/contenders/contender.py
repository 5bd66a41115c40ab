"""What a contender is: a driver, an environment, its settings, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

DEFAULTS: Final = "defaults"
TUNED: Final = "tuned"
FLOOR: Final = "floor"


@dataclass(frozen=True)
class Contender:
    """
    One row of the tables.

    ``events`` are how many it is given by a work (`lateness` always 300), ``most`` how many are
    made pending to weigh them. ``cannot`` names what it cannot do, with the reason. One that
    is ``inside`` posts from the process that consumes.
    """

    name: str
    setting: Literal["defaults", "tuned", "floor"]
    environment: str
    driver: str
    package: str = ""
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    most: int = 100_000
    cannot: dict[str, str] = field(default_factory=dict)
    batches: tuple[int, ...] = (1,)
    inside: bool = False

    @property
    def id(self) -> str:
        """What names it on the command line."""
        return f"{self.name}/{self.setting}"

    @property
    def ours(self) -> bool:
        """Whether it is this project."""
        return self.name == "dtimer"

    @property
    def floor(self) -> bool:
        """Whether it is no contender, but the least that anything could cost."""
        return self.setting == FLOOR

    def settings(self, url: str, role: str, batch: int) -> dict[str, Any]:
        """Return the first line that its driver is given."""
        return {"url": url, "role": role, "batch": batch, "options": self.options}
