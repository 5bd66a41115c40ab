"""
The base of all drivers in Python: the protocol, the payload, and the record of a handler.

A driver is a program that uses its peer's packages and the standard library, but no other module
of this project. It reads lines of JSON and answers each with one:

    settings                      the first line: url, role (post or consume), options, batch
    {"do": "post", ...}           post `count` events; the answer has the seconds it took
    {"do": "post_at", ...}        post one event for each of the moments `dues`
    {"do": "stream", ...}         post `rate` events a second for `seconds`
    {"do": "burn", ...}           start `threads` threads that compute, with the interval `switch`
    {"do": "additions"}           the additions that these threads have done
    {"do": "calls"}               the calls that released the interpreter's lock

A consumer answers ``{"ready": true}`` once it consumes. It takes the same commands, because some
peers learn only of their own posts, and ends when its input does. Handlers write a record of 32
bytes an event to the file that the environment names. This works from any process or thread in
which the peer runs handlers, survives their end, and costs every peer the same one system call.

The settings may have ``burn``, so that the threads compute before the peer begins to consume
(`burning`), and ``count_calls``, so that calls are counted (`counting`).
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from burning import Burners
from counting import Counter

#: number, the moment of the handler, the due moment, lateness of the claim or UNKNOWN; µs.
RECORD = struct.Struct("<qqqq")
UNKNOWN = -(1 << 62)

Item = tuple[dict[str, Any], int]

_LOG = int(os.open(os.environ["BENCHMARK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
_CHUNK = 20_000
_TICK = 0.05  # seconds, between the portions of a stream


def now_us() -> int:
    """
    Return the wall clock.

    Server, poster and consumer share it, because they are on one machine.
    """
    return time.time_ns() // 1000


def moment(due: int) -> datetime:
    """Return a due moment as a datetime, which most peers expect."""
    return datetime.fromtimestamp(due / 1e6, UTC)


def seconds_to(due: int) -> float:
    """Return the seconds until a due moment, for peers that expect a delay."""
    return max(0.0, (due - now_us()) / 1e6)


def record(body: dict[str, Any], late: int = UNKNOWN) -> None:
    """Handle an event: write its number and the current time to the log."""
    os.write(_LOG, RECORD.pack(body["i"], now_us(), body["due"], late))


def record_all(bodies: Iterable[tuple[dict[str, Any], int]]) -> None:
    """Handle several events, each with the lateness of its claim."""
    # One system call for each call of the handler, but a time for each event.
    os.write(_LOG, b"".join(RECORD.pack(b["i"], now_us(), b["due"], late) for b, late in bodies))


def payload(number: int, due: int, size: int) -> dict[str, Any]:
    """Return a payload whose compact JSON has *size* bytes, or the fewest possible."""
    bare = len(f'{{"i":{number},"due":{due},"k":""}}')
    return {"i": number, "due": due, "k": "x" * max(0, size - bare)}


class Peer:
    """A contender. Each driver defines a subclass."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.url: str = settings["url"]
        self.options: dict[str, Any] = settings["options"]
        self.batch: int = settings["batch"]
        self.role: str = settings["role"]

    def consume(self, ready: Callable[[], None]) -> None:
        """Consume for ever, or start to consume in the background. Call *ready* first."""
        raise NotImplementedError

    def post(self, body: dict[str, Any], due: int) -> None:
        """Post one event; return when it is stored."""
        raise NotImplementedError

    def post_one_by_one(self, items: Sequence[Item]) -> None:
        """Post each event; wait until it is stored before the next."""
        for body, due in items:
            self.post(body, due)

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """Post events in the fastest way that the peer offers."""
        self.post_one_by_one(items)


