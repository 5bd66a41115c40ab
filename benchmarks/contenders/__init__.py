"""
Who takes part: each peer with its defaults and with its best realistic settings, ours, floors.

Best realistic is what a user of the peer would choose who wants events to be prompt and the
backlog short, and reads its manual: found by trying, and written down in `Contender.says`.
All run in one process, unless the peer starts more by itself. How many events a slow one is
given is part of its entry: a rate is a rate, and a round must end.
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
    Return the contenders that are named: by their id, their name, or ``ours``, ``floors``.

    Raises:
        ValueError: there is none of that name.
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
            raise ValueError(f"there is no contender {name!r}; there are {known}")
        chosen += [c for c in found if c not in chosen]
    return chosen
