"""What is written survives, and is read back as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from servers import eventually

from chaos.history import History, HistoryError, Writer, checksum, run_of
from chaos.pulse import Pulse
from chaos.shelves import Shelves
from dtimer import EventExists, OutcomeUnknown
from dtimer.model.event import Event

TESTS = Path(__file__).parents[1]

#: Writes until it is killed.
CHATTY = """
import sys
from chaos.history import Writer
with Writer(sys.argv[1], "chatty") as writer:
    while True:
        writer.inv("post", id="a", n=1, padding="x" * 500)
"""


def operations(folder):
    return list(History(folder).operations())


class TestWriter:
    """A process says what it does, and that is kept."""

    def test_a_call_is_two_records_and_one_operation(self, tmp_path):
        """The beginning and the end of a call are paired, and what both say is put together."""
        with Writer(tmp_path, "node-1") as writer:
            k = writer.inv("cancel", id="a")
            writer.end("cancel", k, outcome="CANCELLED")
        (op,) = operations(tmp_path)
        assert ("cancel", f"node-1.{os.getpid()}", "ok", "a") == (op.op, op.p, op.ph, op.id)
        assert {"outcome": "CANCELLED"} == op.data
        assert op.t <= op.end

    @pytest.mark.parametrize(
        ("error", "ph"),
        [
            (OutcomeUnknown("no reply"), "info"),
            (EventExists("a"), "no"),
            (KeyboardInterrupt(), "info"),
        ],
    )
    def test_how_a_call_ended(self, tmp_path, error, ph):
        """A definite refusal is a no; what nobody knows, and an interrupt, is an info."""
        with Writer(tmp_path, "poster") as writer:
            with pytest.raises(type(error)), writer.call("post", id="a", n=1):
                raise error
            with writer.call("post", id="b", n=2) as said:
                said["more"] = True
        refused, fine = operations(tmp_path)
        assert ph == refused.ph
        assert (ph == "info") == refused.unknown
        assert ("ok", {"n": 2, "more": True}) == (fine.ph, fine.data)

    def test_killed_in_the_middle(self, tmp_path):
        """All that a process said before it was killed is there; its calls stay open."""
        process = subprocess.Popen(
            [sys.executable, "-c", CHATTY, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        try:
            eventually(lambda: sum(f.stat().st_size for f in tmp_path.iterdir()) > 100_000)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        ops = operations(tmp_path)
        assert len(ops) > 150
        assert {"open"} == {op.ph for op in ops}

    def test_threads_do_not_mix_their_lines(self, tmp_path):
        """Lines of many threads are whole, and each call is paired with its own end."""
        with Writer(tmp_path, "node") as writer:

            def talk(id):
                for n in range(200):
                    with writer.call("post", id=id, n=n) as said:
                        said["same"] = n

            threads = [threading.Thread(target=talk, args=[str(i)]) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        ops = operations(tmp_path)
        assert 800 == len(ops)
        assert [] == [op for op in ops if op.data["n"] != op.data["same"]]

    def test_a_forked_child_has_a_file_of_its_own(self, tmp_path):
        """A child that is forked with a writer does not write into its parent's file."""
        with Writer(tmp_path, "node") as writer:
            writer.note("node", phase="begin")
            pid = os.fork()
            if not pid:
                writer.note("stall", ms=1)
                os._exit(0)
            os.waitpid(pid, 0)
            writer.note("node", phase="end")
        by = {op.p: op.op for op in operations(tmp_path)}
        assert {f"node.{os.getpid()}": "node", f"node.{pid}": "stall"} == by

    def test_a_pid_may_come_again(self, tmp_path):
        """A second process of the same name and pid is another process."""
        for _ in range(2):
            with Writer(tmp_path, "node") as writer:
                writer.inv("post", id="a", n=1)
        pid = os.getpid()
        assert {f"node.{pid}", f"node.{pid}-2"} == {op.p for op in operations(tmp_path)}

    def test_what_a_run_says(self, tmp_path):
        """An event in hand becomes the fields of a run, times in whole µs."""
        due = 1_795_311_246_189_837
        more = {"attempt": 2, "max_retries": 3, "token": 9, "holder": None}
        ev = Event({"n": 5, "x": [1]}, id="a", due=due / 1000, lateness_ms=1.234, **more)
        run = run_of(ev, 600_000, 20_000)
        assert (due, due + 1234, 2, 9, 5) == tuple(
            run[k] for k in ("due", "srv", "att", "tok", "n")
        )
        assert checksum({"x": [1], "n": 5}) == run["crc"]
        assert (1234, 600_000, 20_000) == (run["late_us"], run["lease_us"], run["ahead_us"])

    def test_a_stall_is_noted(self, tmp_path):
        """A process that did not get to run says so itself."""
        with Writer(tmp_path, "node") as writer, Pulse(writer, beat=0.001, late=-1):
            eventually(lambda: operations(tmp_path))
        assert "stall" == operations(tmp_path)[0].op


