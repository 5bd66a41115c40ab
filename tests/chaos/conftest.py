"""The fixture that the tests of the checker share."""

from __future__ import annotations

import pytest

from chaos.story import Story


@pytest.fixture
def story(tmp_path):
    """A history to be told by hand."""
    return Story(tmp_path)
