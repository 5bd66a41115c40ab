"""Schedules that are served by processes which are killed continually."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections import defaultdict

import pytest
from fleet import Fleet, start_together
from servers import LIMIT, eventually
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.keys import Keys

#: The seconds during which processes are killed; a full run takes 60.
SECONDS = float(os.environ.get("DTIMER_TEST_CRASHES", "6"))

#: The intervals of the schedules, in ms. Another schedule has a cron expression for each second.
INTERVALS = [200, 300, 400, 500, 700, 900, 1_100, 1_500, 2_000]

#: A handler takes 30 ms, so that some processes are killed inside a handler.
PAYLOAD = {"take": 30, "brief": True}

OPTIONS = {"lease": 1_000, "concurrency": 4, "backoff": 0, "max_retries": 50}


@pytest.mark.acceptance
@pytest.mark.timeout(SECONDS + LIMIT)
def test_six_processes_killed_at_random_miss_no_occurrence(server, client, namespace):
    """
    Each nominal time has one first attempt, or is coalesced into one. A first attempt is unreported
    if its process was killed between the claim and the handler. Then the occurrence starts again
    after its lease has ended.
    """
    chance = random.Random(SECONDS)
    kills = 0
    names = (f"node-{n}" for n in itertools.count(1))
    with Fleet(server.url, namespace, **OPTIONS) as fleet:
        start_together(fleet, [[next(names)] for _ in range(6)])
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline or kills < SECONDS:
            # Every process declares the schedules when it has started, as a program does.
            fleet.tell(fleet.names[-1], "declare", intervals=INTERVALS, payload=PAYLOAD)
            fleet.wait("start", chance.randint(2, 12))
            fleet.kill9(chance.choice(fleet.names))
            kills += 1
            fleet.start(next(names))
        # Events of the last killed process are delivered again when their leases have ended.
        keys = Keys.of(namespace)
        eventually(lambda: client.hlen(keys.lease) == client.hlen(keys.tries) == 0)
        fleet.leave(*fleet.names)
        starts = fleet.reported("start")

    first_attempts = defaultdict(int)
    missed_by = {}
    for start in starts:
        occurrence = start.schedule, start.nominal
        first_attempts[occurrence] += start.attempt == 1
        assert missed_by.setdefault(occurrence, start.missed) == start.missed
    assert set(first_attempts.values()) <= {0, 1}, "an occurrence with two first attempts"

    with DTimer("reader", server.url, ns=namespace) as reader:
        schedules = {schedule.id: schedule for schedule in reader.schedules()}
        # Claimed by a node that was leaving, and released.
        released = {record.id for record in reader.upcoming()}
    assert len(INTERVALS) + 1 == len(schedules)
    coalesced = 0
    for id, schedule in schedules.items():
        every = int(id.split("-")[1]) * 1_000
        nominals = sorted(nominal for name, nominal in missed_by if name == id)
        for nominal, following in itertools.pairwise(nominals):
            missed = missed_by[id, nominal]
            coalesced += missed
            assert nominal + (missed + 1) * every == following, f"a gap, or a double, in {id}"
        last = round(schedule.last * 1000)
        coming = nominals[-1] + (missed_by[id, nominals[-1]] + 1) * every
        assert coming > last or f"{id}@{coming}" in released, f"{id} lost its last"
    unreported = sum(n == 0 for n in first_attempts.values())
    latest = max(start.began - start.due for start in starts if start.attempt == 1)
    sys.stdout.write(
        f"{SECONDS:.0f} s, {kills} kills, {len(missed_by)} occurrences started, {coalesced}"
        f" coalesced, {unreported} whose first attempt was not reported,"
        f" {len(starts) - len(missed_by)} started again,"
        f" first attempts at most {latest:.0f} ms late\n"
    )
    assert kills >= SECONDS
    assert_sound(client, keys)
