"""``dtimer tail`` and ``top``: their output matches what happens."""

from __future__ import annotations

import json
import signal
import threading

import pytest
from rich.console import Console
from servers import PATIENCE, Server
from shell import Program, Terminal, environment

from dtimer.cli.tail import Follow
from dtimer.cli.top.screen import draw, plan, sparkline
from dtimer.model.records import NodeInfo, Record, State, Stats
from dtimer.monitor.sample import Frame, Sampler
from dtimer.store.connection.sources import source
from dtimer.store.store import Store

pytestmark = pytest.mark.acceptance

HOUR = 3_600_000


@pytest.fixture
def store(server, namespace):
    store = Store(source(server.url, 1.0), namespace, timeout=3.0)
    yield store
    store.release()


class Printer:
    """Collects the objects that would be printed."""

    def __init__(self):
        self.objects = []

    def result(self, *_, **fields):
        self.objects.append(fields)


class TestTail:
    """``dtimer tail``."""

    def test_each_change_is_printed_once(self, store, timer):
        """A quiet namespace prints nothing."""
        timer.post({}, HOUR)
        printer = Printer()
        follow = Follow(store, printer)
        follow.look()
        follow.look()
        assert [] == printer.objects
        timer.post_many(({}, HOUR) for _ in range(3))
        timer.pause()
        follow.look()
        follow.look()
        assert ["paused", "totals"] == [o["kind"] for o in printer.objects]
        assert ({"posted": 3}, 4) == (
            printer.objects[1]["changes"],
            printer.objects[1]["scheduled"],
        )

    def test_each_dead_letter_is_printed_once(self, store, timer, client):
        """Each new dead letter is printed once, even if several died at the same moment."""
        keys, printer = store.keys, Printer()

        def die(id, at):
            # The error is "no", and the body is b",3|{}" (dtimer/store/format.py).
            client.hset(keys.dead, id, b"1,failed,2|no,3|{}")
            client.zadd(keys.graves, {id: at})

        die("old", 1)
        follow = Follow(store, printer)
        follow.look()
        now = store.namespace.server_now()
        for ids in (("b",), ("c", "d"), (), ("e",)):
            for id in ids:
                die(id, now)
            follow.look()
        assert ["b", "c", "d", "e"] == [o["id"] for o in printer.objects]
        assert ("failed", "no") == (printer.objects[0]["reason"], printer.objects[0]["error"])

    def test_it_prints_until_ctrl_c(self, timer, server, namespace):
        """The program prints lines until Ctrl-C, and then ends with exit code 0."""
        env = environment(server, namespace)
        with Program("tail", "--interval", "50ms", "--json", env=env) as program:
            program.find("following", "stderr")
            timer.post({}, HOUR)
            assert {"posted": 1} == json.loads(program.find("totals"))["changes"]
            assert 0 == program.end(signal.SIGINT)

    def test_it_stays_during_an_outage(self, namespace):
        """The outage is reported once."""
        with Server(tcp=True) as server:
            env = environment(server, namespace)
            with Program("tail", "--interval", "50ms", env=env) as program:
                program.find("following", "stderr")
                server.kill9()
                program.find("Error", "stderr")
                server.start()
                program.find("Redis answers again", "stderr")
                assert 0 == program.end(signal.SIGINT)


def frame(nodes=3, events=30, history=(), **changes):
    """Return a frame of a busy namespace."""
    stats = Stats(12_345, 7, 3, 90_500.0, 2, nodes, False, {"posted": 5})
    who = [
        NodeInfo(f"node-{n}", f"i{n}", "host.example", 4_000 + n, 1.8e12, 20.0, n % 2 == 0)
        for n in range(nodes)
    ]
    waiting = [
        Record(f"order-{n}", {"text": "x" * 200}, 1.8e12 + n, State.SCHEDULED, 0)
        for n in range(events)
    ]
    fields = {
        "ns": "orders",
        "now": 1.8e12,
        "stats": stats,
        "nodes": who,
        "held": {"i0": 7},
        "upcoming": waiting,
        "rate": 12.5,
        "posted_rate": 3.0,
        "history": list(history),
    }
    return Frame(**fields | changes)


