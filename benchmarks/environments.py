"""
The contenders' environments: a virtualenv or a ``node_modules`` each, made once and kept.

The versions are pinned here and nowhere else. The results list all installed packages
(`Environment.installed`), so that a figure names its versions. An environment is made again when
its pins change.
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
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]

#: The folder for environments, results and plots.
CACHE = ROOT / "build" / "benchmarks"

#: The redis-py of each contender that does not require another version itself. Every Python peer
#: also gets hiredis.
REDIS = "redis==8.1.0"
HIREDIS = "hiredis==3.4.2"


class Home(Protocol):
    """A place in which a driver runs: the start of its command line, and environment variables."""

    @property
    def command(self) -> list[str]:
        """The command that runs a program."""
        ...

    @property
    def variables(self) -> dict[str, str]:
        """Additional environment variables for a program."""
        ...


@dataclass(frozen=True)
class Checkout:
    """A checkout of this project, run by the interpreter of the tool."""

    path: Path

    @property
    def command(self) -> list[str]:
        """The command that runs a program with the checkout's dtimer."""
        return [sys.executable]

    @property
    def variables(self) -> dict[str, str]:
        """Additional environment variables for a program."""
        return {"PYTHONPATH": str(self.path.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Environment:
    """Packages to install, and where. With ``ours`` this checkout is installed, editable."""

    name: str
    pins: tuple[str, ...]
    node: bool = False
    ours: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the environment."""
        return CACHE / "environments" / self.name

    @property
    def command(self) -> list[str]:
        """The command that runs a program in the environment."""
        return ["node"] if self.node else [str(self.folder / "bin" / "python")]

    @property
    def variables(self) -> dict[str, str]:
        """Additional environment variables for a program."""
        return {"NODE_PATH": str(self.folder / "node_modules")} if self.node else {}

    def make(self) -> bool:
        """Make the environment if it is missing or outdated; return True if it was made."""
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
        """Return the installed packages with their versions."""
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
    # SAQ needs typing_extensions but does not declare it.
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
    """Return the version of *package* in an environment that has been made."""
    wanted = package.lower().replace("_", "-")
    for name, number in ENVIRONMENTS[environment].installed().items():
        if name.lower().replace("_", "-") == wanted:
            return number
    return "none"
