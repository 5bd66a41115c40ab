"""
Measure the floors: round trips of redis-py, and Python's waits, in µs.

Prints one line of JSON. The scripts are those of `least`.
"""

from __future__ import annotations

import json
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from driving import now_us, payload
from least import POST, CLAIM

_WAIT = 0.003  # seconds
_FAR = 86_400_000_000


def quantiles(name: str, work: Callable[[], object], count: int) -> dict[str, float]:
    """Return p50 and p99 of *count* runs, after a tenth as many to warm up."""
    for _ in range(count // 10):
        work()
    took = []
    for _ in range(count):
        began = time.perf_counter_ns()
        work()
        took.append((time.perf_counter_ns() - began) / 1000)
    took.sort()
    return {f"{name} p50": took[count // 2], f"{name} p99": took[int(0.99 * (count - 1))]}


def overshoot(name: str, wait: Callable[[float], object], count: int) -> dict[str, float]:
    """Return how much longer a wait takes than asked."""
    found = quantiles(name, lambda: wait(_WAIT), count)
    return {key: value - _WAIT * 1e6 for key, value in found.items()}


def scripts(client: Any, count: int) -> dict[str, float]:
    """Return the time of the cheapest post, and of the cheapest claim with confirm."""
    post, claiming = client.script_load(POST), client.script_load(CLAIM)
    keys = ("floors:due", "floors:body")
    number = iter(range(1 << 40))
    body = json.dumps(payload(0, now_us(), 50))

    def one(due: int) -> None:
        client.evalsha(post, 2, *keys, due, f"{next(number):012}", body)

    held: list[bytes] = []

    def claim() -> None:
        held[:] = client.evalsha(claiming, 2, *keys, 1, 30_000_000, *held)[1]

    found = quantiles("post", lambda: one(now_us() + _FAR), count)
    for _ in range(count + count // 10):
        one(now_us() - 1)
    return found | quantiles("claim", claim, count)


def main() -> None:
    """Measure and print the floors."""
    settings = json.loads(sys.stdin.readline())
    count = settings["count"]
    client: Any = redis.Redis.from_url(settings["url"])
    empty = client.script_load("return 1")
    condition, poller = threading.Condition(), select.epoll()

    def on_condition(seconds: float) -> None:
        with condition:
            condition.wait(seconds)

    waits = count // 10
    print(
        json.dumps(
            quantiles("PING", client.ping, count)
            | quantiles("EVALSHA", lambda: client.evalsha(empty, 0), count)
            | scripts(client, count)
            | overshoot("sleep", time.sleep, waits)
            | overshoot("select", lambda s: select.select([], [], [], s), waits)
            | overshoot("Condition", on_condition, waits)
            | overshoot("epoll", poller.poll, waits)
        ),
        flush=True,
    )


main()
