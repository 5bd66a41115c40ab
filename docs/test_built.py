"""
Check the built reference. ``.ci/run docs`` runs this file on the pages that it has built.

This file is not in ``tests/``, because those tests do not need Sphinx.
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

# "str", "bool | None", "list[str]", "Iterator[Record]", but not a sentence.
_ONE = r"[A-Za-z_.]+(\[[\w\[\]., |…\u2018\u2019]+\])?"
_TYPE = re.compile(rf"{_ONE}( \| {_ONE})*")
_FIELD = re.compile(
    r'<dt class="field-\w+">(Return type|Type)<span[^>]*>:</span></dt>\s*<dd[^>]*>(.*?)</dd>',
    re.DOTALL,
)


def page(name):
    """Return the text of a built page."""
    return (BUILT / f"{name}.html").read_text("utf-8")


def plain(text):
    """Return the text of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", text)).strip()


def fields():
    """Return each field of the reference that is set as a type."""
    return [plain(text) for _, text in _FIELD.findall(page("reference"))]


def test_sets_only_types_as_types():
    """
    Every text that Sphinx sets as a type is a type. Sphinx takes the text before a colon as one, in
    the first line of ``Returns:`` and of an attribute's docstring. So it once set half sentences.
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
        ("Literal[\u2018skip\u2019, \u2018all\u2019]", True),
        ("CANCELLED, which alone is true", False),
        ("False, and nothing is changed, when no event of that id is scheduled", False),
        ("Given up", False),
    ],
)
def test_tells_a_type_from_a_sentence(text, is_type):
    """The pattern of the check above matches types, and not the beginnings of sentences."""
    assert is_type is bool(_TYPE.fullmatch(text))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_explains_each_attribute_of_a_record(record):
    """The reference explains each attribute of the records that calls return."""
    text = page("reference")
    for field in dataclasses.fields(record):
        found = re.search(
            rf'id="dtimer\.{record.__name__}\.{field.name}".*?</dt>\s*<dd>(.*?)</dd>',
            text,
            re.DOTALL,
        )
        assert found, field.name
        assert plain(found[1]), field.name
