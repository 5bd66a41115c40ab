"""The report of a soak: one table for people, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

import dtimer
from chaos.table import as_json, as_text
from chaos.verdict import Verdict

#: How many of the reasons to fail are printed. The JSON has all of them.
_SHOWN = 15


@dataclass
class Report:
    """
    The results of a run.

    Attributes:
        replay: The command that repeats the run.
        verdict: The checker's verdict.
        took: How many seconds each part of the run took.
        struck: How often each fault was injected and had an effect.
        kills: How many processes were killed, including those that killed themselves.
        errors: How many errors nodes emitted under ``'error'``, by kind.
        resources: The memory used, in words, by what used it.
        machine: The versions and the machine.
        wrong: The reasons why the run fails, besides broken promises.
    """

    replay: str
    verdict: Verdict
    took: dict[str, float] = field(default_factory=dict)
    struck: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if no promise was broken, and nothing else went wrong."""
        return self.verdict.ok and not self.wrong

    def as_json(self) -> str:
        made: dict[str, Any] = json.loads(as_json(self.verdict))
        made |= {
            name: getattr(self, name)
            for name in (
                *("replay", "passed", "took", "struck", "kills", "errors", "resources", "machine"),
                "wrong",
            )
        }
        return json.dumps(made, indent=2, sort_keys=True)

    def __str__(self) -> str:
        blocks = [
            as_text(self.verdict),
            _beside({"kills": str(self.kills), **self.resources}),
            _beside({kind: str(n) for kind, n in sorted(self.errors.items())}, "errors emitted"),
            _beside({part: f"{s:.0f} s" for part, s in self.took.items()}, "took"),
            _beside(self.machine),
        ]
        if self.passed:
            blocks.append(f"PASSED   {self.replay}")
        else:
            more = len(self.wrong) - _SHOWN
            blocks.append(
                "\n".join(
                    [
                        *(f"- {text}" for text in self.wrong[:_SHOWN]),
                        *([f"- and {more} more"] if more > 0 else []),
                        *([str(self.verdict)] if not self.verdict.ok else []),
                        f"FAILED   {self.replay}",
                    ]
                )
            )
        return "\n\n".join(blocks)


def _beside(each: dict[str, str], heading: str = "") -> str:
    lines = [heading] if heading else []
    indent = "  " if heading else ""
    return "\n".join([*lines, *(f"{indent + name:<30}{text}" for name, text in each.items())])


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through (x, y) points, by least squares."""
    n = len(samples)
    x0, y0 = (sum(values) / n for values in zip(*samples, strict=True))
    square = sum((x - x0) ** 2 for x, _ in samples)
    return sum((x - x0) * (y - y0) for x, y in samples) / square if square else 0.0


def growth(memory: dict[int, list[tuple[float, int]]], warm: float) -> str:
    """Return in words how fast the memory of processes grows, *warm* seconds after their start."""
    slopes = []
    for samples in memory.values():
        later = [(at, kib) for at, kib in samples if at > warm]
        if later and later[-1][0] - later[0][0] > 2 * warm:
            slopes.append(slope(later) * 60)
    if not slopes:
        return "no process lived long enough to tell"
    most = max(s[-1][1] for s in memory.values() if s)
    return f"{max(slopes):+.0f} KiB/min at most, of {len(slopes)} processes; {most} KiB in the end"


def machine(admin: redis.Redis) -> dict[str, str]:
    """Return the versions of the software, and the kind of machine."""
    about: dict[str, Any] = admin.info("server")
    kind = "Valkey" if "valkey_version" in about else "Redis"
    version = about.get("valkey_version", about["redis_version"])
    return {
        "versions": f"dtimer {dtimer.__version__}, Python {platform.python_version()},"
        f" redis-py {redis.__version__}, {kind} {version}",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
    }
