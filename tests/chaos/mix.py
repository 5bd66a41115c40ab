"""What the soak does, chosen by seed: what handlers are told to do, and what is posted to them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from chaos.settings import OPTIONS

LEASE = OPTIONS["lease"]

#: Of a node that leaves in good order, again and again: an event that it left leased would be late
#: by so much, for which nothing else is to blame.
LONG_LEASE = 10 * LEASE

#: Milliseconds by which a node may claim an event too early, and has to keep it then.
AHEAD = 20

#: Milliseconds after which a handler's leases are no longer renewed.
MAX_RUN = 3 * LEASE

#: Whatever else is in a payload must come out as it went in.
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
    # Too large for a connection of which little is left (F108).
    "x" * 30_000,
]

#: What a handler does, by weight. What takes long is rare, or no hand would be free.
_DEEDS: dict[str, float] = {
    "ok": 80,
    "raise": 7,
    "always raise": 0.7,
    "retry": 2,
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

#: Many at a time must not keep the hands from the rest; nor kill their batches all the time.
_BULK: dict[str, float] = {"ok": 9_986, "raise": 4, "confirm": 5, "nap": 1, "die": 1, "again": 3}


def _choose(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def deed(
    rng: random.Random, near: Sequence[str], *, bulk: bool = False, minted: bool = False
) -> dict[str, Any]:
    """
    Choose what the handler of an event does; *near* are ids that it may meddle with.

    An id that was *minted* it does not post anew: that is for who has named it himself.
    """
    do = _choose(rng, _BULK if bulk else _DEEDS)
    if do == "again" and minted:
        do = "ok"
    if do == "ok" and not bulk:
        return {"do": "ok", "ms": rng.choice([0, 0, rng.uniform(0, 20)])}
    if do in ("raise", "retry"):
        return {"do": do, "times": rng.choice([1, 1, 2])}
    if do.startswith("always"):
        return {"do": do.removeprefix("always "), "times": 1_000}
    if do == "die":
        return {"do": do, "times": 1}
    if do == "extend":
        # For less than is left as well, which must shorten nothing.
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
    minted: bool = False,
) -> dict[str, Any]:
    """Make the payload of the generation *n*; see `deed`."""
    made = {"n": n, **deed(rng, near, bulk=bulk, minted=minted)}
    if not bulk and rng.random() < 0.3:
        made["luggage"] = rng.choice(_LUGGAGE)
    return made


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["it"] = circle
    return circle


#: Arguments of ``post`` that must be refused before anything is sent.
HOSTILE: list[dict[str, Any]] = [
    {"ev": {"x": math.nan}},
    {"ev": {"x": math.inf}},
    {"ev": {"x": b"bytes"}},
    {"ev": {"x": {1, 2}}},
    {"ev": {"x": Decimal(1)}},
    {"ev": {"x": datetime(2030, 1, 1)}},  # noqa: DTZ001 - hostile on purpose
    {"ev": _circle()},
    {"ev": {1: "a", "1": "b"}},
    {"ev": {"x": "y" * 300_000}},
    {"ev": []},
    {"ev": "text"},
    {"ev": None},
    {"ev": {}, "id": ""},
    {"ev": {}, "id": "a\nb"},
    {"ev": {}, "id": "a\0b"},
    {"ev": {}, "id": "x" * 256},
    {"ev": {}, "id": b"bytes"},
    {"ev": {}, "id": "\ud800"},
    {"ev": {}, "id": "a@1234567890123456"},
    {"ev": {}, "delay": math.nan},
    {"ev": {}, "delay": math.inf},
    {"ev": {}, "delay": True},
    {"ev": {}, "delay": "5"},
    {"ev": {}, "delay": 1e300},
    {"ev": {}, "at": datetime(2030, 1, 1)},  # noqa: DTZ001 - hostile on purpose
    {"ev": {}, "at": 1, "delay": 1},
    {"ev": {}, "max_retries": -1},
    {"ev": {}, "max_retries": 1.5},
    {"ev": {}, "expires": 0},
    {"ev": {}, "expires": -5},
    {"ev": {}, "if_exists": "perhaps"},
    {"ev": {}, "pipe": object()},
]
