"""This project, and the floors: programs that cost less than any timer could."""

from __future__ import annotations

from benchmarks.contenders.contender import DEFAULTS, FLOOR, TUNED, Contender

OURS = (
    Contender(
        "dtimer",
        DEFAULTS,
        environment="dtimer",
        driver="drive_dtimer.py",
        package="dtimer",
        says="pip install dtimer, leased and confirmed",
        max_pending=5_000_000,
        batches=(1, 10, 100),
        in_process=True,
    ),
    Contender(
        "dtimer",
        TUNED,
        environment="dtimer-hiredis",
        driver="drive_dtimer.py",
        package="dtimer",
        says="with hiredis, leased and confirmed",
        max_pending=5_000_000,
        batches=(1, 10, 100),
        in_process=True,
    ),
)

_NO_CONSUMER = "only calls, and consumes nothing"

#: No timer can be better than these: see `benchmarks/peers/drive_floors.py`.
FLOORS = (
    Contender(
        "bare wait",
        FLOOR,
        environment="dtimer",
        driver="drive_floors.py",
        says="select.select until the due moment: no server, no event",
        options={"kind": "wait"},
        cannot=dict.fromkeys(
            ("posting", "drain", "memory", "idle", "recovery", "stream", "nodes"), "only waits"
        ),
        posts_from_consumer=True,
        in_process=True,
    ),
    Contender(
        "bare EVALSHA",
        FLOOR,
        environment="dtimer",
        driver="drive_floors.py",
        package="redis",
        says="redis-py, a script that does nothing, with the keys and arguments of a post",
        options={"kind": "call"},
        cannot=dict.fromkeys(("lateness", "memory", "idle", "recovery", "stream"), _NO_CONSUMER),
    ),
    Contender(
        "least scripts",
        FLOOR,
        environment="dtimer",
        driver="drive_floors.py",
        package="redis",
        says="the cheapest post, claim and confirm: a sorted set, a hash, no checks",
        options={"kind": "least"},
        max_pending=5_000_000,
        batches=(1, 10, 100),
    ),
)
