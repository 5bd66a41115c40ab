"""The checker on schedules and on the keys of RunAt: what it accepts, and what it catches."""

from __future__ import annotations

import pytest

from chaos.story import NODE, OTHER, POSTER, accepted, caught, server_us

EVERY = 200
FIRST = 1000

RUNAT = {"face": "runat"}


def nominal(i):
    """The i-th nominal time, in µs."""
    return server_us(FIRST + i * EVERY)


def occurrence(i):
    return f"beat@{nominal(i)}"


def declare(story, at=0, **more):
    fields = {"every_us": EVERY * 1000, "start_us": nominal(0), "max_retries": 3, "crc": 7}
    story.call(NODE, "schedule", at, at + 2, id="beat", **(fields | more))


def beat(story, i, *, late=1, missed=0, **more):
    """Tell the run of the i-th occurrence, in ms after its nominal time."""
    at = FIRST + i * EVERY + late
    fields = {"due": nominal(i), "srv": server_us(at - 0.5), "crc": 7, "missed": missed}
    return story.run(occurrence(i), None, at, **(fields | more))


def ends(story, i):
    """Tell that the i-th is pending at the end."""
    story.ends(pending=[occurrence(i)])


class TestLegalChains:
    """Chains that go on as they should."""

    def test_each_in_turn(self, story):
        """One after the other, declared by every process, is fine."""
        declare(story)
        declare(story, 500)
        for i in range(5):
            beat(story, i)
        ends(story, 5)
        assert 5 == accepted(story).counts["occurrences"]

    def test_one_stands_for_others(self, story):
        """An occurrence says for how many it stands, and the next is the one after those."""
        declare(story)
        beat(story, 0)
        beat(story, 1, missed=3, late=700)
        beat(story, 5)
        ends(story, 6)
        accepted(story)

    def test_one_was_cancelled(self, story):
        """A cancelled one is left out, and the one after it comes."""
        declare(story)
        beat(story, 0)
        story.cancel(occurrence(1), FIRST + 50)
        beat(story, 2)
        ends(story, 3)
        accepted(story)

    @pytest.mark.parametrize("next", [2, 3])
    def test_a_cancel_of_unknown_outcome(self, story, next):
        """It may have been cancelled, or be one that another stands for."""
        declare(story)
        beat(story, 0)
        beat(story, 1, missed=next - 2)
        story.cancel(occurrence(2), FIRST + 350, None)
        beat(story, 3)
        ends(story, 4)
        accepted(story)

    def test_dead_without_a_run(self, story):
        """Of one whose node was killed before the handler it is not known for how many it stood."""
        declare(story, max_retries=0)
        beat(story, 0)
        story.kill(NODE, FIRST + 250)
        beat(story, 4, p=OTHER)
        letter = {"id": occurrence(1), "n": None, "reason": "lease_lost", "attempt": 1}
        story.ends(dead=[letter], pending=[occurrence(5)])
        accepted(story)

    def test_redelivered(self, story):
        """One that failed comes again, and stands for as many as before."""
        declare(story)
        beat(story, 0, missed=1, late=250, ph="no")
        beat(story, 0, missed=1, late=310, att=2, due=server_us(FIRST + 300))
        beat(story, 2)
        ends(story, 3)
        accepted(story)

    def test_dropped_by_policy(self, story):
        """With ``skip`` occurrences are left out without a word."""
        declare(story, misfire="skip")
        beat(story, 0)
        beat(story, 4)
        ends(story, 5)
        accepted(story)

    def test_asked_for_besides(self, story):
        """One that was asked for has a nominal time of its own."""
        declare(story)
        beat(story, 0)
        at = FIRST + 77
        extra = f"beat@{server_us(at)}"
        story.call(POSTER, "run_now", at - 1, at + 1, said={"occurrence": extra}, id="beat")
        story.run(extra, None, at + 5, due=server_us(at), crc=7, missed=0)
        beat(story, 1)
        ends(story, 2)
        accepted(story)

    def test_changed(self, story):
        """Of a schedule that changed the rhythm is not known, and not held."""
        declare(story)
        beat(story, 0)
        declare(story, FIRST + 50, every_us=777_000)
        story.run(f"beat@{server_us(2400)}", None, 2405, due=server_us(2400), crc=7, missed=0)
        accepted(story)

    def test_ended(self, story):
        """A schedule that was ended has nothing pending."""
        declare(story)
        beat(story, 0)
        story.call(POSTER, "unschedule", FIRST + 50, FIRST + 52, id="beat")
        accepted(story)

    def test_cron(self, story):
        """The nominal times of a cron expression are the library's own."""
        seconds = {"every_us": None, "start_us": None, "cron": "* * * * * *", "tz": "UTC"}
        declare(story, **seconds)
        for second, missed in ((1, 0), (2, 2), (5, 0)):
            at = second * 1000
            id = f"beat@{server_us(at)}"
            story.run(id, None, at + 5, due=server_us(at), crc=7, missed=missed)
        story.ends(pending=[f"beat@{server_us(6000)}"])
        accepted(story)


