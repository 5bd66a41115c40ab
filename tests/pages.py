"""Extracts the samples of the README and the docs, as a reader would copy them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]

# A block, and the indented or empty lines below it. Its options (":language:") do not belong to the
# sample.
_BLOCK = re.compile(
    r"^\.\. (code-block|literalinclude):: (\S+)\n((?:   :.*\n)*)((?: +\S.*\n|\n)*)", re.MULTILINE
)


class Block(NamedTuple):
    """A sample, the page that shows it, and the language that the page gives."""

    page: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """Return the page and the first line, which name a case."""
        return f"{self.page}: {self.text.partition(chr(10))[0]}"


def blocks(*languages: str) -> list[Block]:
    """Return the samples of these languages, in the order of the pages."""
    found = []
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        for kind, what, options, body in _BLOCK.findall(path.read_text("utf-8")):
            if kind == "literalinclude":
                language, text = _included(path.parent / what, options)
            else:
                language, text = what, textwrap.dedent(body)
            found.append(Block(page, language, text.strip("\n") + "\n"))
    return [block for block in found if block.language in languages]


def _included(path: Path, options: str) -> tuple[str, str]:
    language = re.search(r":language: (\S+)", options)
    return language[1] if language else "", path.read_text("utf-8")
