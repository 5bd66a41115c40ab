"""The decision of a claim about one event, run without a server."""

from __future__ import annotations

import pytest
from lupa.lua51 import LuaRuntime

from dtimer.store.scripts import texts

NOW = 1_000_000
MOST_BODY = 100


@pytest.fixture(scope="module")
def judge():
    """Return the function `judge`, called with the arguments that differ from a claimable event."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().NOW, lua.globals().MOST_BODY = NOW, MOST_BODY
    function = lua.execute(f"{texts()['parts/judge']}\nreturn judge")

    def call(**changed):
        event = {
            "body": ",3|{}",
            "score": str(changed.get("due", NOW)),
            "due": NOW,
            "expires": None,
            "max_retries": 3,
            "mark": None,
            "token": None,
            "holder": None,
            "attempt": 0,
            "horizon": NOW + 50,
        }
        stays, reason, err = function(*(event | changed).values())
        return bool(stays), reason, err

    return call


class TestDueEvent:
    """An event that is due starts, or becomes a dead letter."""

    def test_a_due_event_starts(self, judge):
        """Nothing holds it back."""
        assert (False, None, None) == judge()
        assert (False, None, None) == judge(mark="s")
        assert (False, None, None) == judge(mark="n")

    @pytest.mark.parametrize(
        ("reason", "changed"),
        [
            ("payload_missing", {"body": None}),
            ("corrupt", {"max_retries": None}),
            ("corrupt", {"score": "1.5"}),
            ("corrupt", {"score": "-5", "due": -5}),
            ("corrupt", {"body": "x" * (MOST_BODY + 1)}),
            ("expired", {"expires": NOW}),
            ("expired", {"expires": 1}),
        ],
    )
    def test_an_event_that_cannot_start_becomes_a_dead_letter(self, judge, reason, changed):
        """If the event stayed due, each claim would take it again."""
        assert (False, reason, "") == judge(**changed)

    def test_a_lost_lease_counts_as_an_attempt(self, judge):
        """After the last attempt the event is a dead letter, and its error names the node."""
        lost = {"token": "1", "holder": "node-1"}
        assert (False, None, None) == judge(**lost, attempt=3)
        expected = (False, "lease_lost", "the lease of node node-1 ran out")
        assert expected == judge(**lost, attempt=4)

    def test_the_error_quotes_at_most_255_bytes_of_a_name(self, judge):
        """A name that dtimer has not written may be of any length."""
        _, _, err = judge(token="1", holder="n" * 1000, attempt=4)
        assert err.count("n" * 255) == 1
        assert "n" * 256 not in err

    def test_retries_of_the_handler_are_not_judged(self, judge):
        """A failed attempt is judged when it is settled, not when the event is due again."""
        assert (False, None, None) == judge(attempt=9)


class TestEarlyEvent:
    """Only an event that will simply start is claimed before it is due."""

    def test_is_claimed_up_to_the_horizon(self, judge):
        """An event after the horizon belongs to a later claim."""
        assert (False, None, None) == judge(due=NOW + 50)
        assert (True, None, None) == judge(due=NOW + 51)

    @pytest.mark.parametrize(
        "changed",
        [
            {"mark": "n"},
            {"mark": "s"},
            {"token": "1", "holder": "n"},
            {"expires": NOW + 50},
            {"max_retries": None},
            {"body": None},
        ],
        ids=str,
    )
    def test_any_other_event_stays_until_it_is_due(self, judge, changed):
        """The event may change until then."""
        assert judge(due=NOW + 50, **changed)[0]

    def test_an_event_that_expires_later_is_claimed(self, judge):
        """Its node checks the expiry again before it starts."""
        assert (False, None, None) == judge(due=NOW + 50, expires=NOW + 51)