def write(folder, *records, p="x.1", rest=""):
    lines = [json.dumps({"p": p, "ph": "ok", "op": "note", "t": 0} | r) + "\n" for r in records]
    (folder / f"{p}.jsonl").write_text("".join(lines) + rest)


class TestHistory:
    """A folder is read back."""

    def test_a_torn_last_line(self, tmp_path):
        """The last line of a process that was killed may be cut; that is counted."""
        write(tmp_path, {"t": 1}, {"t": 2}, rest='{"t":3,"p":"x.1","op":"po')
        history = History(tmp_path)
        assert 2 == len(list(history.operations()))
        assert (1, 2) == (history.torn, history.lines)

    @pytest.mark.parametrize("line", ["{", "[]", '{"t":1}', "\0\0\0"])
    def test_any_other_bad_line(self, tmp_path, line):
        """A line that is whole and no record is an error that names it."""
        write(tmp_path, {"t": 1}, rest=line + '\n{"t":3,"p":"x.1","op":"a","ph":"ok"}\n')
        with pytest.raises(HistoryError, match=r"x\.1\.jsonl:2"):
            operations(tmp_path)

    def test_no_history(self, tmp_path):
        """A folder without a history is an error, and not an empty one."""
        with pytest.raises(HistoryError):
            History(tmp_path)

    def test_merged_by_time(self, tmp_path):
        """The records of all processes in the order of time, threads out of order included."""
        write(tmp_path, {"t": 5}, {"t": 1}, {"t": 9}, p="x.1")
        write(tmp_path, {"t": 7}, {"t": 2}, p="y.2")
        assert [1, 2, 5, 7, 9] == [record["t"] for record in History(tmp_path)]

    def test_a_burst(self, tmp_path):
        """Items under one ``k`` are paired by their serial; an end that names none ends all."""
        inv = [{"op": "post", "ph": "inv", "k": 1, "id": f"e{n}", "n": n} for n in range(4)]
        first = {"op": "post", "ph": "ok", "k": 1, "n": 2, "t": 5}
        write(tmp_path, *inv, first, {"op": "post", "ph": "info", "k": 1, "t": 9})
        ended = {op.data["n"]: (op.ph, op.end) for op in operations(tmp_path)}
        assert {0: ("info", 9), 1: ("info", 9), 2: ("ok", 5), 3: ("info", 9)} == ended

    def test_a_call_without_a_number(self, tmp_path):
        """A call that could not be paired is an error."""
        write(tmp_path, {"op": "post", "ph": "inv"})
        with pytest.raises(HistoryError):
            operations(tmp_path)

    def test_an_end_without_a_beginning(self, tmp_path):
        """A call that ends and had not begun is an error: something was not recorded."""
        write(tmp_path, {"op": "run", "ph": "ok", "k": 7})
        with pytest.raises(HistoryError, match="had not begun"):
            operations(tmp_path)


class TestShelves:
    """Operations are gathered by what they concern, few or many."""

    @pytest.mark.parametrize("room", [3, 1000])
    def test_all_are_there(self, tmp_path, room):
        """Whether they were written out or not: each key has its operations, in order."""
        write(tmp_path, *[{"op": "post", "id": f"e{t % 7}", "t": 100 - t} for t in range(70)])
        with Shelves(count=4, room=room) as shelves:
            for op in operations(tmp_path):
                shelves.put(("id", op.id), op)
            found = dict(shelves)
        assert {("id", f"e{i}") for i in range(7)} == set(found)
        times = sorted(op.t for ops in found.values() for op in ops)
        assert list(range(31, 101)) == times
        assert all(ops == sorted(ops, key=lambda op: op.t) for ops in found.values())
