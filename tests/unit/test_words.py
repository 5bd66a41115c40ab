"""
Words and phrases that make a reader stop.

The check reads comments, docstrings, error messages, Lua comments, the documentation and the
comments of configuration files. It finds phrases that a reader has to decode. It cannot find
every sentence that is hard to read, so a green check is not a review.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The files that quote the phrases, or whose text is not ours.
EXEMPT = {"LICENSE", "tests/unit/test_words.py"}

#: What to write instead, and the phrases. A phrase counts in any letter case.
PHRASES = {
    "name the component or role": (
        r"\b(nobody|somebody|anybody|everybody|whoever|whomever|whatever|whichever|wherever"
        r"|no one|none of them|those who|he who|one who|one that|ones that)\b"
    ),
    "use a word of today": (
        r"\b(anew|mend|mends|mended|mending|thrice|lest|as ever|told of|tell of|tells of|save for"
        r"|thereof|whereupon|hither|hence|whence|thus|see to it|sees to it|beside the|be it"
        r"|albeit|twain|nought|aught|ere|betwixt|amid|at hand|in hand)\b"
    ),
    "use a verb with not": (
        r"\b(is|are|was|were|be) no (?!longer\b|more than\b|one\b|such\b)[a-z]+"
    ),
    "give the clause a subject": (
        r"(?:^|(?<=[.:;]\s))(What|Who|Whoever|Whatever)"
        r" (is|are|was|were|has|have|had|it|they|he|a|an|the|this|that|[a-z]+s)\b(?![^.?]*\?)"
        r"|\b(of|to|for|with|by|from|in|on|than|and|as) what (is|are|was|were|has|it|they|a|the)\b"
    ),
    "use must": r"\b(is|are|was|were|has|have) to be (?!able)[a-z]+(ed|n|t)\b",
    "use the usual order of words": (
        r"\b(find|finds|found) (it|them) (none|no)\b|\bwhere (it|this|that|they) cannot\b"
        r"|\bnor (is|are|does|do|was|has|have|can|will)\b"
    ),
    "name the number": r"\bso many (seconds|events|of|as)\b|\bat most so many\b",
    "use the standard term": (
        r"\b(stairs|porch|hall|wing|wings|cellar|herald|appetite|farewell|keeper|premises"
        r"|the hands|a hand|each hand|free hands?|hand's|take a turn|takes a turn|the turn"
        r"|a turn)\b"
    ),
}

#: The same for the first words of a docstring.
OPENINGS = {
    "begin with a verb or a noun": r"It\b",
    "begin with what the reader looks for": r"(What|Who|Whatever|Whoever|One|Those|That|Whether)\b",
}

_PHRASES = {
    # Each space also matches the end of a line. Only a capital letter begins a sentence.
    advice: re.compile(
        phrase.replace(" ", r"\s+"),
        re.NOFLAG if advice == "give the clause a subject" else re.IGNORECASE,
    )
    for advice, phrase in PHRASES.items()
}
_OPENINGS = {advice: re.compile(opening) for advice, opening in OPENINGS.items()}

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Text(NamedTuple):
    """A piece of prose: its first line in the file, and whether it is a docstring."""

    line: int
    words: str
    docstring: bool = False


def joined(comments: Iterator[Text]) -> Iterator[Text]:
    """Join the comments of successive lines, because a phrase may continue on the next line."""
    block: list[Text] = []
    for comment in comments:
        if block and comment.line != block[-1].line + 1:
            yield Text(block[0].line, "\n".join(part.words for part in block))
            block = []
        block.append(comment)
    if block:
        yield Text(block[0].line, "\n".join(part.words for part in block))


def texts_of_python(source: str, *, messages: bool) -> Iterator[Text]:
    """Yield the comments, the docstrings and, on request, texts of at least four words."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from joined(
        Text(token.start[0], token.string.lstrip("#: "))
        for token in tokens
        if token.type == tokenize.COMMENT
    )
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        # A class or a function comes before the nodes inside it.
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node):
            constant = node.body[0].value
            docstrings.add(constant)
            yield Text(constant.lineno, constant.value.strip(), docstring=True)
        elif messages and node not in docstrings and len(words := text_of(node).split()) >= 4:
            yield Text(node.lineno, " ".join(words))


