"""``dtimer export`` and ``import``: no event is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from servers import PATIENCE
from shell import environment
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store

pytestmark = pytest.mark.acceptance

HOUR = 3_600_000
DUE = 1_896_076_800_000.123

#: Valid except for its cron expression.
SCHEDULE = json.dumps(
    dict.fromkeys(("every", "count", "start", "stop"))
    | {"kind": "schedule", "id": "a", "cron": "x", "tz": "UTC", "event": {}, "paused": False}
    | {"jitter": 0, "max_retries": 3, "misfire": "coalesce", "overlap": "queue"}
)


@pytest.fixture
def other(namespace):
    """A second namespace, removed together with the first."""
    return f"{namespace}-other"


@pytest.fixture
def timers(server, namespace, other, client):
    """A timer in each of the two namespaces, which must be sound at the end."""
    timers_made = [DTimer("reader", server.url, ns=ns) for ns in (namespace, other)]
    yield timers_made
    for timer, ns in zip(timers_made, (namespace, other), strict=True):
        timer.leave()
        assert_sound(client, Keys.of(ns))


@pytest.fixture
def stores(server, namespace, other):
    """The stores of the two namespaces."""
    stores_made = [Store(source(server.url, 1.0), ns, timeout=3.0) for ns in (namespace, other)]
    yield stores_made
    for store in stores_made:
        store.release()


def content(store):
    """
    Return what is stored of the waiting events, without the mark `n` of their bodies.

    The mark says that the user chose the id (dtimer/store/format.py). Each imported event has it,
    because an export does not contain it.
    """
    return [(e.id, e.due_us, e.raw.replace(b",n|", b"|", 1)) for e in AdminStore(store).waiting()]


class TestRoundTrip:
    """Everything that is exported is imported."""

    def test_events_arrive_unchanged(self, run, timers, stores, other, tmp_path):
        """With the due time to the microsecond. A second import changes nothing."""
        here, _ = timers
        payload = {"a": [], "n": 9007199254740993, "u": "\ud800\n", "x": 1e22, "é": None}
        here.post(payload, at=DUE, id="tea", max_retries=7, expires=9 * HOUR)
        here.post_many(({"n": n}, HOUR) for n in range(1_100))
        file = tmp_path / "all.jsonl"
        assert 1_101 == run("export", file, "--json").objects[0]["events"]
        for _ in range(2):
            (summary,) = run("import", file, "--ns", other, "--json").objects
            assert (1_101, True) == (summary["events"], summary["whole"])
            assert content(stores[0]) == content(stores[1])
        assert 1_101 == timers[1].stats().totals["posted"]

    def test_existing_events_and_schedules_are_kept(self, run, timers, other, tmp_path):
        """A pending event and a schedule in the target are kept unchanged."""
        here, there = timers
        for timer, n in ((here, 1), (there, 2)):
            timer.post({"n": n}, n * HOUR, id="tea")
            timer.every(n * HOUR, {"n": n}, id="sweep")
        file = tmp_path / "all.jsonl"
        run("export", file)
        assert 0 == run("import", file, "--ns", other).code
        assert {"n": 2} == there.peek("tea").event
        assert 2 * HOUR == there.schedule("sweep").interval

    def test_schedules_arrive_with_their_specification(self, run, timers, stores, other, tmp_path):
        """
        If a program declares an imported schedule again, the result is ``same``. The import creates
        the pending occurrence of each schedule, so the export does not contain that event.
        """
        here, there = timers
        rules = {"tz": "Europe/Berlin", "jitter": 1.5, "start": DUE, "max_retries": 1}
        here.cron("0 9 * * *", {"n": 1}, id="report", **rules)
        limits = {"grace": HOUR, "expires": 12.5}
        here.every(HOUR, {"n": 2}, id="sweep", count=3, misfire="all", overlap="skip", **limits)
        here.pause_schedule("sweep")
        file = tmp_path / "all.jsonl"
        (summary,) = run("export", file, "--json").objects
        assert (2, 0) == (summary["schedules"], summary["events"])
        run("import", file, "--ns", other)
        first, second = ([d for d, _, _ in AdminStore(store).specs()] for store in stores)
        assert first == second
        assert here.schedule("report") == there.schedule("report")
        assert there.schedule("sweep").paused
        assert (HOUR, 12.5) == (there.schedule("sweep").grace, there.schedule("sweep").expires)
        assert "same" == there.cron("0 9 * * *", {"n": 1}, id="report", **rules)

    def test_a_manual_occurrence_is_moved_as_an_event(self, run, timers, tmp_path):
        """Its schedule will not create it again. A second import of the same file adds nothing."""
        here, there = timers
        here.every(HOUR, {"n": 1}, id="sweep")
        id = here.run_now("sweep")
        file = tmp_path / "all.jsonl"
        run("export", file)
        for _ in range(2):
            assert 0 == run("import", file, "--ns", there.ns).code
            moved, _ = there.upcoming()
            assert (f"{id}.moved", {"n": 1}) == (moved.id, moved.event)

    def test_two_commands_carry_a_namespace_of_schema_1_over(self, run, timers, tmp_path, client):
        """Version 1 was never released. Its namespaces are refused, and nothing in them is lost."""
        here, there = timers
        here.post({"n": 1}, HOUR, id="tea")
        here.every(HOUR, {"n": 2}, id="sweep")
        client.hset(Keys.of(here.ns).sys, "v", "1")
        file = tmp_path / "old.jsonl"
        refused = run("stats", "--json")
        assert 3 == refused.code
        assert f"dtimer export old.jsonl --dead --ns {here.ns}`" in refused.err
        assert 0 == run("export", file, "--dead").code
        assert 0 == run("import", file, "--ns", there.ns).code
        assert {"n": 1} == there.peek("tea").event
        assert HOUR == there.schedule("sweep").interval
        client.hset(Keys.of(here.ns).sys, "v", "2")

    def test_dead_letters_arrive_with_dead(self, run, timers, tmp_path, client, namespace):
        """Letters without a valid event arrive too. Without ``--dead`` no letter is exported."""
        here, there = timers
        other, keys = there.ns, Keys.of(namespace)
        # Attempt, reason, length of the error; the error and the body (dtimer/store/format.py).
        for id, letter in {
            "tea": b"2,failed,7|no good,3|" + b'{"n":1}',
            "odd": b"1,corrupt,0|\xff\x00",
        }.items():
            client.hset(keys.dead, id, letter)
            client.zadd(keys.graves, {id: 1_800_000_000_000_123})
        file = tmp_path / "all.jsonl"
        run("export", file)
        assert 0 == run("import", file, "--ns", other).code
        assert 0 == there.stats().dead
        run("export", file, "--dead", "--yes")
        for _ in range(2):
            assert 0 == run("import", file, "--ns", other).code
            assert list(here.dead()) == list(there.dead())
        assert 0 == there.stats().scheduled

    # The marks of a body: none for a generated id, `n` for an id that the user chose, `s` for an
    # occurrence with its nominal time and the number of missed ones (dtimer/store/format.py).
    @pytest.mark.parametrize("mark", [b"", b",n", b",s1800000000000123,2"])
    def test_a_dead_letter_keeps_its_mark(self, run, timers, tmp_path, client, mark):
        """
        A revived event with a chosen id must not be claimed ahead of its time, or ``cancel`` comes
        too late. A revived occurrence still has its schedule and its nominal time.
        """
        here, away = (Keys.of(timer.ns) for timer in timers)
        there = timers[1]
        # The body has an expiry (9) and `max_retries` (3). A dead letter begins with the attempt,
        # the reason, and the error with its length.
        id, body = "sweep@1800000000000123", b"9,3" + mark + b'|{"n":1}'
        client.hset(here.dead, id, b"2,failed,7|no good" + body)
        client.zadd(here.graves, {id: 1_800_000_000_000_123})
        file = tmp_path / "all.jsonl"
        run("export", file, "--dead")
        assert 0 == run("import", file, "--ns", there.ns).code
        assert client.hgetall(here.dead) == client.hgetall(away.dead)
        assert there.revive(id)
        # A revived event has no expiry.
        assert body.removeprefix(b"9") == client.hget(away.body, id)

    def test_without_a_file_pipes_are_used(self, timers, server, namespace, other):
        """Without a file export writes to stdout. The file ``-`` is stdin."""
        here, there = timers
        here.post({"n": 1}, HOUR, id="tea")
        command = (
            f"{sys.executable} -m dtimer export | {sys.executable} -m dtimer import - --ns {other}"
        )
        env = environment(server, namespace)
        done = subprocess.run(command, shell=True, check=False, env=env, timeout=PATIENCE)
        assert 0 == done.returncode
        assert {"n": 1} == there.peek("tea").event

    def test_events_in_flight_are_counted_and_not_exported(self, run, timers, tmp_path):
        """Events in flight are not exported, and stderr has their number."""
        here, _ = timers
        began, go_on = threading.Event(), threading.Event()

        @here.on("event")
        def handle(events):
            began.set()
            go_on.wait(PATIENCE)

        with here:
            here.post({}, id="tea")
            assert began.wait(PATIENCE)
            ran = run("export", tmp_path / "all.jsonl", "--json")
            go_on.set()
        assert 0 == ran.objects[0]["events"]
        assert 1 == json.loads(ran.err)["in_flight"]


class TestFiles:
    """Files with faults, and files that exist."""

    def test_overwriting_asks_first(self, run, timers, tmp_path):
        """An export asks before it overwrites a file. A failed export leaves the file unchanged."""
        file = tmp_path / "all.jsonl"
        file.write_text("mine")
        assert 2 == run("export", file).code
        assert 3 == run("export", file, "--yes", "--url", "redis://127.0.0.1:1").code
        assert "mine" == file.read_text()
        assert 0 == run("export", file, "--yes").code
        assert [file] == list(tmp_path.iterdir())

    def test_complete_lines_of_a_truncated_file_are_imported(self, run, timers, other, tmp_path):
        """The complete lines of a truncated file are imported, and the exit code is 1."""
        here, there = timers
        here.post_many(({}, HOUR) for _ in range(3))
        file = tmp_path / "all.jsonl"
        run("export", file)
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:3]))
        ran = run("import", file, "--ns", other, "--json")
        assert (1, False) == (ran.code, ran.objects[0]["whole"])
        assert 2 == there.stats().scheduled
        file.write_text("".join(lines))
        assert 0 == run("import", file, "--ns", other).code
        assert 3 == there.stats().scheduled

    @pytest.mark.parametrize(
        "line",
        [
            "x",
            "[1]",
            "{}",
            '{"kind": "riddle"}',
            '{"kind": "export", "version": 2}',
            '{"kind": "event", "id": "a", "event": {}}',
            '{"kind": "event", "id": "a", "due": "soon", "event": {}}',
            '{"kind": "event", "id": "", "due": 1, "event": {}}',
            '{"kind": "event", "id": "a", "due": 1, "event": []}',
            '{"kind": "event", "id": "a", "due": 1e300, "event": {}}',
            '{"kind": "event", "id": "a", "due": NaN, "event": {}}',
            '{"kind": "event", "id": "a", "due": 1, "max_retries": -1, "event": {}}',
            '{"kind": "dead", "id": "a", "died": 1, "attempt": 1, "reason": "a|b", "event": {}}',
            '{"kind": "dead", "id": "a", "died": 1, "attempt": 1, "reason": "x", "raw": "?"}',
            '{"kind": "dead", "reason": "x", "max_retries": 3, "nominal": "x", "event": {}}',
            '{"kind": "schedule", "id": "a"}',
            SCHEDULE,
        ],
    )
    def test_a_bad_line_is_named(self, line, run, timers, tmp_path):
        """The lines before it have been imported."""
        here, _ = timers
        file = tmp_path / "all.jsonl"
        good = '{"kind": "event", "id": "tea", "due": 1896076800000, "event": {}}'
        file.write_text(f"{good}\n{line}\n")
        ran = run("import", file)
        assert 2 == ran.code
        assert "line 2 cannot be imported" in ran.err
        assert 1 == here.stats().scheduled

    def test_a_missing_file_is_exit_code_2(self, run):
        """If the file does not exist, the exit code is 2."""
        assert 2 == run("import", "/no/such/file").code


@pytest.mark.slow
def test_memory_does_not_grow_with_the_events(server, namespace, other, tmp_path):
    """Neither command keeps what it reads or writes. docs/cli.rst has figures for a million."""
    line = '{"kind": "event", "id": "e-%d", "due": 1896076800000, "event": {"text": "%s"}}\n'
    file, nothing = tmp_path / "many.jsonl", tmp_path / "nothing.jsonl"
    with file.open("w") as out:
        out.writelines(line % (n, "x" * 200) for n in range(50_000))
    nothing.write_text("")
    code = (
        "import resource, sys; from dtimer.cli import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak(*words):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=5 * PATIENCE,
            env=environment(server, namespace),
        )
        return int(done.stdout.splitlines()[-1]) * (1 if sys.platform == "darwin" else 1024)

    least = peak("import", nothing)
    assert peak("import", file) - least < 12_000_000
    assert peak("export", tmp_path / "out.jsonl") - least < 12_000_000
    assert 50_002 == len((tmp_path / "out.jsonl").read_bytes().splitlines())
