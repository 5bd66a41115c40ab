"""
Drive the floors: programs that cost less than any timer could. dtimer is measured against them.

``wait``   waits for each moment with `select.select`, without a server.
``call``   posts by calling a script that does nothing, with as many arguments as dtimer's post.
``least``  a sorted set, a hash, and the cheapest scripts that can post, claim and confirm (the
           confirm is sent with the next claim). The scripts do not check, count or retry, and
           send no wakes. A process that dies loses the events that it holds.
"""

from __future__ import annotations

import json
import os
import select
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any

import redis
from driving import Item, Peer, main, now_us, record, record_all
from least import POST, POST_MANY, CLAIM

from dtimer.store.keys import Keys

_KEYS_OF_LEAST = ("bench:due", "bench:body")
_LEASE = 30_000_000
_LONGEST = 0.05  # seconds; without wakes, the consumer polls


def new_id() -> str:
    """Return a random id of 12 characters."""
    return urlsafe_b64encode(os.urandom(9)).decode()


class Wait(Peer):
    """Waits for moments without a server. A post gives the moments."""

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        ready()

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """Wait for each of the moments in turn."""
        for body, due in sorted(items, key=lambda item: item[1]):
            while (left := due - now_us()) > 0:
                select.select([], [], [], left / 1e6)
            record(body)


class Call(Peer):
    """Calls a script that does nothing."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._client: Any = redis.Redis.from_url(self.url)
        self._sha = self._client.script_load("return 1")
        self._keys = Keys.of("bench")

    def _arguments(self, body: dict[str, Any], due: int) -> list[str]:
        words = [*self._keys, "", "abcdefghijkl:1", "abcdefghijkl", str(due)]
        return [*words, ",3|" + json.dumps(body, separators=(",", ":"))]

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._client.evalsha(self._sha, len(self._keys), *self._arguments(body, due))

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """See `Peer.post_in_bulk`: one call an event, 500 calls in flight."""
        for start in range(0, len(items), 500):
            with self._client.pipeline(transaction=False) as pipe:
                for item in items[start : start + 500]:
                    pipe.evalsha(self._sha, len(self._keys), *self._arguments(*item))
                pipe.execute()


class Least(Peer):
    """Posts, claims and confirms as cheaply as possible."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._client: Any = redis.Redis.from_url(self.url)
        self._post, self._post_many, self._claim = (
            self._client.script_load(text) for text in (POST, POST_MANY, CLAIM)
        )

    def _words(self, items: Sequence[Item]) -> list[str | int]:
        words: list[str | int] = []
        for body, due in items:
            words += [due, new_id(), json.dumps(body, separators=(",", ":"))]
        return words

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._client.evalsha(self._post, 2, *_KEYS_OF_LEAST, *self._words([(body, due)]))

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """See `Peer.post_in_bulk`."""
        for start in range(0, len(items), 500):
            words = self._words(items[start : start + 500])
            self._client.evalsha(self._post_many, 2, *_KEYS_OF_LEAST, *words)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""
        done: list[bytes] = []
        ready()
        while True:
            wait, ids, bodies = self._client.evalsha(
                self._claim, 2, *_KEYS_OF_LEAST, self.batch, _LEASE, *done
            )
            record_all((json.loads(body), 0) for body in bodies)
            done = ids
            if not ids:
                select.select([], [], [], _LONGEST if wait < 0 else min(wait / 1e6, _LONGEST))


_KINDS = {"wait": Wait, "call": Call, "least": Least}

main(lambda settings: _KINDS[settings["options"]["kind"]](settings))
