"""
What the built reference says: run by ``.ci/run docs`` on the pages that it has built.

Not among the tests in ``tests/``: Sphinx is no part of what these need.
"""

import dataclasses
import html
import re
from pathlib import Path

import pytest

import dtimer

BUILT = Path(__file__).resolve().parents[1] / "build" / "docs"
RECORDS = [
    getattr(dtimer, name)
    for name in dtimer.__all__
    if dataclasses.is_dataclass(getattr(dtimer, name))
]

# "str", "bool | None", "list[str]", "Iterator[Record]", and no sentence.
_ONE = r"[A-Za-z_.]+(\[[\w\[\]., |…]+\])?"
_TYPE = re.compile(rf"{_ONE}( \| {_ONE})*")
_FIELD = re.compile(
    r'<dt class="field-\w+">(Return type|Type)<span[^>]*>:</span></dt>\s*<dd[^>]*>(.*?)</dd>',
    re.DOTALL,
)


def page(name):
    """The text of a built page."""
    return (BUILT / f"{name}.html").read_text("utf-8")


def plain(text):
    """The text of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def fields():
    """Each field of the reference that is set as a type."""
    return [plain(text) for _, text in _FIELD.findall(page("reference"))]


def test_each_return_type_is_a_type():
    """
    What Sphinx sets as a type is one. It takes for a type what precedes a colon in the first
    line of ``Returns:``, and of the docstring of an attribute, so half a sentence was set as one.
    """
    assert "Returns" in page("reference")
    assert [] == [text for text in fields() if not _TYPE.fullmatch(text)]


@pytest.mark.parametrize(
    ("text", "is_type"),
    [
        ("str", True),
        ("float | None", True),
        ("Iterator[Record]", True),
        ("dict[str, Any] | None", True),
        ("CANCELLED, which alone is true", False),
        ("False, and nothing is changed, when no event of that id is scheduled", False),
        ("Given up", False),
    ],
)
def test_what_a_type_looks_like(text, is_type):
    """The check above tells a type from the beginning of a sentence."""
    assert is_type is bool(_TYPE.fullmatch(text))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_each_attribute_of_a_record_is_explained(record):
    """The reference has an entry for each attribute of what the calls return, with its text."""
    text = page("reference")
    for field in dataclasses.fields(record):
        found = re.search(
            rf'id="dtimer\.{record.__name__}\.{field.name}".*?</dt>\s*<dd>(.*?)</dd>',
            text,
            re.DOTALL,
        )
        assert found, field.name
        assert plain(found[1]), field.name