def drawn(frame, width, height, note=""):
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(draw(frame, width, height, note))
    return captured.get().splitlines()


class TestTop:
    """``dtimer top``."""

    @pytest.mark.parametrize("width", [80, 160])
    @pytest.mark.parametrize("height", [24, 50])
    @pytest.mark.parametrize("nodes", [0, 3, 200])
    def test_a_frame_fits_the_screen(self, width, height, nodes):
        """A frame that is too large would scroll, and tear the picture."""
        lines = drawn(frame(nodes, history=range(60)), width, height, "Redis does not answer")
        assert width >= max(map(len, lines))
        assert height >= len(lines)
        text = "\n".join(lines)
        for part in ("orders", "12345", "1m30s", "12.5 confirmed/s", "order-0", "does not answer"):
            assert part in text
        assert ("node-0" if nodes else "no node has joined") in text

    def test_an_empty_namespace_is_drawn(self):
        """An empty namespace can be drawn."""
        lines = drawn(frame(0, 0), 80, 24)
        assert any("nothing is waiting" in line for line in lines)

    @pytest.mark.parametrize(
        ("history", "line"),
        [
            ([], "    "),
            ([0.0], "    "),
            ([1.0], "   █"),
            ([0.0, 1.0, 2.0, 4.0, 8.0], "▂▃▅█"),
        ],
    )
    def test_the_sparkline_scales_to_the_highest_rate(self, history, line):
        """The sparkline shows the last rates, relative to the highest. A rate of zero is blank."""
        assert line == sparkline(history, 4)

    def test_nodes_and_events_share_the_lines(self):
        """A screen of any height has at least one line for a node and one for an event."""
        for height in range(1, 60):
            for nodes in (0, 1, 50):
                assert min(plan(height, nodes)) >= 1

    def test_a_sample_has_rates_and_leases_by_node(self, store, timer):
        """Totals become rates, and the events in flight are counted by node."""
        began, go_on = threading.Semaphore(0), threading.Event()

        @timer.on("event")
        def handle(events):
            began.release()
            go_on.wait(PATIENCE)

        sampler = Sampler(store)
        assert 0 == sampler.look(5).rate
        timer.post_many(({"n": n}, HOUR) for n in range(9))
        with timer:
            timer.post({}, id="tea")
            assert began.acquire(timeout=PATIENCE)
            sample = sampler.look(5)
            go_on.set()
        assert (1, 5, 9) == (sample.stats.in_flight, len(sample.upcoming), sample.stats.scheduled)
        assert sample.posted_rate > 0
        assert [1] == [n["in_flight"] for n in sample.for_programs()["nodes"]]

    def test_as_json_it_prints_an_object_each_second(self, timer, server, namespace):
        """A program can follow a namespace without a terminal."""
        timer.post({"n": 1}, HOUR, id="tea")
        with Program("top", "--json", env=environment(server, namespace)) as program:
            sample = [json.loads(program.find("events_per_second")) for _ in range(2)]
            assert 0 == program.end(signal.SIGINT)
        assert [1, 1] == [s["scheduled"] for s in sample]
        assert [0, 1] == [len(s["history"]) for s in sample]
        assert ["tea"] == [e["id"] for e in sample[0]["upcoming"]]

    def test_once_prints_one_frame(self, run, timer):
        """``--once`` prints one frame, or with ``--json`` one object."""
        timer.post({"n": 1}, HOUR, id="tea")
        assert "tea" in run("top", "--once").out
        assert 1 == len(run("top", "--once", "--json").objects)
        assert 3 == run("top", "--url", "redis://127.0.0.1:1").code

    @pytest.mark.parametrize("columns", [80, 160])
    @pytest.mark.parametrize("key", ["q", ""])
    def test_at_a_terminal_it_draws_until_q_or_ctrl_c(self, columns, key, timer, server, namespace):
        """At a terminal it draws until q or Ctrl-C, and restores the terminal."""
        timer.post({"n": 1}, HOUR, id="tea")
        env = environment(server, namespace)
        with Terminal("top", env=env, columns=columns) as terminal:
            terminal.find(r"tea")
            if key:
                terminal.type(key)
            else:
                terminal.process.send_signal(signal.SIGINT)
            assert 0 == terminal.wait()
