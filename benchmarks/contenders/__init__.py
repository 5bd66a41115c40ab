"""
The contenders: dtimer, each peer with its defaults and with its best realistic settings, and the
floors.

The best realistic settings are those that a user who reads the manual would choose for prompt
events and a short backlog. They were found by trying, and `Contender.says` states them. All
contenders run in one process, unless the peer starts more by itself. A slow contender gets fewer
events, so that a round ends; the rate is the same.
"""

from __future__ import annotations

from benchmarks.contenders.contender import Contender
from benchmarks.contenders.node import NODE
from benchmarks.contenders.ours import FLOORS, OURS
from benchmarks.contenders.python import PYTHON

__all__ = ["CONTENDERS", "Contender", "choose"]

CONTENDERS = (*OURS, *NODE, *PYTHON, *FLOORS)


def choose(names: list[str]) -> list[Contender]:
    """
    Return contenders by id, by name or by group (``ours``, ``peers``, ``floors``).

    Raises:
        ValueError: a name is unknown.
    """
    if not names:
        return list(CONTENDERS)
    groups = {"ours": OURS, "peers": (*NODE, *PYTHON), "floors": FLOORS}
    chosen: list[Contender] = []
    for name in names:
        found = groups.get(name) or [
            c for c in CONTENDERS if name.lower() in (c.id.lower(), c.name.lower())
        ]
        if not found:
            known = ", ".join([*groups, *dict.fromkeys(c.name for c in CONTENDERS)])
            raise ValueError(f"there is no contender {name!r}; choose from {known}")
        chosen += [c for c in found if c not in chosen]
    return chosen
