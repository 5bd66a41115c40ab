"""
Run one poster of the soak: a timer that never joins, and makes a seeded mix of all other calls.

The poster posts in every possible way. It replaces, cancels and moves events that it posted a
moment ago. It declares and ends schedules, and writes keys for the readers of a `RunAt`. And it
makes calls that must be refused.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chaos import workload
from chaos.calls import Calls
from chaos.program import Program
from dtimer import DTimer, RunAt
from dtimer.errors import OptionError, PayloadError
from dtimer.model.ids import IdGenerator

#: The steps, by weight.
_STEPS: dict[str, float] = {
    "post": 42,
    "post_once": 12,
    "post_expiring": 4,
    "post_far": 0.5,
    "post_if": 7,
    "post_in_pipe": 3,
    "post_again": 7,
    "post_debounced": 7,
    "update": 4,
    "cancel": 7,
    "cancel_many": 1,
    "reschedule": 7,
    "burst": 0.25,
    "schedule": 2,
    "schedule_block": 0.7,
    "run_now": 0.5,
    "revive": 0.5,
    "revive_some": 0.2,
    "drop": 0.2,
    "clear": 0.5,
    "write": 6,
    "hostile": 5,
}

#: Every poster declares these at its start, and never changes them. So the checker can account for
#: each occurrence.
STEADY: dict[str, dict[str, Any]] = {
    "steady-coalesce": {"every": 250, "misfire": "coalesce", "overlap": "queue"},
    "steady-all": {"every": 250, "misfire": "all", "overlap": "allow"},
    "steady-cron": {"cron": "* * * * * *", "misfire": "coalesce", "overlap": "queue"},
    "steady-cron-all": {"cron": "*/2 * * * * *", "misfire": "all", "overlap": "allow"},
    "steady-grace": {"every": 500, "misfire": "coalesce", "overlap": "queue", "grace": 700},
    "steady-expires": {"every": 500, "misfire": "all", "overlap": "allow", "expires": 700},
}

#: The fraction of new events whose ids the library generates, so that nodes claim them ahead of
#: time. The poster names the other events, and posts some of those ids again.
_GENERATED = 0.4

#: The fraction of these whose ids the poster asks for before it posts.
_KNOWN = 0.3

#: The number of ids of a poster that are posted with ``max_wait``, and with nothing else.
_DEBOUNCED = 4

#: The number of events in a burst for one millisecond.
BURST = 500

#: An hour in ms, longer than any soak.
FAR = 3_600_000

#: With more overdue events than this, nothing is posted in bulk.
_BACKLOG = 6_000


class _Ids:
    """
    Generates the ids of a timer's posts, and tells them in advance.

    A history must have the id of a post before the call. If the poster is killed during the call,
    no later record can give the id.
    """

    def __init__(self, ids: IdGenerator) -> None:
        self._generate = ids
        self._reserved: deque[str] = deque()

    def reserve(self) -> str:
        """Generate an id now, for the next post that has none yet."""
        self._reserved.append(self._generate())
        return self._reserved[-1]

    def for_caller(self) -> str:
        """Generate an id for `DTimer.new_id`."""
        return self._generate.for_caller()

    def __call__(self) -> str:
        return self._reserved.popleft() if self._reserved else self._generate()


class Posting(Program):
    """
    The program of a poster.

    Further settings: ``rate``, the steps a second; ``bulk``, the additional events a second that
    are posted in bulk; ``runat``, the name of a queue; and ``cleared``, a namespace without nodes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        setting = self.setting
        url, options = setting["url"], setting["options"]
        self.calls = Calls(self.writer)
        codec = workload.codec(self.start)
        self.timer = DTimer(self.name, self.client_or_url, **options, codec=codec)
        self.ids = _Ids(self.timer._poster.new_id)
        self.timer._poster.new_id = self.ids
        self.queue = RunAt(setting["runat"], redis=self.client_or_url, timeout=options["timeout"])
        self.cleared = DTimer(self.name, self.client_or_url, **options | {"ns": setting["cleared"]})
        # Without retries, because a repeated transaction would act twice.
        self.client = redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        self.recent: deque[str] = deque(maxlen=40)
        #: Ids that the library generated. They are never posted again.
        self.generated: deque[str] = deque(maxlen=20)
        #: The payloads of the last of these ids.
        self.payloads: dict[str, dict[str, Any]] = {}
        self.keys: deque[str] = deque(maxlen=10)
        #: Of the blocks of schedules. A later poster of this name begins with a higher one.
        self.version = int(time.monotonic())

    # -------------------------------------------------------------------------- the steps

    def _new(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a payload, and the options that give its id."""
        if self.rng.random() < _GENERATED:
            payload = workload.payload(self.rng, self.serial(), self._near(), generated=True)
            known = self.rng.random() < _KNOWN
            id = self.timer.new_id() if known else self.ids.reserve()
            self.generated.append(id)
            self.payloads = {id: payload} | {
                id: payload for id, payload in self.payloads.items() if id in self.generated
            }
            return payload, {"id": id, "known" if known else "generated": True}
        payload, id = self._named()
        return payload, {"id": id}

    def _named(self) -> tuple[dict[str, Any], str]:
        n = self.serial()
        payload = workload.payload(self.rng, n, self._near())
        # All posters share some ids, and post them again and again.
        id = f"{self.name}-{n}" if self.rng.random() < 0.95 else f"hot-{self.rng.randrange(20)}"
        self.recent.append(id)
        return payload, id

    def _near(self) -> list[str]:
        """Return recent ids, which may be cancelled or moved."""
        return [*self.recent, *self.generated]

    def _delay(self) -> float:
        return self.rng.choice([0, self.rng.uniform(0, 50), self.rng.uniform(0, 2_000)])

    def post(self) -> None:
        payload, named = self._new()
        self.calls.post(self.timer, payload, self._delay(), **named)

    def post_once(self) -> None:
        """Post an event that is delivered at most once."""
        payload, named = self._new()
        self.calls.post(self.timer, payload, self._delay(), **named, max_retries=0)

    def post_expiring(self) -> None:
        """Post an event that expires soon after it is due."""
        payload, named = self._new()
        delay = self._delay()
        expires = delay + self.rng.choice([1, 50, 1_000])
        self.calls.post(self.timer, payload, delay, **named, expires=expires)

    def post_far(self) -> None:
        """Post an event that is due after the end of the run."""
        payload, id = self._named()
        self.calls.post(self.timer, payload, FAR, id=f"far-{id}")

    def post_if(self) -> None:
        """Post on a condition about an existing event."""
        payload, id = self._named()
        policy = self.rng.choice(["keep", "error", "earliest", "latest"])
        id = self.rng.choice([id, *self.recent])
        self.calls.post(self.timer, payload, self._delay(), id=id, if_exists=policy)

    def post_in_pipe(self) -> None:
        """Post up to three events in a MULTI of this program's client."""
        each = []
        for _ in range(self.rng.randint(1, 3)):
            payload, named = self._new()
            each.append({"ev": payload, "delay": self._delay(), **named})
        self.calls.post_in(self.timer, self.client, each)

    def post_again(self) -> None:
        payload, id = self._named()
        self.calls.post(self.timer, payload, self._delay(), id=self.rng.choice([id, *self.recent]))

    def post_debounced(self) -> None:
        """Post an event again and again, so that it would never start without a limit."""
        delay = self.rng.uniform(100, 500)
        limit = self.rng.choice([delay, 700, 1_500])
        id = f"{self.name}-debounced-{self.rng.randrange(_DEBOUNCED)}"
        payload = {"n": self.serial(), "do": "ok"}
        self.calls.post(self.timer, payload, delay, id=id, max_wait=limit)

    def update(self) -> None:
        """Replace the payload of an event that is never posted again."""
        if self.payloads:
            id = self.rng.choice(list(self.payloads))
            payload = self.payloads[id] | {"updated": self.serial()}
            self.calls.update(self.timer, id, payload)

    def cancel_many(self) -> None:
        if near := self._near():
            self.calls.cancel_many(self.timer, list(set(self.rng.choices(near, k=4))))

    def cancel(self) -> None:
        if near := self._near():
            self.calls.cancel(self.timer, self.rng.choice(near))

    def reschedule(self) -> None:
        if near := self._near():
            self.calls.reschedule(self.timer, self.rng.choice(near), self._delay())

    def burst(self) -> None:
        """Post many events for one moment."""
        delay = self.rng.uniform(0, 1_000)
        generated = self.rng.random() < _GENERATED
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = {"n": n, "do": "ok"}
            named = self._one_of_many(n, generated=generated)
            items.append({"ev": payload, "delay": delay, **named, "max_retries": 3})
        self.calls.post_many(self.timer, items)

    def _one_of_many(self, n: int, *, generated: bool) -> dict[str, Any]:
        """Return the options that give an event of a burst its id: all are generated, or none."""
        if generated:
            return {"id": self.ids.reserve(), "generated": True}
        return {"id": f"{self.name}-{n}"}

    def schedule(self) -> None:
        """Declare a schedule, changed or not, or end it."""
        id = self._schedule(self.rng.randrange(3))
        if self.rng.random() < 0.15:
            self.calls.unschedule(self.timer, id)
            return
        self.calls.declare(
            self.timer,
            {"n": self.serial(), "do": self.rng.choice(["ok"] * 8 + ["nap"])},
            id=id,
            every=self.rng.choice([200, 300, 500, 700]),
            misfire=self.rng.choice(["coalesce", "skip", "all"]),
            overlap=self.rng.choice(["queue", "allow", "skip"]),
            grace=self.rng.choice([None, None, 300, 2_000]),
            expires=self.rng.choice([None, None, 400, 3_000]),
        )

    def _schedule(self, i: int) -> str:
        return f"{self.name}-every-{i}"

    def schedule_block(self) -> None:
        """Declare a block of schedules, often with a higher version, seldom with a lower one."""
        self.version += self.rng.choice([-1, 0, 0, 1, 1, 1])
        ids = self._in_blocks()
        chosen = self.rng.sample(ids, self.rng.randrange(1, len(ids) + 1))
        schedules = {
            id: ({"n": self.serial(), "do": "ok"}, self.rng.choice([300, 700])) for id in chosen
        }
        others = [id for id in ids if id not in chosen]
        self.calls.declare_together(self.timer, self.name, self.version, schedules, others)

    def _in_blocks(self) -> list[str]:
        return [f"{self.name}-block-{i}" for i in range(3)]

    def run_now(self) -> None:
        """Run an additional occurrence of a schedule."""
        self.calls.run_now(self.timer, self._schedule(self.rng.randrange(3)))

    def _letters(self) -> list[str]:
        with self.calls.ignoring_outages():
            return [letter.id for letter in self.timer.dead(limit=50)]
        return []

    def revive(self) -> None:
        if letters := self._letters():
            self.calls.revive(self.timer, self.rng.choice(letters))

    def revive_some(self) -> None:
        """Revive those of several dead letters that have a reason."""
        if letters := self._letters():
            reason = self.rng.choice(["failed", "lease_lost", "expired"])
            self.calls.revive_some(self.timer, list(set(self.rng.choices(letters, k=4))), reason)

    def drop(self) -> None:
        # The checker accounts for each occurrence of a schedule by its end.
        if letters := [id for id in self._letters() if "@" not in id]:
            self.calls.drop(self.timer, self.rng.choice(letters))

    def clear(self) -> None:
        """Clear a namespace that other posters fill as well. The events of this one are gone."""
        ids = [f"{self.name}-{self.serial()}" for _ in range(3)]
        with self.calls.ignoring_outages():
            self.cleared.post_many([{"ev": {}, "delay": FAR, "id": id} for id in ids])
            self.cleared.every(FAR, {}, id=self.name)
            self.cleared.clear()
            left = [record for id in ids if (record := self.cleared.peek(id))]
            assert not left, f"still there after a clear: {left}"

    def write(self) -> None:
        """Write a new key, or move a recent one."""
        if self.keys and self.rng.random() < 0.1:
            key = self.rng.choice(self.keys)
        else:
            key = f"key-{self.serial()}"
            self.keys.append(key)
        self.calls.write(self.queue, key, self._delay())

    def hostile(self) -> None:
        """Make a post that must be refused before anything is sent."""
        arguments = dict(self.rng.choice(workload.HOSTILE))
        try:
            self.timer.post(arguments.pop("ev"), **arguments)
        except (OptionError, PayloadError):
            return
        raise AssertionError(f"the post was not refused: {arguments!r:.200}")

    # ------------------------------------------------------------------------------- bulk

    def bulk(self) -> None:
        """Post many events, unless many are overdue already."""
        with self.calls.ignoring_outages():
            if self.timer.stats().overdue > _BACKLOG:
                return
        generated = self.rng.random() < _GENERATED
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = workload.payload(self.rng, n, bulk=True, generated=generated)
            items.append(
                {
                    "ev": payload,
                    "delay": self.rng.uniform(0, 500),
                    **self._one_of_many(n, generated=generated),
                    "max_retries": 20,
                }
            )
        self.calls.post_many(self.timer, items)

    # -------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Post until standard input ends; then end all schedules."""
        rate = self.setting["rate"]
        for id, policies in STEADY.items():
            self.calls.declare(self.timer, {"n": 0, "do": "ok"}, id=id, **policies)
        while not self.ended.is_set():
            self.orders(self.rng.expovariate(rate))
            if self.rng.random() < self.setting["bulk"] / BURST / rate:
                self.bulk()
            step = self.rng.choices(list(_STEPS), list(_STEPS.values()))[0]
            getattr(self, step)()
        for id in (*map(self._schedule, range(3)), *self._in_blocks(), *STEADY):
            # A schedule that continues would keep the run from draining.
            while not self.calls.unschedule(self.timer, id):
                pass
        self.timer.leave()
        self.cleared.leave()
        self.queue.stop()
        self.client.close()
        self.finish()


if __name__ == "__main__":
    Posting(sys.argv[1]).run()
