"""The stored forms of events, dead letters and schedules, in Python and in the scripts."""

from dataclasses import replace

import pytest
from lupa.lua51 import LuaRuntime

from dtimer.model.outcomes import Reason
from dtimer.model.records import DeadLetter
from dtimer.store.format import (
    Body,
    Payload,
    read_body,
    read_claim,
    read_letter,
    read_payload,
    write_body,
    write_letter,
    write_occurrence,
)
from dtimer.store.scripts import texts

NOW = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def scripts():
    """The functions of parts/format.lua by name, outside a server."""
    lua = LuaRuntime(encoding=None, unpack_returned_tuples=True)
    preamble = f"local NOW = {NOW}\nlocal function digits(n) return string.format('%.0f', n) end\n"
    functions = texts()["parts/format"].replace("local function ", "function ")
    lua.execute((preamble + functions).encode())
    return lambda name, *arguments: lua.globals()[name.encode()](*arguments)


BODIES = {
    "without an expiry": Body(None, 3, b"{}"),
    "with an expiry": Body(NOW + 123, 0, b'{"a":"|"}'),
    "of the most retries": Body(None, 1_000_000, b""),
}


def written(body, chosen_id):
    """Return the bytes that a post stores."""
    expires = "" if body.expires_us is None else str(body.expires_us)
    payload = body.payload.decode()
    return write_body(expires, body.max_retries, payload, chosen_id=chosen_id).encode()


#: Trace id, span id and the flag of a sampled trace.
TRACE = "0af7651916cd43dd8448eb211c80319cb7ad6b716920333101"


def claim_of(raw, *, id="tea", before=b"", after=b""):
    """Return the claim whose reply has *raw* as the body of an event, between other bytes."""
    start, end = len(before), len(before + raw)
    return read_claim(before + raw + after, start, end, id=id, token=1, attempt=1, due=2, now=3)


