"""The page about the keys in Redis says what the scripts store."""

import re

from docs.redis_keys import PAGE, forms, keys, page
from dtimer.store.format import write_body
from dtimer.store.keys import Keys
from dtimer.store.scripts import texts


def test_the_page_is_the_one_that_the_headers_make():
    """Operators and other programs rely on it. To write it again: python docs/redis_keys.py."""
    assert page() == PAGE.read_text("utf-8")


def test_every_key_is_described_in_the_order_of_the_scripts():
    """Operators do not know of a key that is missing."""
    assert list(Keys._fields) == [name for name, _ in keys()]


def test_every_flag_that_python_writes_is_described():
    """A letter that two authors chose would be read as the other fact."""
    (listed,) = (text for name, text in forms() if name == "flag")
    written = re.findall(r",([a-z])", write_body("", 3, "", trace="0" * 50))
    for letter in written:
        assert re.search(rf" {letter}   ?\w", listed) or f" {letter} " in listed


def test_every_total_that_a_script_counts_is_described():
    """A name that is missing is a total that no reader of the statistics sees."""
    counted = {
        name for text in texts().values() for name in re.findall(r"count\('([a-z_]+)'", text)
    }
    assert counted
    for name in counted:
        assert f"``{name}``" in page()
