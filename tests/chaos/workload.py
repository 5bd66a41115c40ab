"""Choose payloads for the soak by seed: what a handler does, and which data it receives."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from chaos.settings import OPTIONS
from dtimer import Signed

LEASE = OPTIONS["lease"]

#: The lease of the node that leaves properly again and again. If that node left an event leased,
#: the event would be late by this much, and nothing else would explain that.
LONG_LEASE = 10 * LEASE

#: How many milliseconds before its due time a node may claim an event.
AHEAD = 20

#: Milliseconds after which a handler's leases are no longer renewed.
MAX_RUN = 3 * LEASE

#: The codecs of nodes and posters that run at the same time, as in the second step of a roll-out.
_CODECS = [Signed("the key of the soak", stage=stage) for stage in ("open", "seal")]

#: Values of every kind, which must reach the handler unchanged.
_LUGGAGE: list[Any] = [
    [],
    {},
    [[], {}, ""],
    "a/b\\c\"d'e",
    "\ud800 \u2028 \U0001f600 \0",
    9_007_199_254_740_993,
    -(10**40),
    -0.0,
    1e22,
    0.1,
    None,
    True,
    {"": {"nested": [1, [2, [3, {"": None}]]]}},
    "x" * 2_000,
    # Too large to arrive in time on a slow connection (F108).
    "x" * 30_000,
]

#: The actions of a handler, by weight. Long runs are rare, or no handler thread would be free.
_DEEDS: dict[str, float] = {
    "ok": 80,
    "raise": 7,
    "always raise": 0.7,
    "retry": 2,
    "snooze": 2,
    "bury": 0.7,
    "skip": 0.7,
    "confirm": 3,
    "extend": 0.7,
    "nap": 1,
    "hang": 0.12,
    "again": 2.5,
    "meddle": 3,
    "die": 0.4,
    "always die": 0.04,
    "fork": 0.4,
}

#: The same for events in bulk, which must not occupy all threads or kill many batches.
_BULK: dict[str, float] = {
    "ok": 9_986,
    "raise": 4,
    "confirm": 5,
    "snooze": 3,
    "skip": 1,
    "nap": 1,
    "die": 1,
    "again": 3,
}


def codec(start: int) -> Signed:
    """Return the codec of the process with this number: half of them write signed payloads."""
    return _CODECS[start % 2]


def _choose(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def deed(
    rng: random.Random, near: Sequence[str], *, bulk: bool = False, generated: bool = False
) -> dict[str, Any]:
    """
    Choose what the handler of an event does.

    Args:
        rng: The source of chance.
        near: Ids that the handler may cancel or move.
        bulk: Choose for an event of a bulk post.
        generated: The library generated the event's id, so the handler does not post it again.
    """
    do = _choose(rng, _BULK if bulk else _DEEDS)
    if do == "again" and generated:
        do = "ok"
    if do == "ok" and not bulk:
        return {"do": "ok", "ms": rng.choice([0, 0, rng.uniform(0, 20)])}
    if do in ("raise", "retry"):
        return {"do": do, "times": rng.choice([1, 1, 2])}
    if do.startswith("always"):
        return {"do": do.removeprefix("always "), "times": 1_000}
    if do in ("bury", "skip"):
        return {"do": do, "times": 1}
    if do == "die":
        return {"do": do, "times": 1}
    if do == "extend":
        # Also for less than is left of the lease, which must not shorten it.
        return {"do": do, "of": rng.choice([2 * LEASE, LEASE / 6])}
    if do == "again":
        return {"do": do, "times": rng.randint(1, 3)}
    if do == "meddle":
        if not near:
            return {"do": "ok", "ms": 0}
        return {"do": rng.choice(["cancel", "reschedule"]), "whom": rng.choice(near)}
    return {"do": do}


def payload(
    rng: random.Random,
    n: int,
    near: Sequence[str] = (),
    *,
    bulk: bool = False,
    generated: bool = False,
) -> dict[str, Any]:
    """Return the payload of generation *n*; see `deed` for the arguments."""
    made = {"n": n, **deed(rng, near, bulk=bulk, generated=generated)}
    if not bulk and rng.random() < 0.3:
        made["luggage"] = rng.choice(_LUGGAGE)
    return made


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["it"] = circle
    return circle


#: Arguments of ``post`` that must be refused before anything is sent.
HOSTILE: list[dict[str, Any]] = [
    *[{"ev": {"x": x}} for x in (math.nan, math.inf, b"bytes", {1, 2}, Decimal(1), "y" * 300_000)],
    *[{"ev": ev} for ev in (_circle(), {1: "a", "1": "b"}, [], "text", None)],
    *[{"ev": {}, "id": id} for id in ("", "a\nb", "a\0b", "x" * 256, b"bytes", "\ud800")],
    *[{"ev": {}, "delay": delay} for delay in (math.nan, math.inf, True, "5", 1e300)],
    *[{"ev": {}, "max_retries": retries} for retries in (-1, 1.5)],
    *[{"ev": {}, "expires": expires} for expires in (0, -5)],
    {"ev": {"x": datetime(2030, 1, 1)}},  # noqa: DTZ001 - hostile on purpose
    {"ev": {}, "at": datetime(2030, 1, 1)},  # noqa: DTZ001 - hostile on purpose
    {"ev": {}, "at": 1, "delay": 1},
    {"ev": {}, "id": "a@1234567890123456"},
    {"ev": {}, "if_exists": "perhaps"},
    {"ev": {}, "pipe": object()},
]