class AsyncPeer(Peer):
    """A peer that needs an event loop: one loop for all posts of the process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end in the loop of the posts."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self.connect())
        return self._loop.run_until_complete(coroutine)

    async def connect(self) -> None:
        """Prepare to post."""

    async def apost(self, body: dict[str, Any], due: int) -> None:
        """Post one event."""
        raise NotImplementedError

    def post_one_by_one(self, items: Sequence[Item]) -> None:
        """See `Peer.post_one_by_one`."""

        async def work() -> None:
            for body, due in items:
                await self.apost(body, due)

        self.wait(work())

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """Post fifty events at a time, concurrently."""

        async def work() -> None:
            for start in range(0, len(items), 50):
                await asyncio.gather(*(self.apost(*item) for item in items[start : start + 50]))

        self.wait(work())


def _post_items(peer: Peer, way: str, items: Sequence[Item]) -> float:
    """Post events; return the seconds of the posting alone."""
    began = time.perf_counter()
    (peer.post_in_bulk if way == "bulk" else peer.post_one_by_one)(items)
    return time.perf_counter() - began


def _post(peer: Peer, command: dict[str, Any]) -> dict[str, Any]:
    seconds, left, number = 0.0, command["count"], command["first"]
    while left:
        due = command["due"]
        some = [(payload(n, due, command["size"]), due) for n in _span(number, left)]
        seconds += _post_items(peer, command["way"], some)
        left, number = left - len(some), number + len(some)
    return {"posted": command["count"], "seconds": seconds}


def _span(first: int, left: int) -> range:
    return range(first, first + min(left, _CHUNK))


def _post_at(peer: Peer, command: dict[str, Any]) -> dict[str, Any]:
    dues, size = command["dues"], command["size"]
    items = [(payload(n, due, size), due) for n, due in enumerate(dues)]
    return {"posted": len(items), "seconds": _post_items(peer, command["way"], items)}


def _stream(peer: Peer, command: dict[str, Any]) -> dict[str, Any]:
    due, size, way = command["due"], command["size"], command["way"]
    began, posted = time.perf_counter(), 0
    while (gone := time.perf_counter() - began) < command["seconds"]:
        wanted = int((gone + _TICK) * command["rate"]) - posted
        # At most 500 at a time, so that the stream of a slow peer ends in time.
        some = [(payload(n, due, size), due) for n in range(posted, posted + min(wanted, 500))]
        _post_items(peer, way, some)
        posted += len(some)
        time.sleep(max(0.0, began + posted / command["rate"] - time.perf_counter()))
    return {"posted": posted, "seconds": time.perf_counter() - began}


_burners, _counter = Burners(), Counter()


def _burn(_peer: Peer, command: dict[str, Any]) -> dict[str, Any]:
    _burners.start(command)
    return _burners.told()


_COMMANDS: dict[str, Callable[[Peer, dict[str, Any]], dict[str, Any]]] = {
    "post": _post,
    "post_at": _post_at,
    "stream": _stream,
    "burn": _burn,
    "additions": lambda _peer, _command: _burners.told(),
    "calls": lambda _peer, _command: {"calls": _counter.told()},
}


def main(make: Callable[[dict[str, Any]], Peer]) -> None:
    """Run a driver."""
    # Keep the peer's output apart from the answers. A process that the peer forks closes
    # `sys.stdin`: it would wait for ever for the reading thread, which does not exist there.
    replies, orders = os.dup(1), os.fdopen(os.dup(0))
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(what: dict[str, Any]) -> None:
        os.write(replies, json.dumps(what).encode() + b"\n")

    settings = json.loads(orders.readline())
    peer = make(settings)

    def obey() -> None:
        try:
            for line in orders:
                command = json.loads(line)
                say(_COMMANDS[command["do"]](peer, command))
        except BaseException:
            # A driver that cannot answer must end and say why, even from a thread.
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    if peer.role == "post":
        say({"ready": True})
        obey()
    listener = threading.Thread(target=obey, daemon=True)
    listener.start()
    _burners.start(settings.get("burn", {}))
    if settings.get("count_calls"):
        _counter.start()
    peer.consume(lambda: say({"ready": True}))
    listener.join()
