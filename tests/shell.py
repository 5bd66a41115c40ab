"""Run commands: in this process, or in a separate one, with or without a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import queue
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from servers import PATIENCE

import dtimer
from dtimer.cli import main


@dataclass
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def objects(self):
        """The lines of standard output, decoded as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self):
        """The lines of standard output, split at tabs."""
        return [line.split("\t") for line in self.out.splitlines()]


def runner(server, namespace, monkeypatch, capsys):
    """Return a function that runs a command in this process, for this server and namespace."""
    monkeypatch.setenv("DTIMER_URL", server.url)
    monkeypatch.setenv("DTIMER_NS", namespace)

    def run(*words):
        code = main([str(word) for word in words])
        output = capsys.readouterr()
        return Ran(int(code), output.out, output.err)

    return run


def examples(help):
    """Return the commands of a help text that follow a ``$`` prompt."""
    return [shlex.split(line)[2:] for line in re.findall(r"^ *(\$ dtimer .*)$", help, re.MULTILINE)]


def import_path():
    """Return the variable that makes another Python import this dtimer."""
    paths = [str(Path(dtimer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def environment(server, namespace):
    """Return the environment for a command in a separate process."""
    settings = {"DTIMER_URL": server.url, "DTIMER_NS": namespace, "TERM": "xterm-256color"}
    # Buffer the output as for a user.
    return os.environ | settings | {"PYTHONUNBUFFERED": ""} | import_path()


class Program:
    """
    ``dtimer`` in a separate process, which is killed at the end of the context.

    With *unread*, the reading end of its standard output is closed.
    """

    def __init__(self, *words, env, cwd=None, unread=False):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtimer", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=env,
        )
        self._lines: dict[str, queue.SimpleQueue[str | None]] = {}
        self._threads = []
        if unread:
            self.process.stdout.close()
        for name in ("stderr",) if unread else ("stdout", "stderr"):
            self._lines[name] = queue.SimpleQueue()
            thread = threading.Thread(target=self._pump, args=(name,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _pump(self, name):
        for line in getattr(self.process, name):
            self._lines[name].put(line.rstrip("\n"))
        self._lines[name].put(None)

    def find(self, pattern, stream="stdout"):
        """Return the next line that contains *pattern*; skip the lines before it."""
        passed = []
        while (line := self._lines[stream].get(timeout=PATIENCE)) is not None:
            if re.search(pattern, line):
                return line
            passed.append(line)
        raise AssertionError(f"no {pattern!r} in {passed}")

    def rest(self):
        """Return the remaining lines of the standard output, once the process has closed it."""
        return list(iter(lambda: self._lines["stdout"].get(timeout=PATIENCE), None))

    def tell(self, text):
        """Write to the standard input of the process."""
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self, number=signal.SIGINT):
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE)
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()


class Terminal:
    """``dtimer`` at a terminal of 24 lines, as a person would use it."""

    def __init__(self, *words, env, columns=80):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtimer", *map(str, words)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
        )
        os.close(theirs)
        self.written = ""

    def find(self, pattern):
        """Wait until *pattern* has been written. Escape sequences are removed before."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.written):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.written}"
            if not self._read():
                raise AssertionError(f"no {pattern!r} in {self.written}")

    def _read(self):
        if select.select([self._ours], [], [], 0.2)[0]:
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # Linux raises this once the other end is closed
                data = b""
            text = data.decode(errors="replace")
            self.written += re.sub(r"\x1b[\[(][0-9;?]*[A-Za-z]", "", text).replace("\r", "")
            return bool(data)
        return True

    def type(self, keys):
        """Type *keys* at the terminal."""
        os.write(self._ours, keys.encode())

    def wait(self):
        """Read until the command ends; return the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read() and self.process.poll() is None:
            assert time.monotonic() < deadline, f"the command does not end: {self.written}"
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)
