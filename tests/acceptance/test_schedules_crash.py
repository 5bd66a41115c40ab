"""Schedules that are served by processes which are killed continually."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import metronome
import pytest
from servers import LIMIT, eventually
from soundness import assert_sound

import dtimer
from dtimer import DTimer
from dtimer.store.keys import Keys

#: The seconds during which processes are killed; a full run takes 60.
SECONDS = float(os.environ.get("DTIMER_TEST_CRASHES", "6"))

INTERVALS = [200, 300, 400, 500, 700, 900, 1_100, 1_500, 2_000]


class ScheduleProcesses:
    """Six processes that serve the same schedules, and their reports."""

    def __init__(self, url, ns):
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        if sys.platform == "linux":
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.setting = {
            "url": url,
            "ns": ns,
            "descriptor": self.writer,
            "intervals": INTERVALS,
            "options": {"lease": 1_000, "concurrency": 4, "backoff": 0, "max_retries": 50},
        }
        self.running = {}
        self.rest = b""
        self.reports = []
        self.kills = 0
        self.pids = set()

    def start(self, i):
        setting = self.setting | {"name": f"m{i}"}
        self.running[i] = subprocess.Popen(
            [sys.executable, "-W", "error", metronome.__file__, json.dumps(setting)],
            stdin=subprocess.PIPE,
            pass_fds=[self.writer],
            env=os.environ | {"PYTHONPATH": str(Path(dtimer.__file__).parents[1])},
        )

    def kill(self, i):
        self.running[i].kill()
        self.wait_for_end(i)
        self.kills += 1

    def wait_for_end(self, i):
        process = self.running.pop(i)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()

    @property
    def joined(self):
        """The numbers of the processes that have joined."""
        return {i for i, process in self.running.items() if process.pid in self.pids}

    def read_for(self, seconds):
        """Read reports for some seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.reader], [], [], left)[0]:
                self.read_available()

    def read_available(self):
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 1 << 16):
                *lines, self.rest = (self.rest + data).split(b"\n")
                for report in map(json.loads, lines):
                    if isinstance(report, dict):
                        self.pids.add(report["joined"])
                    else:
                        self.reports.append(report)

    def read_until(self, condition):
        """Read reports until *condition* holds."""
        eventually(lambda: self.read_available() or condition())

    def leave(self):
        for process in self.running.values():
            process.stdin.close()
        assert [0] * len(self.running) == [self.wait_for_end(i) for i in list(self.running)]
        self.read_available()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for i in list(self.running):
            self.kill(i)
        os.close(self.reader)
        os.close(self.writer)


@pytest.mark.acceptance
@pytest.mark.timeout(SECONDS + LIMIT)
def test_six_processes_killed_at_random_miss_no_occurrence(server, client, namespace):
    """
    Each nominal time has one first attempt, or is coalesced into one. A first attempt is unreported
    if its process was killed between the claim and the handler. Then the occurrence starts again
    after its lease has ended.
    """
    chance = random.Random(SECONDS)
    deadline = time.monotonic() + SECONDS
    with ScheduleProcesses(server.url, namespace) as processes:
        for i in range(6):
            processes.start(i)
        while time.monotonic() < deadline or processes.kills < SECONDS:
            processes.read_for(chance.uniform(0.1, 0.6))
            # On a busy machine a process starts slowly. Killing a process that has not joined would
            # prove nothing.
            processes.read_until(lambda: processes.joined)
            i = chance.choice(sorted(processes.joined))
            processes.kill(i)
            processes.start(i)
        # Events of the last killed process are delivered again when their leases have ended.
        processes.read_until(lambda: len(processes.joined) == 6)
        keys = Keys.of(namespace)
        processes.read_until(lambda: client.hlen(keys.lease) == client.hlen(keys.tries) == 0)
        processes.leave()
        reports = processes.reports
        kills = processes.kills

    firsts = defaultdict(int)
    missed_by = {}
    for schedule, nominal, missed, attempt, *_ in reports:
        firsts[schedule, nominal] += attempt == 1
        assert missed_by.setdefault((schedule, nominal), missed) == missed
    assert set(firsts.values()) <= {0, 1}, "an occurrence with two first attempts"

    with DTimer("reader", server.url, ns=namespace) as reader:
        schedules = {schedule.id: schedule for schedule in reader.schedules()}
        # Claimed by a node that was leaving, and released.
        released = {record.id for record in reader.upcoming()}
    assert len(INTERVALS) + 1 == len(schedules)
    starts = coalesced = 0
    for id, schedule in schedules.items():
        every = int(id.split("-")[1]) * 1_000
        times = sorted(nominal for name, nominal in missed_by if name == id)
        starts += len(times)
        for one, following in itertools.pairwise(times):
            missed = missed_by[id, one]
            coalesced += missed
            assert one + (missed + 1) * every == following, f"a gap, or a double, in {id}"
        last = round(schedule.last * 1000)
        coming = times[-1] + (missed_by[id, times[-1]] + 1) * every
        assert coming > last or f"{id}@{coming}" in released, f"{id} lost its last"
    unreported = sum(n == 0 for n in firsts.values())
    sys.stdout.write(
        f"{SECONDS:.0f} s, {kills} kills, {starts} occurrences started, {coalesced} coalesced,"
        f" {unreported} whose first attempt was not reported,"
        f" {len(reports) - starts} started again,"
        f" first attempts at most {max(s[-1] for s in reports if s[3] == 1):.0f} ms late\n"
    )
    assert kills >= SECONDS
    assert_sound(client, keys)
