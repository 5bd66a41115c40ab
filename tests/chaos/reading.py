"""
Run one reader of the soak: threads that read keys of a `RunAt`, and confirm them in every way.

A thread confirms a key by reading the next one, or with ``confirm``. Now and then it does not
confirm the key: the thread ends, or leaves the queue through an exception, or the nemesis kills the
process.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from chaos.calls import Calls
from chaos.history import claimed_us
from chaos.program import Program, Thread
from chaos.workload import LEASE
from dtimer import RunAt
from dtimer.errors import StoreError


class _Enough(Exception):
    """Makes a reader leave the queue while it still holds a key."""


class Reading(Program):
    """The program of a reader. Further settings: ``runat``, a queue's name, and ``threads``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.calls = Calls(self.writer)

    def _make(self) -> RunAt:
        setting = self.setting
        options = {name: setting["options"][name] for name in ("lease", "timeout", "backoff")}
        queue = RunAt(
            setting["runat"],
            redis=self.client_or_url,
            interval=setting["options"]["poll_interval"],
            concurrency=setting["threads"],
            max_retries=50,
            **options,
        )
        queue.on("error", self.note_error)
        return queue

    def _read(self, queue: RunAt, until: float) -> None:
        """Read keys until the moment *until*; raise `_Enough` now and then."""
        while time.monotonic() < until and not self.ended.is_set():
            k = self.writer.inv("read", face="runat")
            try:
                key = queue.read(300)
            except StoreError as e:
                self.writer.end("read", k, "no", why=f"{type(e).__name__}: {e}"[:200])
                self.ended.wait(0.1)
                continue
            if key is None:
                self.writer.end("read", k, id=None)
                continue
            self.writer.end("read", k, id=key, **_about(queue))
            self._use(queue, key)

    def _use(self, queue: RunAt, key: str) -> None:
        chance = self.rng.random()
        if chance < 0.02:
            self.ended.wait(2 * LEASE / 1000)
        elif chance < 0.03:
            raise _Enough(key)
        else:
            threading.Event().wait(self.rng.uniform(0, 0.01))
        if self.rng.random() < 0.3:
            self.calls.confirm_key(queue, key)

    def _node(self) -> None:
        """Read from one queue for a while, with several threads, and leave it in some way."""
        until = time.monotonic() + self.rng.uniform(0.5, 1.5) * self.setting["restless"]
        failure: list[BaseException] = []

        def body() -> None:
            try:
                self._read(queue, until)
            except _Enough as e:
                failure.append(e)
            # This thread does not confirm the key that it holds, so the key is delivered again.
            last = getattr(queue._by_thread, "last_reading", None)
            if last is not None and not last.done.is_set():
                self.writer.note("retry", face="runat", id=last.event.id, accepted=True)

        queue = self._make()
        try:
            with queue:
                threads = [Thread(f"reader-{i}", body) for i in range(self.setting["threads"])]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.result()
                if failure:
                    raise failure[0]
        except _Enough:
            pass

    def run(self) -> None:
        """Read until standard input ends."""
        watch = Thread("orders", self._watch)
        watch.start()
        while not self.ended.is_set():
            self._node()
        watch.result()
        self.finish()

    def _watch(self) -> None:
        while not self.ended.is_set():
            self.orders(1)


def _about(queue: RunAt) -> dict[str, Any]:
    """Return the fields of the claim behind the key that this thread has just read."""
    ev = queue._by_thread.last_reading.event
    return {
        "tok": ev.token,
        "att": ev.attempt,
        "due": round(ev.due * 1000),
        "srv": claimed_us(ev),
        "lease_us": LEASE * 1000,
    }


if __name__ == "__main__":
    Reading(sys.argv[1]).run()