@pytest.mark.parametrize("chosen_id", [False, True], ids=["generated id", "chosen id"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
class TestBody:
    """A body that Python writes."""

    def test_is_read_by_python_as_it_was_written(self, body, chosen_id):
        """An export, a claim and an inspection read what a post has stored."""
        raw = written(body, chosen_id)
        assert replace(body, chosen_id=chosen_id) == read_body(raw)
        claim = claim_of(raw, before=b"before", after=b"after")
        assert (body.expires_us, body.max_retries) == (claim.expires_us, claim.max_retries)
        assert (body.payload, None, 0) == (claim.payload, claim.nominal_us, claim.missed)

    def test_is_read_by_scripts_as_it_was_written(self, scripts, body, chosen_id):
        """Scripts judge expiry and retries, and do not claim a chosen id ahead of its time."""
        raw = written(body, chosen_id)
        expires, retries, *mark = scripts("parse_body", raw)
        assert (body.expires_us, body.max_retries) == (expires, retries)
        assert ([b"n"] if chosen_id else []) == mark


def test_a_script_stores_a_relative_expiry_as_an_absolute_one(scripts):
    """The expiry counts from the server's time of the post."""
    posted = write_body("+5", 3, "{}").encode()
    assert Body(NOW + 5, 3, b"{}") == read_body(scripts("posted_body", posted))


class TestOccurrence:
    """The body of an occurrence, which only scripts write."""

    def test_is_read_by_python(self, scripts):
        """A claim has the schedule, the nominal time and the number of missed occurrences."""
        raw = scripts("occurrence_body", b"", b"3", b"%d" % NOW, b"{}")
        raw = scripts("with_missed", raw, b"", 2)
        claim = claim_of(raw, id=f"a@b@{NOW}")
        assert ("a@b", NOW, 2) == (claim.schedule, claim.nominal_us, claim.missed)
        assert (3, b"{}") == (claim.max_retries, claim.payload)

    def test_is_written_alike_by_python(self, scripts):
        """An import restores the dead letter of an occurrence."""
        raw = scripts("occurrence_body", b"", b"3", b"%d" % NOW, b"{}")
        raw = scripts("with_missed", raw, b"", 2)
        assert raw == write_occurrence("", 3, "{}", NOW, 2).encode()
        assert Body(None, 3, b"{}", nominal_us=NOW, missed=2) == read_body(raw)

    def test_has_an_expiry_that_may_move(self, scripts):
        """An occurrence that stands for missed ones expires when the latest of them does."""
        raw = scripts("occurrence_body", b"5", b"3", b"%d" % NOW, b"{}")
        assert (5, 3, b"s") == scripts("parse_body", raw)
        raw = scripts("with_missed", raw, b"70", 2)
        assert raw == write_occurrence("70", 3, "{}", NOW, 2).encode()

    def test_has_a_mark_that_scripts_read(self, scripts):
        """A script that ends an occurrence lets the next one start."""
        raw = scripts("occurrence_body", b"", b"3", b"%d" % NOW, b"{}")
        assert (None, 3, b"s") == scripts("parse_body", raw)


class TestLaterFields:
    """A body with a field that only a later version knows. It stands after the mark."""

    @pytest.mark.parametrize("fields", [b",,", b",,x", b",,s1", b",,n", b",x"])
    def test_is_not_taken_for_the_mark(self, scripts, fields):
        """If a new field were taken for the mark, no node would claim the event ahead of time."""
        raw = b",3" + fields + b"|{}"
        assert (None, 3) == scripts("parse_body", raw)
        assert Body(None, 3, b"{}") == read_body(raw)

    def test_is_skipped_after_the_mark(self, scripts):
        """An older version runs the events of a later one."""
        assert (None, 3, b"n") == scripts("parse_body", b",3,n,x|{}")
        assert Body(None, 3, b"{}", chosen_id=True) == read_body(b",3,n,x|{}")
        assert (None, 3, b"s") == scripts("parse_body", b",3,s7,2,x|{}")
        assert Body(None, 3, b"{}", nominal_us=7, missed=2) == read_body(b",3,s7,2,x|{}")


class TestTrace:
    """The trace context of a post, which only sampled posts have."""

    @pytest.mark.parametrize("chosen_id", [False, True], ids=["generated id", "chosen id"])
    def test_is_read_as_it_was_written(self, chosen_id):
        """The handler's span has a link to the span that posted the event."""
        raw = write_body("", 3, "{}", chosen_id=chosen_id, trace=TRACE).encode()
        assert Body(None, 3, b"{}", chosen_id=chosen_id, trace=TRACE) == read_body(raw)
        assert (TRACE, b"{}") == (claim_of(raw).trace, claim_of(raw).payload)

    def test_does_not_stop_a_claim_ahead_of_time(self, scripts):
        """Only a mark does. Otherwise tracing would make events later."""
        raw = write_body("+5", 3, "{}", trace=TRACE).encode()
        assert (NOW + 5, 3) == scripts("parse_body", scripts("posted_body", raw))

    def test_is_none_if_dtimer_has_not_written_it(self):
        """A foreign value must not reach the tracer."""
        for flags in (b",t12", b",t" + b"x" * 50, b",t" + TRACE.encode() + b"0"):
            assert "" == read_body(b",3," + flags + b"|{}").trace


BEFORE_SNOOZE = {
    "plain": b",3|{}",
    "with an expiry": b"1800000000000000,3|{}",
    "chosen id": b",3,n|{}",
    "occurrence": b",3,s1800000000000000,2|{}",
    "sampled": b",3,,t" + TRACE.encode() + b"|{}",
    "like a flag": b',3|{"a":",z1|"}',
}


class TestFirstSnooze:
    """The time of the first snooze and its reason, which only events that were snoozed have."""

    @pytest.mark.parametrize("reason", ["", "unknown_kind"])
    @pytest.mark.parametrize("raw", BEFORE_SNOOZE.values(), ids=BEFORE_SNOOZE)
    def test_is_read_by_python_and_changes_nothing_else(self, scripts, raw, reason):
        """A node decides by it how long an event has waited, and all other facts stay."""
        snoozed = scripts("snoozed_body", raw, reason.encode())
        expected = replace(read_body(raw), snoozed_us=NOW, snooze_reason=reason)
        assert expected == read_body(snoozed)
        made = claim_of(snoozed)
        assert (NOW, reason) == (made.snoozed_us, made.snooze_reason)
        assert scripts("parse_body", raw) == scripts("parse_body", snoozed)
        assert scripts("snoozed_body", snoozed, reason.encode()) is None
        assert read_body(raw) == read_body(scripts("without_snooze", snoozed))

    def test_is_replaced_if_the_reason_changes(self, scripts):
        """Each reason has a wait of its own."""
        snoozed = scripts("snoozed_body", b",3|{}", b"unreadable")
        other = read_body(scripts("snoozed_body", snoozed, b""))
        assert (NOW, "") == (other.snoozed_us, other.snooze_reason)

    @pytest.mark.parametrize("raw", BEFORE_SNOOZE.values(), ids=BEFORE_SNOOZE)
    def test_is_none_in_the_body_of_an_event_that_was_not_snoozed(self, scripts, raw):
        """A payload that looks like the flag must not be taken for it."""
        assert read_body(raw).snoozed_us is None
        assert claim_of(raw).snoozed_us is None
        assert scripts("without_snooze", raw) is None


@pytest.mark.parametrize("raw", [b"", b"x", b"1|{}", b",|{}", b"\xff", b"1" * 18 + b",3|{}"])
class TestForeignBody:
    """A body that dtimer has not written."""

    def test_is_refused_by_python_and_by_scripts(self, scripts, raw):
        """Both treat it as corrupt, or an event would be claimed that no node can read."""
        assert read_body(raw) is None
        assert Payload(None) == read_payload(raw)
        assert scripts("parse_body", raw) is None

    def test_becomes_the_payload_of_its_claim(self, scripts, raw):
        """Decoding it fails later, and the event becomes a dead letter with these bytes."""
        assert raw == claim_of(raw).payload


class TestDeadLetter:
    """The stored form of a dead letter."""

    LETTER = DeadLetter("tea", {}, 4, Reason.FAILED, "a|b\udcff", NOW / 1000, b"9,3|{}")

    def test_is_read_as_it_was_written(self):
        """An imported dead letter equals the exported one, also with bytes that are not UTF-8."""
        raw = write_letter(self.LETTER).encode(errors="surrogateescape")
        assert self.LETTER == read_letter("tea", NOW, raw)

    def test_is_equal_in_scripts(self, scripts):
        """Scripts bury events, and revive imported dead letters."""
        raw = write_letter(self.LETTER).encode(errors="surrogateescape")
        error = self.LETTER.error.encode(errors="surrogateescape")
        assert raw == scripts("write_letter", 4, b"failed", error, self.LETTER.raw)
        assert self.LETTER.raw == scripts("body_of_letter", raw)
        assert b",3|{}" == scripts("revived_body", self.LETTER.raw)

    def test_has_no_body_if_dtimer_has_not_written_it(self, scripts):
        """Such a letter cannot be revived, and is shown as corrupt."""
        assert b"" == scripts("body_of_letter", b"junk")
        assert Reason.CORRUPT == read_letter("tea", NOW, b"junk").reason


class TestLease:
    """A lease, which only scripts write and read."""

    def test_is_read_as_it_was_written(self, scripts):
        """Any incarnation is kept, also one with a comma."""
        lease, head = scripts("write_lease", b"17", b"2", b"%d" % NOW, b"cs", b"node,1")
        assert lease.startswith(head)
        assert (b"17", 2, b"%d" % NOW, True, b"node,1", b"cs") == scripts("parse_lease", lease)

    @pytest.mark.parametrize("raw", [b"", b"5,", b"5,1,1,x,n", b"1" * 17 + b",1,1,,n"])
    def test_is_none_if_dtimer_has_not_written_it(self, scripts, raw):
        """The event is then claimed again."""
        assert scripts("parse_lease", raw) is None
