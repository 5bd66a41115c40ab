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

    Attributes:
        name: The name of the library or program.
        setting: Whether it runs with its defaults or tuned; ``floor`` for a program that costs
            less than any timer could.
        environment: The name of its environment in `benchmarks.environments`.
        driver: The file of its driver in ``benchmarks/peers``.
        package: The package of the contender. The tables show its version.
        says: Its settings in words, for the tables.
        options: The options that the driver passes on to the library.
        events: How many events a work gives it, if not the standard number. `lateness` always
            gives 300.
        max_pending: How many events are pending at most.
        cannot: The works, or parts of works, that it cannot do, with the reason.
        batches: The largest numbers of events that its handler receives in one call.
        posts_from_consumer: True if it must post from the process that consumes.
        in_process: True if it can consume in a process of the user's, beside threads that do other
            work.
    """

    name: str
    setting: Literal["defaults", "tuned", "floor"]
    environment: str
    driver: str
    package: str = ""
    says: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    max_pending: int = 100_000
    cannot: dict[str, str] = field(default_factory=dict)
    batches: tuple[int, ...] = (1,)
    posts_from_consumer: bool = False
    in_process: bool = False

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
        """True for a program that costs less than any timer could, run for comparison."""
        return self.setting == FLOOR

    def settings(self, url: str, role: str, batch: int) -> dict[str, Any]:
        """Return the first line for its driver."""
        return {"url": url, "role": role, "batch": batch, "options": self.options}
