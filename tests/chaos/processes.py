"""Start, replace and end the processes of a soak."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

from proxy import Proxy
from servers import Server, eventually

import dtimer
from chaos.history import Writer

#: All processes but the runner log in as this user, so that a fault can refuse them. The runner is
#: the process that runs the soak.
USER, PASSWORD = "soak", "p-of-soak"

#: Seconds for a program to end properly. Its handlers may hang for some of them.
_ENDING = 30

_FLAGS = ["-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning"]


class Member:
    """
    A name in the soak, with one process at a time. If the process dies, another one replaces it.

    Args:
        program: The module that the process runs.
        name: The name of all of its processes.
        setting: The settings of the program, to which `Processes` adds some.
        proxy: The proxy to the server.
        subscription: A second proxy for the subscription, or None.
    """

    def __init__(
        self,
        program: str,
        name: str,
        setting: dict[str, Any],
        proxy: Proxy,
        subscription: Proxy | None,
    ) -> None:
        self.program = program
        self.name = name
        self.setting = setting
        #: The proxies to the server, which each process takes over from the one before.
        self.proxy = proxy
        self.subscription = subscription
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False
        #: Resident memory in KiB, by seconds since the process began.
        self.memory: dict[int, list[tuple[float, int]]] = defaultdict(list)
        self.begun = 0.0

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def tell(self, **order: Any) -> None:
        """Give the process an order. A dying process does not receive it."""
        assert self.process
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process
        self.process.kill()

    def freeze(self) -> None:
        # Another injection may have killed the process; then there is nothing to stop.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)
            self.frozen = True

    def thaw(self) -> None:
        """Let the process continue, unless another one has replaced it."""
        if self.frozen:
            self.frozen = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    def sample(self) -> None:
        with contextlib.suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            age = time.monotonic() - self.begun
            self.memory[self.pid].append((age, pages * os.sysconf("SC_PAGE_SIZE") // 1024))


class Processes:
    """
    All processes of a soak.

    Args:
        server: The server, which each process reaches through a proxy of its own.
        folder: The folder of the run, for the histories and the standard errors.
        writer: Records the kills.
        common: The settings that all programs share.
        strict: Run the interpreter in its development mode.
    """

    def __init__(
        self, server: Server, folder: Path, writer: Writer, common: dict[str, Any], *, strict: bool
    ) -> None:
        self._server = server
        self._folder = folder
        self._writer = writer
        self._common = common
        self._flags = _FLAGS if strict else _FLAGS[2:]
        self._starts = 0
        self.members: list[Member] = []
        self._watches: list[threading.Thread] = []
        self.kills = 0
        #: Unexpected exit statuses, and processes that did not end in time.
        self.complaints: list[str] = []

    def of(self, program: str) -> list[Member]:
        return [m for m in self.members if m.program == program]

    def add(self, program: str, name: str, *, subscription: bool = False, **setting: Any) -> None:
        proxy, own_subscription = Proxy(self._server), Proxy(self._server) if subscription else None
        setting["url"] = self._url(proxy)
        if own_subscription:
            setting["sub"] = self._url(own_subscription)
        self.members.append(Member(program, name, self._common | setting, proxy, own_subscription))
        self._begin(self.members[-1])

    @staticmethod
    def _url(proxy: Proxy) -> str:
        return f"redis://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}/0"

    def _begin(self, member: Member) -> None:
        self._starts += 1
        setting = member.setting | {"name": member.name, "start": self._starts}
        tests = Path(__file__).resolve().parents[1]
        root = Path(dtimer.__file__).resolve().parents[1]
        with self._stderr(member).open("ab") as stderr:
            member.process = subprocess.Popen(
                [
                    sys.executable,
                    *self._flags,
                    "-m",
                    f"chaos.{member.program}",
                    json.dumps(setting),
                ],
                stdin=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{root}"},
            )
        member.begun = time.monotonic()
        member.frozen = False
        # On a thread of its own, because the checker needs the moment of a death even if the
        # runner is busy.
        watch = threading.Thread(target=self._watch, args=(member.name, member.process))
        watch.start()
        self._watches.append(watch)

    def _watch(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a process, and record it if the process was killed."""
        if process.wait() == -signal.SIGKILL:
            self._writer.note("kill", pid=process.pid, who=f"{name}.{process.pid}")

    def _stderr(self, member: Member) -> Path:
        return self._folder / f"{member.name}.stderr"

    def replace_dead(self) -> None:
        for member in self.members:
            if member.process and member.process.poll() is not None:
                self._record_exit(member)
                self._begin(member)

    def _record_exit(self, member: Member) -> None:
        process = member.process
        assert process
        assert process.stdin
        status = process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        member.process = None
        if status == -signal.SIGKILL:
            self.kills += 1
        elif status:
            self.complaints.append(f"{member.name}.{process.pid} ended with status {status}")

    def sample(self) -> None:
        for member in self.members:
            if member.process:
                member.sample()

    def end(self, *programs: str) -> None:
        """Let the processes that run these programs end properly, and wait for them."""
        leaving = [m for program in programs for m in self.of(program) if m.process]
        for member in leaving:
            assert member.process
            assert member.process.stdin
            with contextlib.suppress(BrokenPipeError):
                member.process.stdin.close()
        deadline = time.monotonic() + _ENDING
        for member in leaving:
            self._wait_for_end(member, deadline)

    def _wait_for_end(self, member: Member, deadline: float) -> None:
        process = member.process
        assert process
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # The process writes the stacks of all of its threads to its standard error.
            process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(AssertionError):
                eventually(lambda: self._stderr(member).stat().st_size, 1)
            process.kill()
            self.complaints.append(f"{member.name}.{process.pid} did not end in {_ENDING} s")
        self._record_exit(member)

    def stderr(self) -> dict[str, str]:
        """Return the standard errors that are not empty, by the name of the process."""
        texts = {m.name: self._stderr(m).read_text(errors="replace") for m in self.members}
        return {name: text for name, text in texts.items() if text}

    def close(self) -> None:
        for member in self.members:
            if member.process:
                member.process.kill()
                member.process.communicate()
                member.process = None
            member.proxy.close()
            if member.subscription:
                member.subscription.close()
        for watch in self._watches:
            watch.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
