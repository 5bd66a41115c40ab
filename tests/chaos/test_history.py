"""Tests of the history: each process records its calls, and the checker reads them back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from background import together
from servers import eventually

from chaos.history import History, HistoryError, Writer, checksum, run_of
from chaos.spill import Spill
from chaos.starvation import StarvationMonitor
from dtimer import EventExists, OutcomeUnknown
from dtimer.model.claims import Claim
from dtimer.model.event import Event

TESTS = Path(__file__).parents[1]

#: A process that writes until it is killed.
ENDLESS = """
import sys
from chaos.history import Writer
with Writer(sys.argv[1], "endless") as writer:
    while True:
        writer.inv("post", id="a", n=1, padding="x" * 500)
"""


def operations(folder):
    return list(History(folder).operations())


class TestWriter:
    """`Writer` records the calls of a process."""

    def test_the_two_records_of_a_call_are_one_operation(self, tmp_path):
        """The operation has the fields of both records: the arguments and the result."""
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
    def test_a_definite_failure_is_no_and_an_unknown_outcome_is_info(self, tmp_path, error, ph):
        """An interrupted call may have taken effect, so its outcome is unknown too."""
        with Writer(tmp_path, "poster") as writer:
            with pytest.raises(type(error)), writer.call("post", id="a", n=1):
                raise error
            with writer.call("post", id="b", n=2) as said:
                said["more"] = True
        refused, fine = operations(tmp_path)
        assert ph == refused.ph
        assert (ph == "info") == refused.unknown
        assert ("ok", {"n": 2, "more": True}) == (fine.ph, fine.data)

    def test_the_records_of_a_killed_process_are_kept(self, tmp_path):
        """The nemesis kills processes. Their calls stay open: no end was recorded."""
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)],
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
        """Each line is whole, and each call is paired with its own end."""
        with Writer(tmp_path, "node") as writer:

            def talk(thread):
                for n in range(200):
                    with writer.call("post", id=str(thread), n=n) as said:
                        said["same"] = n

            together(4, talk)
        ops = operations(tmp_path)
        assert 800 == len(ops)
        assert [] == [op for op in ops if op.data["n"] != op.data["same"]]

    def test_a_forked_child_has_a_file_of_its_own(self, tmp_path):
        """Two processes that write to one file could mix their lines."""
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

    def test_a_second_process_with_the_same_name_and_pid_is_another_process(self, tmp_path):
        """The system reuses a pid, often soon in a container."""
        for _ in range(2):
            with Writer(tmp_path, "node") as writer:
                writer.inv("post", id="a", n=1)
        pid = os.getpid()
        assert {f"node.{pid}", f"node.{pid}-2"} == {op.p for op in operations(tmp_path)}

    def test_a_run_records_the_fields_of_its_event(self, tmp_path):
        """Times are whole µs: the checker compares them exactly."""
        due = 1_795_311_246_189_837
        claim = Claim("a", 9, 2, due, due + 1_234, 3, b"")
        ev = Event({"n": 5, "x": [1]}, claim, holder=None)
        run = run_of(ev, 600_000, 20_000)
        assert (due, due + 1234, 2, 9, 5) == tuple(
            run[k] for k in ("due", "srv", "att", "tok", "n")
        )
        assert checksum({"x": [1], "n": 5}) == run["crc"]
        assert (1234, 600_000, 20_000) == (run["late_us"], run["lease_us"], run["ahead_us"])

    def test_a_process_records_that_it_was_starved(self, tmp_path):
        """A lease that ran out meanwhile is then not a fault of the library."""
        with Writer(tmp_path, "node") as writer, StarvationMonitor(writer, beat=0.001, late=-1):
            eventually(lambda: operations(tmp_path))
        assert "stall" == operations(tmp_path)[0].op


def write(folder, *records, p="x.1", rest=""):
    lines = [json.dumps({"p": p, "ph": "ok", "op": "note", "t": 0} | r) + "\n" for r in records]
    (folder / f"{p}.jsonl").write_text("".join(lines) + rest)


class TestHistory:
    """`History` reads the records of a folder."""

    def test_a_torn_last_line_is_skipped_and_counted(self, tmp_path):
        """A process that is killed may leave half a line."""
        write(tmp_path, {"t": 1}, {"t": 2}, rest='{"t":3,"p":"x.1","op":"po')
        history = History(tmp_path)
        assert 2 == len(list(history.operations()))
        assert (1, 2) == (history.torn, history.lines)

    @pytest.mark.parametrize("line", ["{", "[]", '{"t":1}', "\0\0\0"])
    def test_an_invalid_whole_line_is_an_error_that_names_it(self, tmp_path, line):
        """A skipped record could hide a violation."""
        write(tmp_path, {"t": 1}, rest=line + '\n{"t":3,"p":"x.1","op":"a","ph":"ok"}\n')
        with pytest.raises(HistoryError, match=r"x\.1\.jsonl:2"):
            operations(tmp_path)

    def test_a_folder_without_a_history_is_an_error(self, tmp_path):
        """A wrong path must not pass as an empty history without violations."""
        with pytest.raises(HistoryError):
            History(tmp_path)

    def test_records_of_all_processes_are_merged_by_time(self, tmp_path):
        """The threads of one process may write their records out of order."""
        write(tmp_path, {"t": 5}, {"t": 1}, {"t": 9}, p="x.1")
        write(tmp_path, {"t": 7}, {"t": 2}, p="y.2")
        assert [1, 2, 5, 7, 9] == [record["t"] for record in History(tmp_path)]

    def test_the_items_of_a_batch_are_paired_by_their_serials(self, tmp_path):
        """They share one call number ``k``. An end without a serial ends all that are open."""
        inv = [{"op": "post", "ph": "inv", "k": 1, "id": f"e{n}", "n": n} for n in range(4)]
        first = {"op": "post", "ph": "ok", "k": 1, "n": 2, "t": 5}
        write(tmp_path, *inv, first, {"op": "post", "ph": "info", "k": 1, "t": 9})
        ended = {op.data["n"]: (op.ph, op.end) for op in operations(tmp_path)}
        assert {0: ("info", 9), 1: ("info", 9), 2: ("ok", 5), 3: ("info", 9)} == ended

    def test_a_call_without_a_number_is_an_error(self, tmp_path):
        """The call could not be paired with its end."""
        write(tmp_path, {"op": "post", "ph": "inv"})
        with pytest.raises(HistoryError):
            operations(tmp_path)

    def test_an_end_without_a_beginning_is_an_error(self, tmp_path):
        """A record is missing, so the history proves nothing."""
        write(tmp_path, {"op": "run", "ph": "ok", "k": 7})
        with pytest.raises(HistoryError, match="had not begun"):
            operations(tmp_path)


class TestSpill:
    """`Spill` groups operations by id, in memory or in files."""

    @pytest.mark.parametrize("room", [3, 1000])
    def test_each_id_has_its_operations_in_order(self, tmp_path, room):
        """With room for 3 operations most are in files, with room for 1000 none is."""
        write(tmp_path, *[{"op": "post", "id": f"e{t % 7}", "t": 100 - t} for t in range(70)])
        with Spill(count=4, room=room) as spill:
            for op in operations(tmp_path):
                spill.put(("id", op.id), op)
            found = dict(spill)
        assert {("id", f"e{i}") for i in range(7)} == set(found)
        times = sorted(op.t for ops in found.values() for op in ops)
        assert list(range(31, 101)) == times
        assert all(ops == sorted(ops, key=lambda op: op.t) for ops in found.values())
