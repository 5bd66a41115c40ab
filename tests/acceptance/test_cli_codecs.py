"""The command line and payloads that a codec has written."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from dtimer import DTimer
from dtimer.contrib.codecs import Encrypted

pytestmark = pytest.mark.acceptance

KEY = base64.urlsafe_b64encode(b"0123456789abcdef" * 2)
HOUR = 3_600_000
SECRET = {"card": "4111 1111"}


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    """A program of the user, in the current directory, with a codec and a text."""
    code = f"from dtimer.contrib.codecs import Encrypted\nCODEC = Encrypted({KEY!r})\nTEXT = 'x'\n"
    (tmp_path / "program_with_a_codec.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "program_with_a_codec:CODEC"


@pytest.fixture
def writer(server, namespace):
    """A timer of that program."""
    timer = DTimer("writer", server.url, ns=namespace, codec=Encrypted(KEY))
    timer.post(SECRET, HOUR, id="tea")
    timer.every(HOUR, SECRET, id="tick")
    yield timer
    timer.leave()


class TestWithoutTheCodec:
    """Commands that lack the key."""

    @pytest.mark.parametrize("words", [("peek", "tea"), ("upcoming",), ("schedules",)], ids=str)
    def test_show_the_kind_and_the_length(self, run, writer, words):
        """An operator sees why the payload is missing."""
        ran = run(*words)
        assert 0 == ran.code
        assert "<encrypted, " in ran.out
        assert "4111" not in ran.out
        (record, *_) = run(*words, "--json").objects
        assert record["event"] is None
        assert record["sealed"].startswith("encrypted, ")

    def test_copy_the_bytes_from_one_namespace_to_another(self, run, writer, server, namespace):
        """An operator moves a namespace without the key, and the program reads it there."""
        assert 0 == run("export", "all.jsonl").code
        lines = map(json.loads, Path("all.jsonl").read_text().splitlines())
        shown = [line["event"] for line in lines if "event" in line]
        assert 2 == len(shown)
        assert all(text.startswith("<encrypted, ") for text in shown)
        assert 0 == run("import", "all.jsonl", "--ns", f"{namespace}-other").code
        copy = DTimer("copy", server.url, ns=f"{namespace}-other", codec=Encrypted(KEY))
        assert SECRET == copy.peek("tea").event
        assert [SECRET] == [schedule.event for schedule in copy.schedules()]
        assert writer.peek("tea").due == copy.peek("tea").due
        assert "changed" == copy.every(HOUR, SECRET, id="tick")
        copy.leave()


class TestWithTheCodec:
    """Commands that are told where the codec is."""

    @pytest.mark.parametrize("words", [("peek", "tea"), ("upcoming",), ("schedules",)], ids=str)
    def test_show_the_payload(self, run, writer, program, words):
        """A developer looks at the events of the program."""
        assert '{"card": "4111 1111"}' in run(*words, "--codec", program).out
        (record, *_) = run(*words, "--codec", program, "--json").objects
        assert (SECRET, None) == (record["event"], record["sealed"])

    def test_write_as_the_program_does(self, run, writer, program, monkeypatch):
        """The nodes of the program refuse plain payloads."""
        monkeypatch.setenv("DTIMER_CODEC", program)
        assert 0 == run("post", '{"n": 1}', "1h", "--id", "cup").code
        assert 0 == run("update", "tea", '{"n": 2}').code
        assert "same" in run("every", "1h", json.dumps(SECRET), "--id", "tick").out
        assert 0 == run("every", "1h", '{"n": 3}', "--id", "tock").code
        assert [{"n": 1}, {"n": 2}] == [writer.peek(id).event for id in ("cup", "tea")]
        assert {"n": 3} == writer.schedule("tock").event

    def test_export_plain_text_and_import_it_encrypted(self, run, writer, program, namespace):
        """The key can be replaced in this way, too."""
        codec = ("--codec", program)
        assert 0 == run("export", "all.jsonl", *codec).code
        assert 2 == Path("all.jsonl").read_text().count('"event": {"card"')
        other = ("--ns", f"{namespace}-other")
        assert 0 == run("import", "all.jsonl", *codec, *other).code
        assert "<encrypted, " in run("peek", "tea", *other).out
        assert "4111" in run("peek", "tea", *other, *codec).out


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("program_with_a_codec", 2, "--codec must be package.module:name"),
        ("program_with_a_codec:TEXT", 2, "codec must be a codec"),
        ("program_with_a_codec:NOTHING", 4, "there is no 'NOTHING'"),
        ("no_such_program:CODEC", 4, "no module 'no_such_program'"),
    ],
)
def test_a_wrong_name_is_reported(run, name, code, text):
    """A mistyped codec must not show the events as unreadable."""
    ran = run("upcoming", "--codec", name)
    assert code == ran.code
    assert text in ran.err
