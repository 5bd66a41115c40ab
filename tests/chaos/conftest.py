"""The fixture that the tests of the checker share."""

from __future__ import annotations

import pytest

from chaos.story import Story


@pytest.fixture
def story(tmp_path):
    """A history that the test writes by hand."""
    return Story(tmp_path)
