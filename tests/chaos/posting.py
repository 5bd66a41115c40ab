"""
A poster of the soak: a timer that never joins, and does a seeded mix of everything else.

It posts in every way there is, posts anew and cancels and moves what it posted a moment
ago, declares schedules and ends them, writes keys for the readers of a `RunAt`, and tries
what must be refused.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
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

#: The part of the posts that may have any id whose id is left to the library: such events are
#: claimed ahead of their time. The others, of which some are posted anew, are not.
_MINTED = 0.4

#: Events in one millisecond.
BURST = 500

#: An hour, which no soak lasts.
FAR = 3_600_000

#: Events that are due and wait for a hand: more are not posted on top of them in bulk.
_BACKLOG = 6_000


class _Mint:
    """Gives a timer the ids that were drawn of its own mint before, for the record of its posts."""

    def __init__(self, mint: Callable[[], str]) -> None:
        self._mint = mint
        self._drawn: deque[str] = deque()

    def draw(self) -> str:
        """Return the id that will be made for the next post, or for the one after those drawn."""
        self._drawn.append(self._mint())
        return self._drawn[-1]

    def __call__(self) -> str:
        return self._drawn.popleft() if self._drawn else self._mint()


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
        self.timer = DTimer(self.name, self.way, **options)
        self.mint = _Mint(self.timer._mint)
        self.timer._mint = self.mint
        self.queue = RunAt(setting["runat"], redis=self.way, timeout=options["timeout"])
        # It must not try again by itself: what it did would be done twice.
        self.client = redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        self.recent: deque[str] = deque(maxlen=40)
        #: Those of which the library has made the id: they are never posted anew.
        self.minted: deque[str] = deque(maxlen=20)
        self.keys: deque[str] = deque(maxlen=10)

    # -------------------------------------------------------------------------- the steps

    def _new(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a payload, and the options that say under which id to post it."""
        if self.rng.random() < _MINTED:
            payload = mix.payload(self.rng, self.serial(), self._near(), minted=True)
            self.minted.append(self.mint.draw())
            return payload, {"id": self.minted[-1], "minted": True}
        payload, id = self._named()
        return payload, {"id": id}

    def _named(self) -> tuple[dict[str, Any], str]:
        n = self.serial()
        payload = mix.payload(self.rng, n, self._near())
        # Some ids are shared by all posters, and wanted again and again.
        id = f"{self.name}-{n}" if self.rng.random() < 0.95 else f"hot-{self.rng.randrange(20)}"
        self.recent.append(id)
        return payload, id

    def _near(self) -> list[str]:
        """Return what was posted a moment ago, and may be cancelled or moved."""
        return [*self.recent, *self.minted]

    def _delay(self) -> float:
        return self.rng.choice([0, self.rng.uniform(0, 50), self.rng.uniform(0, 2_000)])

    def post(self) -> None:
        """Post in the ordinary way."""
        payload, named = self._new()
        self.calls.post(self.timer, payload, self._delay(), **named)

    def post_once(self) -> None:
        """Post at most once."""
        payload, named = self._new()
        self.calls.post(self.timer, payload, self._delay(), **named, max_retries=0)

    def post_expiring(self) -> None:
        """Post what will be of no use a moment later."""
        payload, named = self._new()
        delay = self._delay()
        expires = delay + self.rng.choice([1, 50, 1_000])
        self.calls.post(self.timer, payload, delay, **named, expires=expires)

    def post_far(self) -> None:
        """Post what nobody will live to see."""
        payload, id = self._named()
        self.calls.post(self.timer, payload, FAR, id=f"far-{id}")

    def post_if(self) -> None:
        """Post on a condition."""
        payload, id = self._named()
        policy = self.rng.choice(["keep", "error", "earliest", "latest"])
        id = self.rng.choice([id, *self.recent])
        self.calls.post(self.timer, payload, self._delay(), id=id, if_exists=policy)

    def post_in_pipe(self) -> None:
        """Post several in a MULTI of our own."""
        each = []
        for _ in range(self.rng.randint(1, 3)):
            payload, named = self._new()
            each.append({"ev": payload, "delay": self._delay(), **named})
        self.calls.post_in(self.timer, self.client, each)

    def post_again(self) -> None:
        """Post anew what was posted a moment ago."""
        payload, id = self._named()
        self.calls.post(self.timer, payload, self._delay(), id=self.rng.choice([id, *self.recent]))

    def cancel(self) -> None:
        """Cancel what was posted a moment ago."""
        if near := self._near():
            self.calls.cancel(self.timer, self.rng.choice(near))

    def reschedule(self) -> None:
        """Move what was posted a moment ago."""
        if near := self._near():
            self.calls.reschedule(self.timer, self.rng.choice(near), self._delay())

    def burst(self) -> None:
        """Post many for the same moment."""
        delay = self.rng.uniform(0, 1_000)
        minted = self.rng.random() < _MINTED
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = {"n": n, "do": "ok"}
            named = self._one_of_many(n, minted=minted)
            items.append({"ev": payload, "delay": delay, **named, "max_retries": 3})
        self.calls.post_many(self.timer, items)

    def _one_of_many(self, n: int, *, minted: bool) -> dict[str, Any]:
        """Say under which id to post it: all of a burst alike, so that one call draws them all."""
        return {"id": self.mint.draw(), "minted": True} if minted else {"id": f"{self.name}-{n}"}

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
        minted = self.rng.random() < _MINTED
        items = []
        for _ in range(BURST):
            n = self.serial()
            payload = mix.payload(self.rng, n, bulk=True, minted=minted)
            items.append(
                {
                    "ev": payload,
                    "delay": self.rng.uniform(0, 500),
                    **self._one_of_many(n, minted=minted),
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
            # One that goes on would keep the run from its end.
            while not self.calls.unschedule(self.timer, id):
                pass
        self.timer.leave()
        self.queue.stop()
        self.client.close()
        self.finish()


if __name__ == "__main__":
    Posting(sys.argv[1]).run()