class TestBrokenChains:
    """I11, broken in many ways, and what is broken of an occurrence as of any event."""

    def test_left_out(self, story):
        """A nominal time without an occurrence is found."""
        declare(story)
        beat(story, 0)
        beat(story, 2)
        ends(story, 3)
        caught(story, "I11", "left out")

    def test_the_first_left_out(self, story):
        """So is the first, where it is known."""
        declare(story)
        beat(story, 1)
        ends(story, 2)
        caught(story, "I11", "left out")

    def test_doubled(self, story):
        """One that another stood for is not handed out besides."""
        declare(story)
        beat(story, 0, missed=2, late=500)
        beat(story, 1, late=400)
        beat(story, 3)
        ends(story, 4)
        caught(story, "I11", "stood for it")

    def test_drifted(self, story):
        """A nominal time that is none is found."""
        declare(story)
        beat(story, 0)
        story.run(f"beat@{nominal(1) + 1}", None, FIRST + 220, crc=7, missed=0)
        ends(story, 2)
        caught(story, "I11", "not a nominal time")

    def test_drifted_cron(self, story):
        """Of a cron expression, too."""
        declare(story, every_us=None, start_us=None, cron="* * * * * *")
        story.run(f"beat@{server_us(1500)}", None, 1505, crc=7, missed=0)
        caught(story, "I11", "not a nominal time")

    def test_left_out_of_cron(self, story):
        """A second that was left out is found."""
        declare(story, every_us=None, start_us=None, cron="* * * * * *")
        for second in (1, 3):
            id = f"beat@{server_us(second * 1000)}"
            story.run(id, None, second * 1000 + 5, crc=7, missed=0)
        story.ends(pending=[f"beat@{server_us(4000)}"])
        caught(story, "I11", "left out")

    def test_broken(self, story):
        """A chain does not end by itself."""
        declare(story)
        beat(story, 0)
        caught(story, "I11", "the chain ended")

    def test_another_number_of_missed(self, story):
        """An occurrence stands for as many each time that it is handed out."""
        declare(story)
        beat(story, 0, missed=1, late=250, ph="no")
        beat(story, 0, missed=0, late=310, att=2, due=server_us(FIRST + 300))
        beat(story, 2)
        ends(story, 3)
        caught(story, "I11", "stands for more or fewer")

    def test_too_many(self, story):
        """A limited number is kept."""
        declare(story, count=2)
        for i in range(3):
            beat(story, i)
        caught(story, "I11", "count=2")

    def test_after_its_end(self, story):
        """No nominal time lies after the end."""
        declare(story, end_us=nominal(1))
        for i in range(3):
            beat(story, i)
        caught(story, "I11", "after the schedule's end")

    def test_two_at_a_time(self, story):
        """With ``queue`` the next one waits."""
        declare(story)
        beat(story, 0, took=500)
        beat(story, 1)
        ends(story, 2)
        caught(story, "I11", "overlap=queue")

    def test_two_at_a_time_when_allowed(self, story):
        """With ``allow`` it does not."""
        declare(story, overlap="allow")
        beat(story, 0, took=500)
        beat(story, 1)
        ends(story, 2)
        accepted(story)

    def test_before_its_nominal_time(self, story):
        """I1: an occurrence is not early."""
        declare(story)
        beat(story, 0, late=-20, due=nominal(0) - 30_000)
        ends(story, 1)
        caught(story, "I1", "nominal time")

    def test_claimed_ahead(self, story):
        """I1: nor is it claimed ahead, as an event is: what it stands for is decided then."""
        declare(story, minted=True)
        beat(story, 0)
        beat(story, 1, srv=nominal(1) - 5_000, tok=nominal(1) - 5_000, ahead_us=20_000)
        ends(story, 2)
        caught(story, "I1", "nominal time")

    def test_another_attempt_claimed_ahead(self, story):
        """I1: which is so of each of its attempts."""
        declare(story)
        beat(story, 0, ph="no")
        due = nominal(0) + 80_000
        early = {"due": due, "srv": due - 5_000, "tok": due - 5_000, "ahead_us": 20_000}
        beat(story, 0, late=81, att=2, **early)
        ends(story, 1)
        caught(story, "I1", "claimed before it was due")

    def test_again_for_no_reason(self, story):
        """I4: an occurrence has leases like any event."""
        declare(story)
        beat(story, 0)
        beat(story, 0, late=700, att=2, p=OTHER)
        beat(story, 1, late=720)
        ends(story, 2)
        caught(story, "I4", "nothing explains why")

    def test_after_its_cancel(self, story):
        """I6: a cancelled occurrence does not start."""
        declare(story)
        story.cancel(occurrence(0), 500)
        beat(story, 0)
        ends(story, 1)
        caught(story, "I6")

    def test_lost(self, story):
        """I2: one that was started ends somewhere."""
        declare(story)
        beat(story, 0, took=None)
        story.kill(NODE, FIRST + 20)
        beat(story, 1, p=OTHER)
        ends(story, 2)
        caught(story, "I2", "lost")

    def test_never_declared(self, story):
        """I3: there is no occurrence of nothing."""
        beat(story, 0)
        caught(story, "I3", "never declared")

    def test_another_payload(self, story):
        """I10: its payload is the declaration's."""
        declare(story)
        beat(story, 0, crc=8)
        ends(story, 1)
        caught(story, "I10", "payload")


