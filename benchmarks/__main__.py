"""The command line: ``python -m benchmarks``. Each command has its own ``--help``."""

from __future__ import annotations

import argparse
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import charts, machine, tables
from benchmarks.bench import FULL, Bench, Scale
from benchmarks.compare import compare
from benchmarks.compare_busy import compare_busy
from benchmarks.contenders import CONTENDERS, Contender, choose
from benchmarks.environments import CACHE, ENVIRONMENTS
from benchmarks.results import Results, path_for
from benchmarks.rounds import cells_of, run
from benchmarks.server import Server
from benchmarks.workloads import Work
from benchmarks.workloads.busy import Busy
from benchmarks.workloads.drain import Drain
from benchmarks.workloads.floors import Floors
from benchmarks.workloads.growth import Growth
from benchmarks.workloads.idle import Idle
from benchmarks.workloads.lateness import Lateness
from benchmarks.workloads.locks import Locks
from benchmarks.workloads.memory import Memory
from benchmarks.workloads.posting import Posting
from benchmarks.workloads.price import Price
from benchmarks.workloads.recovery import Recovery
from benchmarks.workloads.startup import Startup

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        *(Floors(), Startup(), Lateness(), Posting(), Drain()),
        *(Busy(), Locks(), Price(), Memory(), Idle(), Recovery(), Growth()),
    )
}

#: The scale for checking that everything works: seconds instead of hours.
_QUICK = Scale(factor=0.01, seconds=1.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run workloads; print tables, write JSON and plots")
    running.add_argument(
        "works",
        nargs="*",
        choices=[*WORKS, []],
        metavar="WORKLOAD",
        help=f"one of {', '.join(WORKS)}; default: all",
    )
    running.add_argument("--contenders", nargs="+", default=[], metavar="NAME")
    running.add_argument("--rounds", type=int, default=3)
    running.add_argument("--seed", type=int, default=None, help="for the order and the due moments")
    running.add_argument("--quick", action="store_true", help="a hundredth of the work, as a check")
    running.add_argument(
        "--only", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the cells to run"
    )
    running.add_argument(
        "--out", type=Path, default=CACHE / "results", help="folder for JSON and plots"
    )
    showing = commands.add_parser("show", help="print the tables of results again")
    showing.add_argument("results", type=Path)
    plotting = commands.add_parser("plot", help="draw results again")
    plotting.add_argument("results", type=Path)
    plotting.add_argument("folder", type=Path)
    setting = commands.add_parser("setup", help="make the contenders' environments")
    setting.add_argument("--contenders", nargs="+", default=[], metavar="NAME")
    comparing = commands.add_parser(
        "compare", help="compare the CPU an event, or the lateness, of two checkouts"
    )
    comparing.add_argument("base", type=Path)
    comparing.add_argument("head", type=Path)
    comparing.add_argument("--rounds", type=int, default=None, help="default: 15; for busy: 5")
    comparing.add_argument(
        "--work",
        choices=["cpu", "busy", "locks"],
        default="cpu",
        help="busy compares the lateness, and locks only how often an event acquires the lock",
    )
    comparing.add_argument(
        "--only", nargs="+", default=[], metavar="NAME=VALUE", help="the cases of busy to run"
    )
    comparing.add_argument("--quick", action="store_true", help="a check that busy runs")
    commands.add_parser("list", help="list the contenders and the workloads")
    return parser


def _setup(contenders: list[Contender]) -> dict[str, str]:
    """Make the environments; return those that failed, with the reason."""
    # The tool itself measures with the first.
    wanted = ["dtimer", *(contender.environment for contender in contenders)]
    failed = {}
    for name in dict.fromkeys(wanted):
        try:
            if ENVIRONMENTS[name].make():
                print(f"made {ENVIRONMENTS[name].folder}", file=sys.stderr)
        except (OSError, subprocess.CalledProcessError) as e:
            failed[name] = str(e)
            print(f"cannot make {name}: {e}", file=sys.stderr)
    return failed


def _pairs(words: list[str]) -> dict[str, str]:
    """Return the pairs of NAME=VALUE."""
    return dict(word.split("=", 1) for word in words)


def _run(given: argparse.Namespace) -> None:
    seed = random.randrange(10**6) if given.seed is None else given.seed
    works = [WORKS[name] for name in given.works or WORKS]
    contenders = choose(given.contenders)
    failed = _setup(contenders)
    contenders = [one for one in contenders if one.environment not in failed]
    only = _pairs(given.only)
    cells = [
        cell
        for cell in cells_of(works, contenders)
        if all(str(cell.params.get(name, value)) == value for name, value in only.items())
    ]
    server = Server()
    about = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "seed": seed,
        "rounds": given.rounds,
        "scale": "quick" if given.quick else FULL,
        "when": time.strftime("%Y-%m-%d %H:%M %Z"),
        **machine.about(),
        "server": server.version,
        "sharing": f"all {machine.about()['cores']} cores: server, consumers, poster, this tool",
        "load before": round(machine.load(), 2),
        "left out": ", ".join(failed) or "none",
        "contenders": [contender.id for contender in contenders],
        "versions": machine.versions(contender.environment for contender in contenders),
    }
    results = Results(about, [])
    path = path_for(given.out, [work.name for work in works])
    try:
        bench = Bench(server, _QUICK if given.quick else Scale())
        for record in run(bench, works, cells, seed, given.rounds):
            results.records.append(record)
            results.write(path)
    finally:
        server.close()
    about["load after"] = round(machine.load(), 2)
    results.write(path)
    _show(results)
    drawn = charts.draw(results, works, path.with_suffix(""))
    print(f"\nwritten: {path}, and {len(drawn)} plots in {path.with_suffix('')}")


def _show(results: Results) -> None:
    for line in tables.heading(results.about):
        print(line)
    for name, work in WORKS.items():
        if name in results.works:
            print("", *tables.table(results, work), sep="\n")
    print("", *tables.legend(results), sep="\n")
    print("", *tables.judgement(results), sep="\n")


def _compare(given: argparse.Namespace) -> None:
    for path in (given.base, given.head):
        if not (path / "dtimer" / "__init__.py").is_file():
            raise SystemExit(f"{path} is no checkout of dtimer; give the paths of two checkouts")
    if given.work == "cpu":
        compare(given.base, given.head, given.rounds or 15)
    else:
        scale = _QUICK if given.quick else Scale()
        rounds = 0 if given.work == "locks" else given.rounds or 5
        compare_busy(given.base, given.head, rounds, _pairs(given.only), scale)


def _list() -> None:
    for contender in CONTENDERS:
        pins = ", ".join(ENVIRONMENTS[contender.environment].pins)
        print(f"{contender.id:24}  {contender.says}  [{pins}]")
    print(f"workloads: {', '.join(WORKS)}")


def main() -> None:
    """Run the command line."""
    given = _parser().parse_args()
    if given.command == "setup":
        _setup(choose(given.contenders))
    elif given.command == "list":
        _list()
    elif given.command == "compare":
        _compare(given)
    elif given.command == "run":
        _run(given)
    elif given.command == "show":
        _show(Results.read(given.results))
    else:
        results = Results.read(given.results)
        charts.draw(results, [WORKS[name] for name in results.works], given.folder)


if __name__ == "__main__":
    main()
