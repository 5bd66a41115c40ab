"""The results of a run, and how rounds become figures and ratios."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.numbers import middle, ratio

Key = tuple[str, str]  # the id of a contender, its params as JSON


def key(contender: str, params: dict[str, Any]) -> Key:
    """Return the key of a cell."""
    return contender, json.dumps(params, sort_keys=True)


@dataclass
class Row:
    """A cell in all of its rounds."""

    contender: Contender
    params: dict[str, Any]
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def rounds(self, name: str) -> dict[int, float]:
        """Return the values of a figure, by the number of the round."""
        return self.figures.get(name, {})

    def medians(self) -> dict[str, float]:
        """Return the median of each figure over its rounds."""
        return {name: middle(rounds) for name, rounds in self.figures.items()}


@dataclass
class Results:
    """All records of a run, and the facts about the run."""

    about: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read results that `write` has written."""
        data = json.loads(path.read_text("utf-8"))
        return cls(data["about"], data["records"])

    def write(self, path: Path) -> None:
        """Write the results, so that tables and plots can be made again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(record)}" for record in self.records)
        about = json.dumps(self.about, indent=1)
        path.write_text(f'{{"about": {about},\n"records": [\n{lines}\n]}}\n', "utf-8")

    @property
    def works(self) -> list[str]:
        """The works of the run."""
        return list(dict.fromkeys(record["work"] for record in self.records))

    def rows(self, work: str) -> dict[Key, Row]:
        """Return the cells of a work, in the order of the contenders' table."""
        known = {contender.id: contender for contender in CONTENDERS}
        found: dict[Key, Row] = {}
        for record in self.records:
            if record["work"] != work or record["contender"] not in known:
                continue
            contender, params = known[record["contender"]], record["params"]
            row = found.setdefault(key(contender.id, params), Row(contender, params))
            if record["error"]:
                row.errors.append(record["error"].splitlines()[-1])
            for name, value in (record["figures"] or {}).items():
                row.figures.setdefault(name, {})[record["round"]] = value
        places = {contender.id: n for n, contender in enumerate(CONTENDERS)}
        ordered = sorted(
            found.items(),
            key=lambda one: (places[one[1].contender.id], _rank(one[1].params)),
        )
        return dict(ordered)


def _rank(params: dict[str, Any]) -> list[tuple[float, str]]:
    """Return the sort key of parameters: numbers by value, words after them."""
    return [
        (value, "") if isinstance(value, int | float) else (float("inf"), str(value))
        for value in params.values()
    ]


def against(
    row: Row, rows: dict[Key, Row], contender: str, params: dict[str, Any], figure: str
) -> float | None:
    """Return the ratio of a row's figure to that of another cell, within rounds."""
    other = rows.get(key(contender, params)) or _floor_for(rows.values(), contender, params)
    return None if other is None else ratio(row.rounds(figure), other.rounds(figure))


def _floor_for(rows: Iterable[Row], contender: str, params: dict[str, Any]) -> Row | None:
    """Return the cell of a floor that can be compared with a cell of these parameters."""
    mine = [row for row in rows if row.contender.id == contender]
    # A floor does not depend on batches, processes and nodes. Its other parameters must be equal.
    alike = [r for r in mine if r.contender.floor and _agrees(r.params, params)]
    return alike[0] if alike else None


def _agrees(one: dict[str, Any], other: dict[str, Any]) -> bool:
    free = {"batch", "processes", "nodes", "stream"}
    return all(other.get(name) == value for name, value in one.items() if name not in free)


def path_for(folder: Path, works: list[str]) -> Path:
    """Return the path for the results of a run."""
    when = time.strftime("%Y-%m-%d-%H%M%S")
    return folder / f"{when}-{'-'.join(works) if len(works) < 4 else 'all'}.json"
