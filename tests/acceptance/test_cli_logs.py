"""``dtimer listen`` in production: its log, ``--quiet`` and ``--drain``."""

from __future__ import annotations

import json
import signal

import pytest
from servers import PATIENCE
from shell import Program, environment, runner

pytestmark = pytest.mark.acceptance

#: A handler that logs, and fails or hangs if the event says so.
HANDLER = """
import logging, threading
def handle(events):
    logging.getLogger("shop").info("got %s", events[0].id)
    if events[0].get("fail"):
        raise ValueError("no tea")
    if events[0].get("hang"):
        threading.Event().wait()
"""


@pytest.fixture
def listen(server, namespace, tmp_path, monkeypatch):
    """Return a function that starts a node with this handler and some options."""
    (tmp_path / "shop.py").write_text(HANDLER)
    monkeypatch.chdir(tmp_path)

    def listen(*words):
        words = ("listen", "--handler", "shop:handle", *words)
        return Program(*words, env=environment(server, namespace))

    return listen


class TestLog:
    """``--log``."""

    def test_each_line_has_time_and_level(self, listen, timer):
        """The lines of the handler and of its exception have them, too."""
        with listen("--log", "info", "--quiet") as node:
            node.find(r"^\d{4}-.* INFO +dtimer\.cli: .* joined the namespace", "stderr")
            timer.post({"fail": 1}, id="tea", max_retries=0)
            node.find(r"^\d{4}-.* INFO +shop: got tea$", "stderr")
            node.find(r"^\d{4}-.* ERROR +dtimer\.cli: a handler raised ValueError", "stderr")
            node.find("Traceback", "stderr")
            assert 0 == node.end(signal.SIGTERM)
            node.find("dead letter: tea", "stderr")

    def test_as_json_each_line_is_an_object(self, listen, timer):
        """With ``--json`` each line is an object, which contains the traceback."""
        with listen("--log", "info", "--quiet", "--json") as node:
            node.find("joined", "stderr")
            timer.post({"fail": 1}, id="tea")
            line = json.loads(node.find("a handler raised", "stderr"))
            assert 0 == node.end(signal.SIGTERM)
        assert ("error", "dtimer.cli", "HandlerError") == (
            line["level"],
            line["logger"],
            line["error"],
        )
        assert "no tea" in line["traceback"]

    def test_as_json_a_record_of_the_library_has_its_fields(self, listen, timer):
        """A log service finds all records of an event by its id, and all of a node by its name."""
        with listen("--log", "debug", "--quiet", "--json") as node:
            timer.post({}, id="tea")
            line = json.loads(node.find("confirmed", "stderr"))
            assert 0 == node.end(signal.SIGTERM)
        # The library logs to the logger ``dtimer``. The command logs to ``dtimer.cli``.
        assert ("dtimer", ["tea"], timer.ns) == (line["logger"], line["event_ids"], line["ns"])
        assert {"node", "incarnation"} < set(line)

    def test_a_format_with_the_fields_of_the_library_fits_each_record(self, listen, tmp_path):
        """
        The module of the handler may configure ``dtimer`` as docs/logging.rst shows. Records of the
        command reach that configuration, too.
        """
        (tmp_path / "shop.py").write_text(
            HANDLER
            + """
out = logging.StreamHandler()
out.setFormatter(logging.Formatter("%(levelname)s %(ns)s %(event_ids)s: %(message)s"))
logging.getLogger("dtimer").addHandler(out)
"""
        )
        with listen("--log", "info", "--quiet") as node:
            node.find(r"^INFO \S+ \[\]: .* joined the namespace", "stderr")
            assert 0 == node.end(signal.SIGTERM)

    def test_lines_below_the_level_are_not_logged(self, listen, timer):
        """Lines below the level are not logged."""
        with listen("--log", "error", "--quiet") as node:
            timer.post({"fail": 1}, id="tea", max_retries=0)
            assert "ERROR" in node.find("", "stderr")
            assert 0 == node.end(signal.SIGTERM)


class TestQuiet:
    """``--quiet``."""

    def test_events_are_not_printed(self, listen, timer):
        """The command itself prints nothing to stdout, which is left to the handler."""
        with listen("--quiet", "--log", "info") as node:
            timer.post({}, id="tea")
            node.find("got tea", "stderr")
            assert 0 == node.end(signal.SIGTERM)
            # This handler writes only to its log, on stderr.
            assert [] == node.rest()

    def test_it_needs_a_handler(self, server, namespace, monkeypatch, capsys):
        """Without a handler ``--quiet`` is a usage error."""
        assert 2 == runner(server, namespace, monkeypatch, capsys)("listen", "--quiet").code


class TestDrain:
    """``--drain``."""

    def test_a_hanging_handler_is_left_behind(self, listen, timer):
        """After the time of ``--drain``, its event is released, and the exit code is 1."""
        with listen("--drain", "50ms", "--log", "info") as node:
            timer.post({"hang": 1}, id="tea")
            node.find("got tea", "stderr")
            node.process.send_signal(signal.SIGTERM)
            node.find("handlers left behind: 1", "stderr")
            assert 1 == node.process.wait(PATIENCE)
        assert "scheduled" == timer.peek("tea").state.value
