"""Commands for single events, dead letters, nodes, pausing and health."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime

import pytest
from servers import PATIENCE, eventually
from shell import Terminal, environment

from dtimer.model.records import Stats
from dtimer.monitor.judgement import judge

pytestmark = pytest.mark.acceptance

HOUR = 3_600_000
NO_SERVER = "redis://127.0.0.1:1"


@pytest.fixture
def dead(timer):
    """Return a function that makes events with these ids into dead letters."""

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


class TestUpdate:
    """``dtimer update``."""

    def test_replaces_the_payload_and_nothing_else(self, run, timer):
        """A wrong reminder is corrected without moving it."""
        timer.post({"n": 1}, HOUR, id="tea")
        due = timer.peek("tea").due
        ran = run("update", "tea", '{"n": 2}')
        assert (0, "updated\n") == (ran.code, ran.out)
        record = timer.peek("tea")
        assert ({"n": 2}, due) == (record.event, record.due)

    def test_an_event_that_does_not_wait_is_reported(self, run):
        """A script must not go on as if the event had been corrected."""
        ran = run("update", "nothing", "{}", "--json")
        assert (1, [{"id": "nothing", "updated": False}]) == (ran.code, ran.objects)


class TestPeek:
    """``dtimer peek``."""

    def test_a_pending_event_is_shown(self, run, timer):
        """A person reads how long it will take; a program reads the record."""
        timer.post({"n": 1}, HOUR, id="tea")
        ran = run("peek", "tea")
        assert 0 == ran.code
        assert re.search(r"^state +scheduled$", ran.out, re.MULTILINE)
        assert re.search(r"^due .*\(in (59m\d+s|1h)\)$", ran.out, re.MULTILINE)
        assert ["tea"] == [record["id"] for record in run("peek", "tea", "--json").objects]

    def test_a_dead_letter_is_shown_with_its_time_of_death(self, run, dead):
        """An operator compares this time with other logs."""
        dead("tea")
        assert re.search(r"^died .* ago\)$", run("peek", "tea").out, re.MULTILINE)

    def test_an_unknown_id_is_exit_code_1(self, run):
        """The exit code is 1 if no such event exists."""
        ran = run("peek", "tea")
        assert (1, "") == (ran.code, ran.out)


class TestReschedule:
    """``dtimer reschedule``."""

    def test_a_duration_counts_from_now(self, run, timer):
        """A duration moves the event to that time from now."""
        timer.post({}, 60 * HOUR, id="tea")
        assert 0 == run("reschedule", "tea", "2h30m").code
        left = timer.peek("tea").due / 1000 - datetime.now(UTC).timestamp()
        assert 0 <= 2.5 * 3600 - left < PATIENCE

    @pytest.mark.parametrize("when", ["2030-01-31T09:00+01:00", "1896076800000"])
    def test_a_time_may_be_iso_8601_or_milliseconds(self, when, run, timer):
        """A time may be in ISO 8601 or in milliseconds since the epoch."""
        timer.post({}, HOUR, id="tea")
        assert [{"id": "tea", "moved": True}] == run("reschedule", "tea", when, "--json").objects
        assert 1_896_076_800_000 == timer.peek("tea").due

    def test_a_moment_without_a_zone_is_echoed_with_its_offset(self, run, timer):
        """A user can notice that it was taken as local time."""
        timer.post({}, HOUR, id="tea")
        ran = run("reschedule", "tea", "2030-01-31 09:00")
        assert 0 == ran.code
        assert re.search(r"due 2030-01-31 09:00:00[+-]..:.., taken as local", ran.err)

    def test_an_unknown_id_is_exit_code_1(self, run, timer):
        """If no event with the id is pending, the exit code is 1 and no event is created."""
        assert 1 == run("reschedule", "tea", "1h").code
        assert timer.peek("tea") is None


class TestDead:
    """``dtimer dead``, ``revive`` and ``purge``."""

    def test_dead_letters_are_listed_oldest_first(self, run, dead):
        """Dead letters are listed, the oldest first, with reason, error and payload."""
        dead("tea", "milk")
        rows = run("dead").rows
        assert ["tea", "milk"] == [row[2] for row in rows]
        assert "failed" == rows[0][4]
        assert "no good" in rows[0][5]
        (first, _) = run("dead", "--json").objects
        assert ({"n": 0}, 1, "failed") == (first["event"], first["attempt"], first["reason"])

    def test_limit_says_if_there_are_more(self, run, dead):
        """Stderr says so, because a cut list looks like a whole one."""
        dead("a", "b", "c")
        ran = run("dead", "--limit", 2)
        assert 2 == len(ran.rows)
        assert "more than these 2" in ran.err
        assert "" == run("dead", "--limit", 3).err

    def test_revive_makes_dead_letters_pending(self, run, timer, dead):
        """An id that is not a dead letter is exit code 1."""
        dead("tea", "milk")
        assert 0 == run("revive", "tea").code
        assert "scheduled" == timer.peek("tea").state.value
        ran = run("revive", "tea", "milk", "--json")
        assert (1, [{"revived": 1, "refused": 1}]) == (ran.code, ran.objects)

    def test_revive_all_takes_no_ids(self, run, timer, dead):
        """Without ``--all``, ids are required, so that a typing error revives nothing."""
        dead("tea", "milk")
        assert [{"revived": 2, "refused": 0}] == run("revive", "--all", "--json").objects
        assert 0 == timer.stats().dead
        assert 2 == run("revive").code
        assert 2 == run("revive", "--all", "tea").code

    def test_revive_by_reason_leaves_the_others(self, run, timer, dead, client):
        """After a bug fix, the events that failed are handled, and no others."""
        dead("tea", "milk")
        prefix = f"dtimer:{{{timer.ns}}}:"
        client.hset(prefix + "dead", "old", b"1,expired,0|,3|{}")
        client.zadd(prefix + "graves", {"old": 1})
        ran = run("revive", "--reason", "failed", "--json")
        assert (0, [{"revived": 2, "refused": 0}]) == (ran.code, ran.objects)
        assert ["old"] == [letter.id for letter in timer.dead()]
        assert 2 == run("revive", "--reason", "faild").code
        assert 2 == run("revive", "--reason", "failed", "--all").code

    def test_drop_deletes_single_letters(self, run, timer, dead):
        """An id that is not a dead letter is exit code 1, and the others are deleted."""
        dead("tea", "milk", "cup")
        assert (0, "deleted 1\n") == ((ran := run("drop", "tea")).code, ran.out)
        ran = run("drop", "tea", "milk")
        assert (1, "deleted 1\n") == (ran.code, ran.out)
        assert "tea is not a dead letter" in ran.err
        assert ["cup"] == [letter.id for letter in timer.dead()]
        assert 2 == run("drop").code

    def test_purge_asks_first(self, run, timer, dead, server, namespace):
        """``purge`` deletes nothing without a confirmation at the terminal or ``--yes``."""
        dead("tea")
        assert 2 == run("purge").code
        for answer, code, left in (("n\n", 130, 1), ("y\n", 0, 0)):
            with Terminal("purge", env=environment(server, namespace)) as terminal:
                terminal.find(r"Delete all dead letters .* \(1\)\? \[y/N\]")
                terminal.type(answer)
                assert code == terminal.wait()
            assert left == timer.stats().dead

    def test_purge_with_yes_does_not_ask(self, run, timer, dead):
        """With ``--yes`` purge does not ask."""
        dead("tea")
        assert [{"dropped": 1}] == run("purge", "--yes", "--json").objects
        assert 0 == timer.stats().dead


class TestCancel:
    """``dtimer cancel`` for several events."""

    @pytest.fixture(autouse=True)
    def events(self, timer):
        for n in range(4):
            timer.post({"type": "remind" if n % 2 else "mail"}, HOUR, id=f"user-{n // 2}-{n}")
        timer.post({}, HOUR, id="other")

    def left(self, timer):
        """Return the ids of the events that are left."""
        return {record.id for record in timer.upcoming()}

    def test_several_ids_are_counted_by_outcome(self, run, timer):
        """The exit code is 1 if one of them is not pending, as for a single one."""
        ran = run("cancel", "user-0-0", "other", "nothing", "--json")
        assert (1, [{"cancelled": 2, "in_flight": 0, "not_found": 1}]) == (ran.code, ran.objects)
        assert {"user-0-1", "user-1-2", "user-1-3"} == self.left(timer)

    @pytest.mark.parametrize(
        ("words", "left"),
        [
            (("--prefix", "user-1-"), "user-0-0 user-0-1 other"),
            (("--kind", "remind"), "user-0-0 user-1-2 other"),
            (("--kind", "remind", "--prefix", "user-1-"), "user-0-0 user-0-1 user-1-2 other"),
            (("--kind", "remind", "--field", "do"), "user-0-0 user-0-1 user-1-2 user-1-3 other"),
        ],
    )
    def test_those_that_match_are_cancelled(self, run, timer, words, left):
        """A customer who leaves, or a kind of event that is withdrawn, may have thousands."""
        ran = run("cancel", *words)
        number = 5 - len(left.split())
        assert (0, f"cancelled {number}, in flight 0, not found 0\n") == (ran.code, ran.out)
        assert set(left.split()) == self.left(timer)

    def test_a_choice_is_required(self, run, timer):
        """A typing error must not cancel everything."""
        for words in ((), ("other", "--prefix", "user-"), ("--prefix", "")):
            assert 2 == run("cancel", *words).code
        assert 5 == len(self.left(timer))


class TestClear:
    """``dtimer clear``."""

    def test_asks_first(self, run, timer, server, namespace):
        """Nothing is deleted without a confirmation at the terminal or ``--yes``."""
        timer.post({}, HOUR, id="tea")
        timer.every(HOUR, {}, id="beat")
        assert 2 == run("clear").code
        for answer, code, left in (("n\n", 130, 2), ("y\n", 0, 0)):
            with Terminal("clear", env=environment(server, namespace)) as terminal:
                terminal.find(r"Delete all events, dead letters and schedules .* \(3\)\? \[y/N\]")
                terminal.type(answer)
                assert code == terminal.wait()
            assert left == timer.stats().scheduled

    def test_says_how_much_it_deleted(self, run, timer):
        """An operator can tell a wrong namespace from an empty one."""
        timer.post({}, HOUR, id="tea")
        timer.every(HOUR, {}, id="beat")
        deleted = [{"events": 2, "dead": 0, "schedules": 1}]
        assert deleted == run("clear", "--yes", "--json").objects
        ran = run("clear", "--yes")
        assert "deleted 0 events, 0 dead letters, 0 schedules\n" == ran.out


class TestPause:
    """``dtimer pause`` and ``resume``."""

    def test_pausing_the_namespace_twice_is_not_an_error(self, run, timer):
        """The output says that nothing changed."""
        for command, paused in (("pause", True), ("resume", False)):
            assert [True, False] == [run(command, "--json").objects[0]["changed"] for _ in range(2)]
            assert paused == timer.stats().paused

    def test_one_schedule_may_be_paused(self, run, timer):
        """``--schedule`` pauses only that schedule. If it does not exist, the exit code is 1."""
        timer.every(HOUR, {}, id="sweep")
        assert 0 == run("pause", "--schedule", "sweep").code
        assert timer.schedule("sweep").paused
        assert not timer.stats().paused
        assert 0 == run("resume", "--schedule", "sweep").code
        assert not timer.schedule("sweep").paused
        assert 1 == run("pause", "--schedule", "nothing").code


class TestNodes:
    """``dtimer nodes``."""

    def test_nodes_are_listed_with_their_state(self, run, timer):
        """A node that is not waiting is busy, deaf, or not running."""
        assert "no node has joined" in run("nodes").err
        timer.on("event", lambda _: None)
        with timer:
            eventually(lambda: timer.nodes()[0].waiting)
            assert [["reader", "waiting"]] == [row[:2] for row in run("nodes").rows]
            assert ["reader"] == [node["id"] for node in run("nodes", "--json").objects]


def stats(**changes):
    fields = {
        "scheduled": 1,
        "in_flight": 0,
        "overdue": 0,
        "oldest_overdue_ms": 0.0,
        "dead": 0,
        "nodes": 1,
        "paused": False,
        "totals": {},
    }
    return Stats(**fields | changes)


class TestHealth:
    """``dtimer health``."""

    def test_a_healthy_namespace_is_exit_code_0(self, run, timer):
        """The exit code is 0 if a node has joined, no event is late and nothing is paused."""
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
    def test_each_problem_is_named(self, changes, bad):
        """An alarm needs the reason: a pause, too few nodes, or an event overdue for too long."""
        assert bad == [c.name for c in judge(stats(**changes), 1, 1_000) if not c.ok]

    def test_each_line_names_the_check_and_its_result(self, run, timer):
        """``paused  no`` is ok, and ``paused  yes`` is not."""
        timer.pause()
        ran = run("health", "--min-nodes", "0")
        assert "BAD paused     yes" in ran.out.splitlines()
        assert run("health", "--json").objects[0]["checks"]["not_paused"] is False
        timer.resume()
        assert "ok  paused     no" in run("health", "--min-nodes", "0").out.splitlines()

    def test_an_unreachable_server_is_exit_code_1(self, run):
        """The code is not 3, because ``health`` asks exactly that."""
        ran = run("health", "--url", NO_SERVER, "--json")
        assert (1, {"reachable": False}) == (ran.code, ran.objects[0]["checks"])
