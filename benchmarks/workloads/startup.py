"""The time to start: imports, and the first output of the command line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.environments import ENVIRONMENTS
from benchmarks.numbers import quantile

_RUNS = 15


class Startup:
    """
    Milliseconds from start to end of a process. *bare* is the interpreter alone,
    which all include.
    """

    name = "startup"
    title = "startup: processes from start to end, ms"
    main = "import dtimer"
    more_is_better = False
    unit = "ms"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        return [Cell(self.name, contender)] if contender.ours else []

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`: the commands take turns, and each figure is a median."""
        environment = ENVIRONMENTS[cell.contender.environment]
        commands = {
            "bare": [*environment.command, "-c", "pass"],
            "import redis": [*environment.command, "-c", "import redis"],
            "import dtimer": [*environment.command, "-c", "import dtimer"],
            "dtimer --version": [str(environment.folder / "bin" / "dtimer"), "--version"],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(max(1, int(_RUNS * bench.scale.factor))):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                took[name].append((time.perf_counter() - began) * 1000)
        found = {name: quantile(sorted(values), 0.5) for name, values in took.items()}
        return found | {"of import redis": found["import dtimer"] / found["import redis"]}
