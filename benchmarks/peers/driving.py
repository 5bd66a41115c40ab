"""
What all drivers in Python share: the protocol, the payload, and the record of a handler.

A driver is a program with its peer's packages and the standard library at hand, and nothing
else of this project. It reads JSON lines and answers each with one:

    settings                      the first line: url, role (post or consume), options, batch
    {"do": "post", ...}           post `count` events; answers with the seconds that it took
    {"do": "post_at", ...}        post one event for each of the moments `dues`
    {"do": "stream", ...}         post `rate` events a second for so many seconds

A consumer says ``{"ready": true}`` once it consumes, takes the same commands (for peers that
only hear of what they posted themselves), and ends when its input does. What its handlers
saw is not said but written, a record of 32 bytes an event, to the file that the environment
names: that works from whatever process or thread the peer runs handlers in, outlives them,
and costs every peer the same one system call.
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

#: number, the moment of the handler, the due moment, lateness of the claim or UNKNOWN; µs.
RECORD = struct.Struct("<qqqq")
UNKNOWN = -(1 << 62)

Item = tuple[dict[str, Any], int]

_LOG = int(os.open(os.environ["BENCHMARK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
_CHUNK = 20_000
_TICK = 0.05  # seconds, between the portions of a stream


def now_us() -> int:
    """Return the wall clock. Server, poster and consumer are on one machine, so it is theirs."""
    return time.time_ns() // 1000


def moment(due: int) -> datetime:
    """Return a due moment as most peers want it."""
    return datetime.fromtimestamp(due / 1e6, UTC)


def seconds_to(due: int) -> float:
    """Return how far ahead a due moment is, for peers that want a delay."""
    return max(0.0, (due - now_us()) / 1e6)


def record(body: dict[str, Any], late: int = UNKNOWN) -> None:
    """Be a handler: write down which event this is, and when it came."""
    os.write(_LOG, RECORD.pack(body["i"], now_us(), body["due"], late))


def record_all(bodies: Iterable[tuple[dict[str, Any], int]]) -> None:
    """Be a handler that is given several events, each with the lateness of its claim."""
    # One call of the system for one call of the handler, but each event has its moment.
    os.write(_LOG, b"".join(RECORD.pack(b["i"], now_us(), b["due"], late) for b, late in bodies))


def payload(number: int, due: int, size: int) -> dict[str, Any]:
    """Return a payload whose compact JSON has *size* bytes, or as few as there can be."""
    bare = len(f'{{"i":{number},"due":{due},"k":""}}')
    return {"i": number, "due": due, "k": "x" * max(0, size - bare)}


class Peer:
    """One contender. A driver makes a subclass."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.url: str = settings["url"]
        self.options: dict[str, Any] = settings["options"]
        self.batch: int = settings["batch"]
        self.role: str = settings["role"]

    def consume(self, ready: Callable[[], None]) -> None:
        """Consume for ever, or begin to in the background. Call *ready* first."""
        raise NotImplementedError

    def post(self, body: dict[str, Any], due: int) -> None:
        """Post one event, and know that it is stored."""
        raise NotImplementedError

    def post_one_by_one(self, items: Sequence[Item]) -> None:
        """Post each event, knowing that it is stored before the next."""
        for body, due in items:
            self.post(body, due)

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """Post events in the fastest way that the peer offers."""
        self.post_one_by_one(items)


class AsyncPeer(Peer):
    """A peer that lives in an event loop: one for all the posts of the process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, in the loop of the posts."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self.connect())
        return self._loop.run_until_complete(coroutine)

    async def connect(self) -> None:
        """Get ready to post."""

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
        """Post fifty at a time, side by side."""

        async def work() -> None:
            for start in range(0, len(items), 50):
                await asyncio.gather(*(self.apost(*item) for item in items[start : start + 50]))

        self.wait(work())


def _post_items(peer: Peer, way: str, items: Sequence[Item]) -> float:
    """Post, and return the seconds of the posting alone."""
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
        # No more than the peer can in a few ticks, lest the stream outlasts its time.
        some = [(payload(n, due, size), due) for n in range(posted, posted + min(wanted, 500))]
        _post_items(peer, way, some)
        posted += len(some)
        time.sleep(max(0.0, began + posted / command["rate"] - time.perf_counter()))
    return {"posted": posted, "seconds": time.perf_counter() - began}


_COMMANDS = {"post": _post, "post_at": _post_at, "stream": _stream}


def main(make: Callable[[dict[str, Any]], Peer]) -> None:
    """Be a driver."""
    # What the peer prints is no line of ours. And a process that it forks closes `sys.stdin`:
    # that would wait for ever for the thread which reads there, and was not forked.
    voice, ear = os.dup(1), os.fdopen(os.dup(0))
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def say(what: dict[str, Any]) -> None:
        os.write(voice, json.dumps(what).encode() + b"\n")

    peer = make(json.loads(ear.readline()))

    def obey() -> None:
        try:
            for line in ear:
                command = json.loads(line)
                say(_COMMANDS[command["do"]](peer, command))
        except BaseException:
            # On a thread too: a driver that cannot answer must end, and say why.
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    if peer.role == "post":
        say({"ready": True})
        obey()
    listener = threading.Thread(target=obey, daemon=True)
    listener.start()
    peer.consume(lambda: say({"ready": True}))
    listener.join()