def text_of(node: ast.AST) -> str:
    """Return the value of a text in the code, and an empty text for any other node."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def comments_of_lines(source: str, mark: str) -> Iterator[Text]:
    """Yield the comments that begin with *mark*."""
    comment = re.compile(rf"(?:^|\s){mark}(.*)$")
    yield from joined(
        Text(number, found[1].strip())
        for number, line in enumerate(source.splitlines(), 1)
        if (found := comment.search(line))
    )


def paragraphs_of_page(source: str) -> Iterator[Text]:
    """Yield the paragraphs of a page of documentation."""
    for paragraph in re.finditer(r"(?:^.*\S.*\n?)+", source, re.MULTILINE):
        yield Text(source[: paragraph.start()].count("\n") + 1, paragraph.group())


def prose(path: Path, source: str) -> Iterator[Text]:
    """Yield the prose of a file, by the kind of the file."""
    if path.suffix == ".py":
        # The texts in tests and benchmarks are payloads and replies as often as messages.
        yield from texts_of_python(source, messages=path.parts[0] == "dtimer")
    elif path.suffix == ".lua":
        yield from comments_of_lines(source, "--")
    elif path.suffix in (".rst", ".md"):
        yield from paragraphs_of_page(source)
    elif path.suffix in {".cfg", ".toml", ".ini", ".in"} or path.name in {"Makefile", "run"}:
        yield from comments_of_lines(source, "#")


def findings(path: Path, source: str) -> list[str]:
    """Return the phrases of a file that a reader has to decode, with their places."""
    found = []
    for text in prose(path, source):
        places = [
            (match, advice) for advice, p in _PHRASES.items() for match in p.finditer(text.words)
        ]
        if text.docstring:
            places += [(m, a) for a, p in _OPENINGS.items() if (m := p.match(text.words))]
        for match, advice in places:
            line = text.line + text.words[: match.start()].count("\n")
            found.append(f"{path}:{line}: {match.group()!r}: {advice}")
    return found


def files() -> Iterator[Path]:
    """Yield the files that may contain prose of ours, relative to the root of the repository."""
    yield from (path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file())
    for folder in ("dtimer", "tests", "benchmarks", "docs", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT)
            if path.is_file() and not {"_build", "__pycache__"} & {*inside.parts}:
                yield inside


def test_no_phrase_has_to_be_decoded():
    """A new engineer reads each sentence once."""
    found = []
    for path in files():
        if str(path) not in EXEMPT:
            # Pictures are no prose, and need not be UTF-8.
            found += findings(path, (ROOT / path).read_text("utf-8", errors="replace"))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "line"),
    [
        ("a.py", "x = 1\n# Sent as\n# ever.\n", 2),
        ("a.py", 'def f():\n    """Return a thing.\n\n    Nobody waits.\n    """\n', 4),
        ("a.py", 'class A:\n    """It waits."""\n', 2),
        ("dtimer/a.py", 'raise ValueError("the server was told of it")\n', 1),
        ("a.lua", "local x = 1 -- what is due\n-- is no event\n", 2),
        ("a.rst", "Title\n=====\n\nWhat is due starts.\n", 4),
        ("setup.cfg", "[a]\n# For whoever reads.\n", 2),
        ("Makefile", "# Done thrice.\n", 1),
        # Texts of tests, questions, plain English, and files of another kind.
        ("a.py", 'x = "nobody is told of it anew"\n', None),
        ("a.py", "# What is due?\n", None),
        ("a.rst", "An event is no longer due.\n", None),
        ("a.txt", "Nobody mends it.\n", None),
    ],
)
def test_finds_the_line_of_each_phrase_in_each_kind_of_file(file, source, line):
    """The check above would pass if it read no prose. A wrong finding would forbid plain words."""
    found = findings(Path(file), source)
    assert [f"{file}:{line}"] * (line is not None) == [":".join(x.split(":")[:2]) for x in found]
