"""Call the library, and record the beginning and the end of each call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chaos.history import Writer, checksum
from dtimer import DTimer, RunAt
from dtimer.errors import EventExists, OutcomeUnknown, StoreError
from dtimer.model.event import Event


class Calls:
    """
    Calls the library, and records each call with *writer*. `chaos.history` explains the fields.

    The program continues if Redis refused a call, or if the outcome of a call is unknown. Any other
    exception is a bug, and ends the program.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    @contextlib.contextmanager
    def _recorded(self, op: str, *, k: int | None = None, **about: Any) -> Iterator[dict[str, Any]]:
        """
        Record a call and its outcome, and suppress its refusal and its unknown outcome.

        Args:
            op: The kind of the call.
            k: The number of a call whose beginning is recorded already.
            about: Fields of its beginning. The caller fills the yielded dictionary with further
                fields of its end.
        """
        recorded = self._writer.call(op, **about) if k is None else self._writer.ending(op, k)
        with contextlib.suppress(StoreError, EventExists), recorded as end:
            yield end

    @staticmethod
    def _fields(payload: dict[str, Any], delay: float, **options: Any) -> dict[str, Any]:
        about = {
            "id": options.get("id"),
            "n": payload["n"],
            "delay_us": round(max(0, delay) * 1000),
            "max_retries": options.get("max_retries"),
            "crc": checksum(payload),
            "if_exists": options.get("if_exists", "replace"),
        }
        if "expires" in options:
            about["expires_us"] = round(options["expires"] * 1000)
        if "max_wait" in options:
            about["max_wait_us"] = round(options["max_wait"] * 1000)
        if options.get("generated") or options.get("known"):
            about["generated"] = True
        return about

    @staticmethod
    def _asked(options: dict[str, Any]) -> dict[str, Any]:
        """Return the options to pass on: without an id that the library will generate."""
        without = ("id", "generated") if options.get("generated") else ("known",)
        return {name: value for name, value in options.items() if name not in without}

    def post(self, timer: DTimer, payload: dict[str, Any], delay: float, **options: Any) -> None:
        """
        Post an event, and record its ``id`` before the call: a killed poster records nothing more.

        With the option ``generated``, *timer* generates the id. It is the id that `chaos.posting`
        has reserved for this post. With the option ``known``, the id comes from ``new_id``.
        """
        options.setdefault("max_retries", 3)
        with self._recorded("post", **self._fields(payload, delay, **options)) as end:
            # If an event has the reserved id already, the timer has generated another one.
            posted = timer.post(payload, delay, **self._asked(options))
            end["id"], end["stored"] = posted, posted.stored

    def post_in(self, timer: DTimer, client: Any, each: Sequence[dict[str, Any]]) -> None:
        """Post several events in a MULTI of *client*; *each* has arguments of ``post``."""
        begun = []
        with client.pipeline(transaction=True) as pipe:
            for item in each:
                options = {"max_retries": 3, **item}
                payload, delay = options.pop("ev"), options.pop("delay")
                about = self._fields(payload, delay, **options)
                # The client executes the pipeline, so the deadline of the timer does not apply. The
                # checker does not test the deadline of a record that is marked as a burst.
                begun.append(self._writer.inv("post", burst=True, **about))
                timer.post(payload, delay, pipe=pipe, **self._asked(options))
            try:
                pipe.execute()
            except Exception as e:
                # The client's exception does not tell whether the transaction took effect.
                for k in begun:
                    self._writer.end("post", k, "info", why=f"{type(e).__name__}: {e}"[:200])
            else:
                for k in begun:
                    self._writer.end("post", k)

    def post_many(self, timer: DTimer, each: Sequence[dict[str, Any]]) -> bool:
        """Post *each* with ``post_many``; return True if the call succeeded."""
        k: int | None = None
        # The records of a burst all have the `k` of the first.
        for item in each:
            k = self._writer.inv("post", k=k, **self._fields(**{**item, "payload": item["ev"]}))
        assert k is not None
        with self._recorded("post", k=k):
            timer.post_many(map(self._asked, each))
            return True
        return False

    def cancel(self, timer: DTimer, id: str) -> None:
        with self._recorded("cancel", id=id) as end:
            end["outcome"] = timer.cancel(id).name

    def cancel_many(self, timer: DTimer, ids: Sequence[str]) -> None:
        """Cancel several events in one call. Each has a record of its own outcome."""
        k: int | None = None
        for id in ids:
            k = self._writer.inv("cancel", k=k, id=id)
        assert k is not None
        try:
            outcomes = timer._store.cancel_some(ids)
        except StoreError as e:
            self._writer.end("cancel", k, "info" if isinstance(e, OutcomeUnknown) else "no")
            return
        for id, outcome in zip(ids, outcomes, strict=True):
            self._writer.end("cancel", k, id=id, outcome=outcome.name)

    def update(self, timer: DTimer, id: str, payload: dict[str, Any]) -> None:
        with self._recorded("update", id=id, n=payload["n"], crc=checksum(payload)) as end:
            end["updated"] = timer.update(id, payload)

    def drop(self, timer: DTimer, id: str) -> None:
        with self._recorded("drop", id=id) as end:
            end["dropped"] = timer.drop(id)

    def reschedule(self, timer: DTimer, id: str, delay: float) -> None:
        with self._recorded("reschedule", id=id, delay_us=round(delay * 1000)) as end:
            end["moved"] = timer.reschedule(id, delay)

    def settle(self, op: str, ev: Event, call: Callable[[], bool], **more: Any) -> None:
        """Confirm, retry or extend an event that this process holds."""
        with self._recorded(op, id=ev.id, n=ev.get("n"), tok=ev.token, **more) as end:
            end["accepted"] = call()

    def declare(
        self,
        timer: DTimer,
        payload: dict[str, Any],
        *,
        every: float | None = None,
        cron: str | None = None,
        **options: Any,
    ) -> None:
        """Declare a schedule with an interval or a cron expression."""
        when = {"cron": cron} if every is None else {"every_us": round(every * 1000)}
        about = {"n": payload["n"], "crc": checksum(payload), **when, **options}
        with self._recorded("schedule", **about) as end:
            if every is None:
                end["result"] = timer.cron(cron, payload, **options)
            else:
                end["result"] = timer.every(every, payload, **options)

    def declare_together(
        self,
        timer: DTimer,
        owner: str,
        version: int,
        schedules: dict[str, tuple[dict[str, Any], float]],
        others: Sequence[str],
    ) -> None:
        """
        Declare a block: a payload and an interval by id. It may remove the *others* of the owner.

        A lower version does nothing. Its operations are recorded nevertheless, and the checker then
        knows less about these schedules.
        """
        with contextlib.suppress(StoreError), contextlib.ExitStack() as recorded:
            for id, (payload, every) in schedules.items():
                about = {"n": payload["n"], "crc": checksum(payload), "id": id}
                call = self._writer.call("schedule", every_us=round(every * 1000), **about)
                recorded.enter_context(call)
            ends = {
                id: recorded.enter_context(self._writer.call("unschedule", id=id)) for id in others
            }
            with timer.declare_schedules(owner=owner, version=version) as block:
                for id, (payload, every) in schedules.items():
                    timer.every(every, payload, id=id)
            for id, end in ends.items():
                end["found"] = id in block.removed

    def run_now(self, timer: DTimer, id: str) -> None:
        """Run an additional occurrence of a schedule."""
        with self._recorded("run_now", id=id) as end:
            end["occurrence"] = timer.run_now(id)

    def revive(self, timer: DTimer, id: str) -> None:
        with self._recorded("revive", id=id) as end:
            end["revived"] = timer.revive(id)

    def revive_some(self, timer: DTimer, ids: Sequence[str], reason: str) -> None:
        """Revive several dead letters in one call, if they have a reason."""
        k: int | None = None
        for id in ids:
            k = self._writer.inv("revive", k=k, id=id)
        assert k is not None
        with self._recorded("revive", k=k):
            timer._store.revive_some(ids, reason)

    def unschedule(self, timer: DTimer, id: str) -> bool:
        """End a schedule; return True if the call succeeded."""
        with self._recorded("unschedule", id=id) as end:
            end["found"] = timer.unschedule(id)
            return True
        return False

    def write(self, queue: RunAt, key: str, delay: float) -> None:
        """Write a key that is due *delay* ms from now, by the clock of this process."""
        run_at = time.time() * 1000 + delay
        # The server's clock decides when the key is due, and it may differ from this one.
        with self._recorded("write", face="runat", id=key, at_us=int(run_at * 1000)):
            queue.write(key, run_at)

    def confirm_key(self, queue: RunAt, key: str) -> None:
        """Confirm a key that this thread has read."""
        with self._recorded("confirm", face="runat", id=key) as end:
            end["accepted"] = queue.confirm(key)

    @staticmethod
    def ignoring_outages() -> contextlib.suppress:
        """Suppress the errors of a call that only reads while Redis is down."""
        return contextlib.suppress(StoreError)
