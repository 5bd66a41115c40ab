"""
A poster of the soak: a timer that never joins, and does a seeded mix of everything else.

It posts in every way there is, posts anew and cancels and moves what it posted a moment
ago, declares schedules and ends them, writes keys for the readers of a `RunAt`, and tries
what must be refused.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chaos import mix
from chaos.calls import Calls
from chaos.program import Program
from dtimer import DTimer, RunAt
from dtimer.errors import OptionError, PayloadError

#: What is done, by weight, in each step.
_STEPS: dict[str, float] = {
    "post": 42,
    "post_once": 12,
    "post_minted": 5,
    "post_expiring": 4,
    "post_far": 0.5,
    "post_if": 7,
    "post_in_pipe": 3,
    "post_again": 7,
    "cancel": 7,
    "reschedule": 7,
    "burst": 0.25,
    "schedule": 2,
    "run_now": 0.5,
    "revive": 0.5,
    "write": 6,
    "hostile": 5,
}

#: Declared alike by every poster at its start: of these each occurrence is accounted for.
STEADY: dict[str, dict[str, Any]] = {
    "steady-coalesce": {"every": 250, "misfire": "coalesce", "overlap": "queue"},
    "steady-all": {"every": 250, "misfire": "all", "overlap": "allow"},
    "steady-cron": {"cron": "* * * * * *", "misfire": "coalesce", "overlap": "queue"},
    "steady-cron-all": {"cron": "*/2 * * * * *", "misfire": "all", "overlap": "allow"},
}

#: Events in one millisecond.
BURST = 500

#: An hour, which no soak lasts.
FAR = 3_600_000

#: Events that are due and wait for a hand: more are not posted on top of them in bulk.
_BACKLOG = 6_000


class _Mint:
    """Makes ids, and remembers the last: of a post of unknown outcome nothing else is known."""

    def __init__(self, mint: Any) -> None:
        self._mint = mint
        self.last: str | None = None

    def __call__(self) -> str:
        self.last = self._mint()
        return self.last


class Posting(Program):
    """
    See the module.

    Its setting has besides: ``rate``, in steps a second; ``bulk``, in events a second that are
    posted on top of that; and ``runat``, the name of a queue.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        setting = self.setting
        url, options = setting["url"], setting["options"]
        self.calls = Calls(self.pen)
        self.timer = DTimer(self.name, url, **options)
        self.timer._mint = _Mint(self.timer._mint)
        self.queue = RunAt(setting["runat"], redis=url, timeout=options["timeout"])
        # It must not try again by itself: what it did would be done twice.
        self.client = redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        self.recent: deque[str] = deque(maxlen=40)
        self.keys: deque[str] = deque(maxlen=10)

    # -------------------------------------------------------------------------- the steps

    def _new(self) -> tuple[dict[str, Any], str]:
        n = self.serial()
        payload = mix.payload(self.rng, n, list(self.recent))
        # Some ids are shared by all posters, and wanted again and again.
        id = f"{self.name}-{n}" if self.rng.random() < 0.95 else f"hot-{self.rng.randrange(20)}"
        self.recent.append(id)
        return payload, id

    def _delay(self) -> float:
        return self.rng.choice([0, self.rng.uniform(0, 50), self.rng.uniform(0, 2_000)])

    def post(self) -> None:
        """Post in the ordinary way."""
        payload, id = self._new()
        self.calls.post(self.timer, payload, self._delay(), id=id)

    def post_once(self) -> None:
        """Post at most once."""
        payload, id = self._new()
        self.calls.post(self.timer, payload, self._delay(), id=id, max_retries=0)

    def post_minted(self) -> None:
        """Post without an id."""
        payload, _ = self._new()
        if id := self.calls.post(self.timer, payload, self._delay()):
            self.recent.append(id)

    def post_expiring(self) -> None:
        """Post what will be of no use a moment later."""
        payload, id = self._new()
        delay = self._delay()
        expires = delay + self.rng.choice([1, 50, 1_000])
        self.calls.post(self.timer, payload, delay, id=id, expires=expires)

    def post_far(self) -> None:
        """Post what nobody will live to see."""
        payload, id = self._new()
        self.calls.post(self.timer, payload, FAR, id=f"far-{id}")

    def post_if(self) -> None:
        """Post on a condition."""
        payload, id = self._new()
        policy = self.rng.choice(["keep", "error", "earliest", "latest"])
        id = self.rng.choice([id, *self.recent])
        self.calls.post(self.timer, payload, self._delay(), id=id, if_exists=policy)

    def post_in_pipe(self) -> None:
        """Post several in a MULTI of our own."""
        each = []
        for _ in range(self.rng.randint(1, 3)):
            payload, id = self._new()
            each.append({"ev": payload, "delay": self._delay(), "id": id})
        self.calls.post_in(self.timer, self.client, each)

    def post_again(self) -> None:
        """Post anew what was posted a moment ago."""
        payload, id = self._new()
        self.calls.post(self.timer, payload, self._delay(), id=self.rng.choice([id, *self.recent]))

    def cancel(self) -> None:
        """Cancel what was posted a moment ago."""
        if self.recent:
            self.calls.cancel(self.timer, self.rng.choice(self.recent))

    def reschedule(self) -> None:
        """Move what was posted a moment ago."""
        if self.recent:
            self.calls.reschedule(self.timer, self.rng.choice(self.recent), self._delay())

    def burst(self) -> None:
        """Post many for the same moment."""
        delay = self.rng.uniform(0, 1_000)
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = {"n": n, "do": "ok"}
            items.append(
                {"ev": payload, "delay": delay, "id": f"{self.name}-{n}", "max_retries": 3}
            )
        self.calls.post_many(self.timer, items)

    def schedule(self) -> None:
        """Declare a schedule, the same or another, or end it."""
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
        )

    def _schedule(self, i: int) -> str:
        return f"{self.name}-every-{i}"

    def run_now(self) -> None:
        """Have one more occurrence of a schedule."""
        self.calls.run_now(self.timer, self._schedule(self.rng.randrange(3)))

    def revive(self) -> None:
        """Give a dead letter another life."""
        letters = []
        with self.calls.unless_away():
            letters = [letter.id for letter in self.timer.dead(limit=50)]
        if letters:
            self.calls.revive(self.timer, self.rng.choice(letters))

    def write(self) -> None:
        """Write a key, or move one."""
        if self.keys and self.rng.random() < 0.1:
            key = self.rng.choice(self.keys)
        else:
            key = f"key-{self.serial()}"
            self.keys.append(key)
        self.calls.write(self.queue, key, self._delay())

    def hostile(self) -> None:
        """Try what must be refused, and refused before anything is sent."""
        arguments = dict(self.rng.choice(mix.HOSTILE))
        try:
            self.timer.post(arguments.pop("ev"), **arguments)
        except (OptionError, PayloadError):
            return
        raise AssertionError(f"it was taken: {arguments!r:.200}")

    # ------------------------------------------------------------------------------- bulk

    def bulk(self) -> None:
        """Post many, unless there is much to do already."""
        with self.calls.unless_away():
            if self.timer.stats().overdue > _BACKLOG:
                return
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = mix.payload(self.rng, n, bulk=True)
            items.append(
                {
                    "ev": payload,
                    "delay": self.rng.uniform(0, 500),
                    "id": f"{self.name}-{n}",
                    "max_retries": 20,
                }
            )
        self.calls.post_many(self.timer, items)

    # ------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Post until standard input ends; then end what goes on by itself."""
        rate = self.setting["rate"]
        for id, policies in STEADY.items():
            self.calls.declare(self.timer, {"n": 0, "do": "ok"}, id=id, **policies)
        while not self.ended.is_set():
            self.orders(self.rng.expovariate(rate))
            if self.rng.random() < self.setting["bulk"] / BURST / rate:
                self.bulk()
            step = self.rng.choices(list(_STEPS), list(_STEPS.values()))[0]
            getattr(self, step)()
        for id in (*map(self._schedule, range(3)), *STEADY):
            self.calls.unschedule(self.timer, id)
        self.timer.leave()
        self.queue.stop()
        self.client.close()
        self.finish()


if __name__ == "__main__":
    Posting(sys.argv[1]).run()
