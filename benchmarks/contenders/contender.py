"""The description of a contender: a driver, an environment, its settings and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

DEFAULTS: Final = "defaults"
TUNED: Final = "tuned"
FLOOR: Final = "floor"


@dataclass(frozen=True)
class Contender:
    """
    A contender: one row of the tables.

    ``events`` says how many events a work gives it (`lateness` always gives 300), and ``most`` how
    many are made pending at most. ``cannot`` names the works that it cannot do, with the reason. If
    ``inside`` is true, it posts from the process that consumes.
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
        """The name on the command line."""
        return f"{self.name}/{self.setting}"

    @property
    def ours(self) -> bool:
        """True for this project."""
        return self.name == "dtimer"

    @property
    def floor(self) -> bool:
        """True for the least that anything could cost, which is not a contender."""
        return self.setting == FLOOR

    def settings(self, url: str, role: str, batch: int) -> dict[str, Any]:
        """Return the first line for its driver."""
        return {"url": url, "role": role, "batch": batch, "options": self.options}
