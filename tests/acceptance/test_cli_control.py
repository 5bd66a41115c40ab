"""The commands that look at single events, dead letters, nodes and the whole, and change them."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from servers import PATIENCE, eventually
from shell import Terminal, environment, runner

from dtimer import DTimer
from dtimer.cli.namespace import judge
from dtimer.model.event import Stats

pytestmark = pytest.mark.acceptance

HOUR = 3_600_000
NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def run(server, namespace, monkeypatch, capsys):
    return runner(server, namespace, monkeypatch, capsys)


@pytest.fixture
def timer(server, namespace):
    timer = DTimer("looker", server.url, ns=namespace)
    yield timer
    timer.leave()


@pytest.fixture
def dead(timer):
    """Have events of these ids die."""

    def die(*ids):
        died = threading.Semaphore(0)

        @timer.on("event")
        def handle(events):
            raise ValueError("no good")

        timer.on("error", lambda _: None)
        timer.on("dead", lambda _: died.release())
        with timer:
            for n, id in enumerate(ids):
                timer.post({"n": n}, id=id, max_retries=0)
            for _ in ids:
                assert died.acquire(timeout=PATIENCE)
        timer.remove_all_listeners("event")

    return die


class TestPeek:
    """``dtimer peek``."""

    def test_one_that_waits(self, run, timer):
        """A waiting event is told with its state, due time, starts and payload."""
        timer.post({"n": 1}, HOUR, id="tea")
        ran = run("peek", "tea")
        assert 0 == ran.code
        assert re.search(r"^state +scheduled$", ran.out, re.MULTILINE)
        assert re.search(r"^due .*\(in (59m\d+s|1h)\)$", ran.out, re.MULTILINE)
        assert ["tea"] == [record["id"] for record in run("peek", "tea", "--json").objects]

    def test_one_that_is_dead(self, run, dead):
        """Of a dead letter it is told when it died."""
        dead("tea")
        assert re.search(r"^died .* ago\)$", run("peek", "tea").out, re.MULTILINE)

    def test_none(self, run):
        """1: there is no such event."""
        ran = run("peek", "tea")
        assert (1, "") == (ran.code, ran.out)


class TestReschedule:
    """``dtimer reschedule``."""

    def test_by_a_duration(self, run, timer):
        """A duration moves the event to so long from now."""
        timer.post({}, 60 * HOUR, id="tea")
        assert 0 == run("reschedule", "tea", "2h30m").code
        left = timer.peek("tea").due / 1000 - datetime.now(UTC).timestamp()
        assert 0 <= 2.5 * 3600 - left < PATIENCE

    @pytest.mark.parametrize("when", ["2030-01-31T09:00+01:00", "1896076800000"])
    def test_by_a_moment(self, when, run, timer):
        """ISO 8601, and a number as great as ms since the epoch are, name a moment."""
        timer.post({}, HOUR, id="tea")
        assert [{"id": "tea", "moved": True}] == run("reschedule", "tea", when, "--json").objects
        assert 1_896_076_800_000 == timer.peek("tea").due

    def test_in_words(self, run, timer):
        """``tomorrow 9:00`` is understood, and what was understood is said with its offset."""
        timer.post({}, HOUR, id="tea")
        ran = run("reschedule", "tea", "tomorrow 9:00")
        tomorrow = (datetime.now().astimezone() + timedelta(days=1)).date()
        assert 0 == ran.code
        assert re.search(rf"due {tomorrow} 09:00:00[+-]..:.., taken as local", ran.err)

    def test_none(self, run, timer):
        """1, and nothing is created, when no event of that id waits."""
        assert 1 == run("reschedule", "tea", "1h").code
        assert timer.peek("tea") is None


class TestDead:
    """``dtimer dead``, ``revive`` and ``purge``."""

    def test_listed(self, run, dead):
        """Dead letters are listed, the oldest first, with reason, error and payload."""
        dead("tea", "milk")
        rows = run("dead").rows
        assert ["tea", "milk"] == [row[2] for row in rows]
        assert "failed" == rows[0][4]
        assert "no good" in rows[0][5]
        (first, _) = run("dead", "--json").objects
        assert ({"n": 0}, 1, "failed") == (first["event"], first["attempt"], first["reason"])

    def test_limit(self, run, dead):
        """``--limit`` lists so many, and says when there are more."""
        dead("a", "b", "c")
        ran = run("dead", "--limit", 2)
        assert 2 == len(ran.rows)
        assert "more than these 2" in ran.err
        assert "" == run("dead", "--limit", 3).err

    def test_revive(self, run, timer, dead):
        """A revived letter waits again; one that is none is told, with exit code 1."""
        dead("tea", "milk")
        assert 0 == run("revive", "tea").code
        assert "scheduled" == timer.peek("tea").state.value
        ran = run("revive", "tea", "milk", "--json")
        assert (1, [{"revived": 1, "refused": 1}]) == (ran.code, ran.objects)

    def test_revive_all(self, run, timer, dead):
        """``--all`` revives all of them; without it ids are wanted."""
        dead("tea", "milk")
        assert [{"revived": 2, "refused": 0}] == run("revive", "--all", "--json").objects
        assert 0 == timer.stats().dead
        assert 2 == run("revive").code
        assert 2 == run("revive", "--all", "tea").code

    def test_purge_asks(self, run, timer, dead, server, namespace):
        """``purge`` drops nothing without a yes, given at the terminal or by ``--yes``."""
        dead("tea")
        assert 2 == run("purge").code
        for answer, code, left in (("n\n", 130, 1), ("y\n", 0, 0)):
            with Terminal("purge", env=environment(server, namespace)) as terminal:
                terminal.find(r"Delete all dead letters .* \(1\)\? \[y/N\]")
                terminal.type(answer)
                assert code == terminal.wait()
            assert left == timer.stats().dead

    def test_purge_yes(self, run, timer, dead):
        """With ``--yes`` nobody is asked."""
        dead("tea")
        assert [{"dropped": 1}] == run("purge", "--yes", "--json").objects
        assert 0 == timer.stats().dead


class TestPause:
    """``dtimer pause`` and ``resume``."""

    def test_the_namespace(self, run, timer):
        """The namespace is paused and resumed; doing it twice is no error, and is said."""
        for command, paused in (("pause", True), ("resume", False)):
            assert [True, False] == [run(command, "--json").objects[0]["changed"] for _ in range(2)]
            assert paused == timer.stats().paused

    def test_one_schedule(self, run, timer):
        """``--schedule`` is about that one alone; 1 where there is none."""
        timer.every(HOUR, {}, id="sweep")
        assert 0 == run("pause", "--schedule", "sweep").code
        assert timer.schedule("sweep").paused
        assert not timer.stats().paused
        assert 0 == run("resume", "--schedule", "sweep").code
        assert not timer.schedule("sweep").paused
        assert 1 == run("pause", "--schedule", "nothing").code


class TestNodes:
    """``dtimer nodes``."""

    def test_listed(self, run, timer):
        """Each node that has joined is listed, with what it does."""
        assert "no node has joined" in run("nodes").err
        timer.on("event", lambda _: None)
        with timer:
            eventually(lambda: timer.nodes()[0].waiting)
            assert [["looker", "waiting"]] == [row[:2] for row in run("nodes").rows]
            assert ["looker"] == [node["id"] for node in run("nodes", "--json").objects]


def stats(**changes):
    known = {
        "scheduled": 1,
        "in_flight": 0,
        "overdue": 0,
        "oldest_overdue_ms": 0.0,
        "dead": 0,
        "nodes": 1,
        "paused": False,
        "totals": {},
    }
    return Stats(**known | changes)


class TestHealth:
    """``dtimer health``."""

    def test_well(self, run, timer):
        """0 and ``ok`` where a node is there, nothing is late and nothing is paused."""
        timer.on("event", lambda _: None)
        with timer:
            ran = run("health", "--json")
        assert (0, True) == (ran.code, ran.objects[0]["ok"])
        assert 1 == run("health").code

    @pytest.mark.parametrize(
        ("changes", "bad"),
        [
            ({}, []),
            ({"paused": True}, ["paused"]),
            ({"nodes": 0}, ["nodes"]),
            ({"overdue": 1, "oldest_overdue_ms": 1_000.0}, []),
            ({"overdue": 1, "oldest_overdue_ms": 1_000.1}, ["overdue"]),
        ],
    )
    def test_judgement(self, changes, bad):
        """A pause, too few nodes, or an event due for longer than allowed is not well."""
        assert bad == [c.name for c in judge(stats(**changes), 1, 1_000) if not c.ok]

    def test_in_words(self, run, timer):
        """A line says what it judges and how that is: ``paused  no`` is well, ``yes`` is not."""
        timer.pause()
        ran = run("health", "--min-nodes", "0")
        assert "BAD paused     yes" in ran.out.splitlines()
        assert run("health", "--json").objects[0]["checks"]["not_paused"] is False
        timer.resume()
        assert "ok  paused     no" in run("health", "--min-nodes", "0").out.splitlines()

    def test_unreachable(self, run):
        """1, and not 3, where Redis cannot be reached: that is what was asked."""
        ran = run("health", "--url", NOBODY, "--json")
        assert (1, {"reachable": False}) == (ran.code, ran.objects[0]["checks"])