def write(story, key, at, *, n=1, delay_ms=0, ph="ok", **more):
    fields = {"n": n, "delay_us": delay_ms * 1000} | RUNAT | more
    story.call(POSTER, "write", at, at + 2, ph, id=key, **fields)


def read(story, key, at, *, p="reader.20", **said):
    story.call(p, "read", at - 1, at, said={"id": key} | said, **RUNAT)


class TestKeys:
    """The keys of RunAt."""

    def test_written_and_read(self, story):
        """Each key written is read once; written again, once more."""
        write(story, "x", 0)
        read(story, "x", 10)
        write(story, "x", 20)
        read(story, "x", 30)
        counts = accepted(story).counts
        assert (2, 2, 0) == (counts["written"], counts["read"], counts["lost"])

    def test_moved(self, story):
        """A key written twice before it was read is read once."""
        write(story, "x", 0, delay_ms=50)
        write(story, "x", 10, delay_ms=100)
        read(story, "x", 120)
        accepted(story)

    def test_its_reader_died(self, story):
        """The key of a reader that was killed goes to another."""
        write(story, "x", 0)
        read(story, "x", 10)
        story.kill("reader.20", 20)
        read(story, "x", 700, p="reader.21")
        assert {"read: killed": 1} == accepted(story).redelivered

    @pytest.mark.parametrize("early_us", [0, 1])
    def test_written_for_a_moment(self, story, early_us):
        """I1: by the server's clock a key is read at its moment or later, whoever's is ahead."""
        moment = server_us(900)
        write(story, "x", 0, at_us=moment)
        read(story, "x", 10, srv=moment - early_us, due=moment - early_us)
        if early_us:
            caught(story, "I1", "before the time that was asked for")
        else:
            accepted(story)

    def test_unread_at_the_end(self, story):
        """A key that is not due may be pending."""
        write(story, "x", 0, delay_ms=900_000)
        story.ends(pending=["x"])
        accepted(story)

    def test_a_read_without_a_key(self, story):
        """A read that waited in vain says nothing."""
        story.call("reader.20", "read", 0, 100, "no", **RUNAT)
        accepted(story)

    def test_lost(self, story):
        """I2: written and never read."""
        write(story, "x", 0)
        caught(story, "I2", "never read")

    def test_lost_when_written_again(self, story):
        """I2: a read before the last write does not count for it."""
        write(story, "x", 0)
        read(story, "x", 10)
        write(story, "x", 20)
        assert 1 == caught(story, "I2", "never read").counts["lost"]

    def test_read_twice(self, story):
        """I4: written once, and read twice by readers that lived."""
        write(story, "x", 0)
        read(story, "x", 10)
        read(story, "x", 700, p="reader.21")
        caught(story, "I4", "more often")

    def test_read_again_though_it_was_moved(self, story):
        """I4: a later attempt is a redelivery, however often the key was written."""
        write(story, "x", 0)
        write(story, "x", 5)
        read(story, "x", 10, tok=1, att=1)
        read(story, "x", 700, p="reader.21", tok=2, att=2)
        caught(story, "I4", "more often")

    def test_one_claim_read_twice(self, story):
        """I5: each claim goes to one reader."""
        write(story, "x", 0)
        write(story, "x", 5)
        read(story, "x", 10, tok=1)
        read(story, "x", 20, p="reader.21", tok=1)
        caught(story, "I5", "read twice")

    def test_claimed_early(self, story):
        """I1: claimed before it was due, by the server."""
        write(story, "x", 0)
        read(story, "x", 10, due=server_us(5), srv=server_us(4))
        caught(story, "I1", "before it was due")

    def test_early(self, story):
        """I1: read before its time."""
        write(story, "x", 0, delay_ms=500)
        read(story, "x", 300)
        caught(story, "I1", "before any write")

    def test_unwritten(self, story):
        """I3: nobody wrote it, or its write was refused, or comes later."""
        read(story, "x", 10)
        write(story, "y", 0, ph="no")
        read(story, "y", 10)
        write(story, "z", 100)
        read(story, "z", 10)
        assert 3 == caught(story, "I3", "nobody had written").broken["I3"]
