"""The fixture that the tests of the checker share."""

from __future__ import annotations

import pytest

from chaos.cases import Case


@pytest.fixture
def case(tmp_path):
    """A history that the test writes by hand."""
    return Case(tmp_path)
