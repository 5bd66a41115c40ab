"""
Where contenders live: a virtualenv or a ``node_modules`` for each, made once and kept.

The pins are the one place where versions are chosen. What came with them is read off the
made environment and goes into the results (`Environment.installed`), so that a figure says
what it is of. An environment whose pins have changed is made again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Everything the tool makes: environments, results, plots.
CACHE = ROOT / "build" / "benchmarks"

#: redis-py where its user chooses it. hiredis is given to every Python peer, asked for or not.
REDIS = "redis==8.1.0"
HIREDIS = "hiredis==3.4.2"


@dataclass(frozen=True)
class Environment:
    """Something to install, and where. With ``ours`` it is this checkout, editable."""

    name: str
    pins: tuple[str, ...]
    node: bool = False
    ours: bool = False

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return CACHE / "environments" / self.name

    @property
    def command(self) -> list[str]:
        """What runs a program in it."""
        return ["node"] if self.node else [str(self.folder / "bin" / "python")]

    @property
    def variables(self) -> dict[str, str]:
        """What a program in it finds in its environment besides."""
        return {"NODE_PATH": str(self.folder / "node_modules")} if self.node else {}

    def make(self) -> bool:
        """Make it, unless it is there. Return whether there was anything to do."""
        stamp = self.folder / "made"
        wanted = "\n".join([sys.version, *self.pins])
        if stamp.exists() and stamp.read_text("utf-8") == wanted:
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.node:
            self._npm()
        else:
            self._pip()
        stamp.write_text(wanted, "utf-8")
        return True

    def _pip(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        pip = [*self.command, "-m", "pip", "--disable-pip-version-check"]
        what = [*(["-e", str(ROOT)] if self.ours else []), *self.pins]
        subprocess.run([*pip, "install", "--quiet", *what], check=True, stderr=subprocess.DEVNULL)

    def _npm(self) -> None:
        (self.folder / "package.json").write_text('{"private": true}\n', "utf-8")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--save-exact"]
        subprocess.run([*command, *self.pins], cwd=self.folder, check=True)

    def installed(self) -> dict[str, str]:
        """Return every package in it with its version."""
        if self.node:
            lock = self.folder / "node_modules" / ".package-lock.json"
            packages = json.loads(lock.read_text("utf-8"))["packages"]
            found = {name.rpartition("node_modules/")[2]: p for name, p in packages.items()}
            return {name: found[name]["version"] for name in sorted(found)}
        listing = [*self.command, "-m", "pip", "--disable-pip-version-check"]
        told = subprocess.run(
            [*listing, "list", "--format=json"], check=True, capture_output=True, env=_quiet()
        )
        return {one["name"]: one["version"] for one in json.loads(told.stdout)}


def _quiet() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


_ALL = (
    Environment("dtimer", (REDIS,), ours=True),
    Environment("dtimer-hiredis", (REDIS, HIREDIS), ours=True),
    Environment("npm-dtimer", ("dtimer@0.3.3",), node=True),
    Environment("runat-loop", ("redis@2.8.0",), node=True),
    Environment("bullmq", ("bullmq@6.7.0", "ioredis@6.0.0"), node=True),
    Environment("rq", ("rq==3.0.0", REDIS, HIREDIS)),
    Environment("celery", ("celery[redis]==5.7.0", HIREDIS)),
    Environment("dramatiq", ("dramatiq[redis]==2.2.1", REDIS, HIREDIS)),
    Environment("huey", ("huey==3.5.4", REDIS, HIREDIS)),
    Environment("arq", ("arq==0.28.0", HIREDIS)),
    # It needs typing_extensions and does not say so.
    Environment("saq", ("saq[redis]==0.26.4", HIREDIS, "typing_extensions==4.16.0")),
    Environment("apscheduler", ("apscheduler==3.11.3", REDIS, HIREDIS)),
    Environment(
        "redis-timers", ("faststream-redis-timers==0.5.4", "faststream[redis]==0.7.8", HIREDIS)
    ),
    Environment("docket", ("pydocket==0.27.0", HIREDIS)),
)

ENVIRONMENTS = {one.name: one for one in _ALL}


@cache
def version(environment: str, package: str) -> str:
    """Return which version of *package* is in an environment that has been made."""
    wanted = package.lower().replace("_", "-")
    for name, number in ENVIRONMENTS[environment].installed().items():
        if name.lower().replace("_", "-") == wanted:
            return number
    return "none"
