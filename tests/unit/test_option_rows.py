"""The rows of options: one place for the type, default, limits and description of each."""

import dataclasses

import pytest

from docs.option_table import descriptions, table
from dtimer.errors import OptionError
from dtimer.model.options import ROWS, Options, RunAtOptions, TimerOptions, validate
from dtimer.model.outcomes import Reason


class TestRows:
    """The rows agree with the fields, the types and the descriptions of the options."""

    def test_every_option_has_a_typed_field_a_row_and_a_description(self):
        """An option that is missing in one of them is unknown to type checkers or to readers."""
        fields = [field.name for field in dataclasses.fields(Options)]
        assert fields == list(ROWS)
        assert set(fields) == set(TimerOptions.__annotations__)
        assert set(fields) == set(descriptions())

    @pytest.mark.parametrize("name", ROWS)
    def test_a_default_passes_the_check_of_its_row(self, name):
        """A default outside the stated limits would make the reference wrong."""
        row = ROWS[name]
        assert getattr(validate({}), name) == row.check(row.default, name)

    @pytest.mark.parametrize("name", [n for n, row in ROWS.items() if hasattr(row, "most")])
    def test_the_stated_limits_are_the_first_and_last_accepted_values(self, name):
        """The reference prints the limits, and users rely on them."""
        row = ROWS[name]
        for accepted in (row.least, row.most):
            validate({name: accepted})
        for value in (row.least - 1, row.most + 1):
            with pytest.raises(OptionError, match=name):
                validate({name: value})

    def test_runat_takes_the_options_that_it_does_not_set_itself(self):
        """A stream chooses most others itself, and its events have no payload for a codec."""
        own = {"ns", "max_events", "auto_confirm", "poll_interval", "codec"}
        assert set(ROWS) - own == set(RunAtOptions.__annotations__)

    def test_the_table_of_the_reference_has_each_option_once(self):
        """The table is made from the rows when the pages are built."""
        names = [line.split("``")[1] for line in table() if line.startswith("   * - ``")]
        assert list(ROWS) == names
        assert any("100 ms to a day" in line for line in table())


def test_a_reason_of_a_newer_version_is_a_plain_text():
    """A process of this version may list what a newer one has buried."""
    assert Reason.FAILED is Reason.read("failed")
    assert "strange" == Reason.read("strange")
    assert not isinstance(Reason.read("strange"), Reason)
