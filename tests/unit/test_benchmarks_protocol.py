"""The benchmarks' protocol, spoken with a driver that needs no server and no peer."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from types import SimpleNamespace

import pytest
from servers import PATIENCE, eventually

from benchmarks import driver as tool
from benchmarks.driver import PEERS, Driver, DriverError, Journal, unpack
from benchmarks.machine import members

# Hands to its handlers at once whatever it posts. What it is told to do wrong, it does.
_PEER = """
from driving import Peer, main, record, record_all

class Mirror(Peer):
    def consume(self, ready):
        print("peers print what they like")
        ready()

    def post(self, body, due):
        if self.options.get("break"):
            raise RuntimeError("the peer is broken")
        record(body)

    def post_in_bulk(self, items):
        record_all((body, 7) for body, _ in items)

main(Mirror)
"""

# Forks a process that closes its standard input, as multiprocessing does, and waits for it.
_FORKING = """
import os, sys, threading
from driving import Peer, main

class Forking(Peer):
    def consume(self, ready):
        # By now the thread that is told what to do waits for it.
        threading.Event().wait(0.2)
        child = os.fork()
        if not child:
            sys.stdin.close()
            os._exit(0)
        os.waitpid(child, 0)
        ready()

main(Forking)
"""

SETTINGS = {"url": "redis://127.0.0.1:1", "role": "consume", "batch": 1, "options": {}}


@pytest.fixture
def journal():
    """A file in memory that is gone in the end."""
    journal = Journal()
    yield journal
    journal.close()


@pytest.fixture
def start(tmp_path, journal, monkeypatch):
    """Start a driver that is this text."""
    here = SimpleNamespace(command=[sys.executable], variables={})
    monkeypatch.setattr(tool, "ENVIRONMENTS", {"here": here})
    shutil.copy(PEERS / "driving.py", tmp_path)
    drivers = []

    def begin(text=_PEER, **settings):
        (tmp_path / "driver.py").write_text(text)
        driver = Driver("driver.py", "here", SETTINGS | settings, journal.path, tmp_path)
        drivers.append(driver)
        return driver

    yield begin
    for driver in drivers:
        driver.close()


def post(count, due, way="one", size=50):
    return {"do": "post", "count": count, "first": 3, "due": due, "way": way, "size": size}


@pytest.mark.parametrize(("way", "claim"), [("one", None), ("bulk", 7)])
def test_what_is_posted_is_recorded(start, journal, way, claim):
    """Each event has a record: its number, the moment of its handler, and when it was due."""
    driver = start()
    assert {"ready": True} == driver.answer()
    began = time.time_ns() // 1000
    told = driver.ask(post(3, 12345, way))
    assert 3 == told["posted"]
    assert told["seconds"] > 0
    assert journal.wait(3)
    handled = journal.read()
    assert [(3, 12345), (4, 12345), (5, 12345)] == [(one.number, one.due) for one in handled]
    assert [claim] * 3 == [one.claim_late for one in handled]
    assert all(began <= one.at <= time.time_ns() // 1000 for one in handled)


def test_moments_of_ones_own(start, journal):
    """An event for each moment, numbered in their order."""
    driver = start()
    driver.answer()
    driver.ask({"do": "post_at", "dues": [30, 10, 20], "way": "bulk", "size": 50})
    assert [(0, 30), (1, 10), (2, 20)] == [(one.number, one.due) for one in journal.read()]


def test_a_stream_keeps_its_rate(start, journal):
    """A stream is as many a second as was asked for, where the peer can."""
    driver = start(role="post")
    driver.answer()
    command = {"do": "stream", "rate": 1000, "seconds": 0.5, "due": 1, "way": "bulk", "size": 50}
    told = driver.ask(command)
    assert len(journal) == told["posted"]
    assert 0.5 * 1000 * told["seconds"] <= told["posted"] <= 1000 * (told["seconds"] + 0.1)


@pytest.mark.parametrize("size", [50, 51, 500])
def test_a_payload_has_its_size(size):
    """A payload's compact JSON has as many bytes as was asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCHMARK_LOG", os.devnull)
        patch.syspath_prepend(PEERS)
        import driving

        body = driving.payload(7, 1_800_000_000_000_000, size)
    assert size == len(json.dumps(body, separators=(",", ":")))
    assert (7, 1_800_000_000_000_000) == (body["i"], body["due"])


def test_a_broken_driver_says_why(start):
    """A driver whose peer raises ends, and the error quotes what it said last."""
    driver = start(role="post", options={"break": True})
    driver.answer()
    with pytest.raises(DriverError, match="the peer is broken"):
        driver.ask(post(1, 1))


def test_a_driver_that_never_starts_says_why(start):
    """A driver that cannot be imported is an error at once, and not after a long wait."""
    with pytest.raises(DriverError, match="no_such_peer"):
        start("import no_such_peer").answer()


def test_a_silent_driver_is_not_waited_for(start):
    """Who does not answer in time is an error."""
    driver = start()
    driver.answer()
    with pytest.raises(DriverError, match="no answer within"):
        driver.answer(patience=0.05)


def test_a_peer_may_fork(start):
    """A process that a peer forks may close its standard input while ours is being read."""
    assert {"ready": True} == start(_FORKING).answer(PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_nothing_outlives_a_driver(start):
    """A driver ends with all the processes that its peer has started."""
    text = "import subprocess, sys\nsubprocess.Popen(['sleep', '100'])\n" + _PEER
    driver = start(text)
    driver.answer()
    (child,) = (pid for pid in members(driver.process.pid) if pid != driver.process.pid)
    driver.close()
    eventually(lambda: not alive(child))


def alive(pid):
    """Whether a process is there, and not just waiting for its parent to notice its end."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestJournal:
    """The file that handlers write to."""

    def test_half_a_record_waits(self, journal):
        """What is being written is not read before it is whole."""
        whole = tool._RECORD.pack(1, 2, 3, 4)
        assert [1] == [one.number for one in unpack(whole + whole[:31])]
        journal.path.write_bytes(whole + whole[:31])
        assert 1 == len(journal)

    def test_patience_is_for_the_next_one(self, journal, monkeypatch):
        """Waiting goes on as long as records come, and ends when none does."""
        clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

        def sleep(seconds):
            clock.now += seconds
            # Four records, 0.4 s apart.
            while len(journal) < min(4, int(clock.now / 0.4)):
                with journal.path.open("ab") as file:
                    file.write(tool._RECORD.pack(len(journal), 0, 0, 0))

        clock.sleep = sleep
        monkeypatch.setattr(tool, "time", clock)
        assert journal.wait(4, patience=0.5)
        assert 1.6 <= clock.now < 1.7
        assert not journal.wait(5, patience=0.5)
        assert 2.1 <= clock.now < 2.2
