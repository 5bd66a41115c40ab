"""The checker accepts what a correct library may do, however odd, and catches what it may not."""

from __future__ import annotations

import json

import pytest

from chaos import checker
from chaos.history import HistoryError
from chaos.story import (
    LEASE,
    NODE,
    OTHER,
    POSTER,
    SUPERVISOR,
    accepted,
    caught,
    server_us,
)
from chaos.table import as_json, as_text


class TestOrdinary:
    """What happens every day is accepted, and counted."""

    def test_posted_and_handled(self, story):
        """An event that was handled once is handled, and nothing else."""
        story.post("a", 1)
        story.run("a", 1, 10)
        counts = accepted(story).counts
        assert (1, 1, 0) == (counts["posted"], counts["handled"], counts["lost"])

    def test_failed_and_retried(self, story):
        """A failure explains the next run."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.run("a", 1, 80, p=OTHER, att=2)
        assert {"failed": 1} == accepted(story).redelivered

    def test_spent_and_dead(self, story):
        """Retries that are spent end in a dead letter, seen when it dies or in the end."""
        for id, n in (("a", 1), ("b", 2)):
            story.post(id, n, max_retries=1)
            story.run(id, n, 10 + n, ph="no")
            story.run(id, n, 80 + n, ph="no", att=2)
        story.say(NODE, 90, "dead", id="a", n=1, reason="failed", attempt=2)
        story.ends(dead=[{"id": "b", "n": 2, "reason": "failed", "attempt": 2}])
        assert 2 == accepted(story).counts["dead"]

    def test_the_other_ends(self, story):
        """Cancelled, superseded, expired, refused, unknown and pending are each told apart."""
        story.post("cancelled", 1, delay_us=9_000_000)
        story.cancel("cancelled", 10)
        story.post("superseded", 2, delay_us=9_000_000)
        story.post("superseded", 3, 10)
        story.run("superseded", 3, 20)
        story.post("expired", 4, delay_us=30_000, expires_us=20_000)
        story.say(NODE, 40, "expired", id="expired", n=4, reason="expired")
        story.post("refused", 5, ph="no")
        story.post("unknown", 6, ph="info")
        story.post("pending", 7, delay_us=900_000_000)
        story.ends(pending=["pending"])
        counts = accepted(story).counts
        names = ["cancelled", "superseded", "expired", "refused", "pending"]
        assert [1, 1, 1, 1, 1] == [counts[name] for name in names]
        assert 1 == counts["unknown outcomes"]

    def test_lateness_by_phase(self, story):
        """Lateness is counted by the phase in which the run began."""
        story.say(SUPERVISOR, 0, "phase", phase="healthy")
        story.say(SUPERVISOR, 100, "phase", phase="faulty")
        for n, at, late in ((1, 10, 1000), (2, 20, 3000), (3, 150, 50_000)):
            story.post(str(n), n)
            story.run(str(n), n, at, due=server_us(at - 1) - late)
        lateness = accepted(story).lateness
        assert (2, 1.0, 3.0) == (
            lateness["healthy"].n,
            lateness["healthy"].p50,
            lateness["healthy"].max,
        )
        assert 50.0 == lateness["faulty"].p99


class TestOddButLegal:
    """What looks wrong and is not."""

    def test_killed_in_a_handler(self, story):
        """A run without an end explains the next one: its process was killed."""
        story.post("a", 1)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 50)
        story.run("a", 1, 700, p=OTHER, att=2)
        assert {"killed": 1} == accepted(story).redelivered

    def test_killed_before_the_handler(self, story):
        """A claim that reached no handler shows as a missing attempt, and a kill explains it."""
        story.post("a", 1)
        story.say(NODE, 1, "node", phase="begin")
        story.kill(NODE, 10)
        story.run("a", 1, 700, p=OTHER, att=2)
        accepted(story)

    def test_killed_before_the_confirm(self, story):
        """A handler that returned may not have been confirmed when its node was killed."""
        story.post("a", 1)
        story.run("a", 1, 10)
        story.kill(NODE, 16)
        story.run("a", 1, 700, p=OTHER, att=2)
        assert {"killed": 1} == accepted(story).redelivered

    def test_an_unknown_post_appears_later(self, story):
        """A post of unknown outcome may be done after its call gave up, and counts then."""
        story.post("a", 1, took=300, ph="info")
        story.run("a", 1, 900)
        assert 1 == accepted(story).counts["recovered"]

    def test_an_unknown_post_supersedes(self, story):
        """It may also have replaced an event that is never seen, while a fault lasts."""
        story.fault("F22", 0, 2000)
        story.post("a", 1, took=300, ph="info")
        story.post("a", 2, 400)
        accepted(story)

    def test_reposted_in_flight(self, story):
        """The older run goes on beside the newer one, and its confirm is refused."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=100)
        story.post("a", 2, 20)
        story.run("a", 2, 30, p=OTHER)
        story.say(NODE, 112, "auto", id="a", n=1, tok=tok, accepted=False)
        accepted(story)

    def test_reposted_by_its_handler(self, story):
        """Posting its own id from a handler makes a generation of its own."""
        story.post("a", 1)
        story.run("a", 1, 10, took=50)
        fields = {"n": 2, "delay_us": 0, "max_retries": 3, "crc": 2, "if_exists": "replace"}
        story.call(NODE, "post", 20, 22, id="a", **fields)
        story.run("a", 2, 25, p=OTHER)
        assert 2 == accepted(story).counts["handled"]

    def test_told_late_that_it_was_confirmed(self, story):
        """The hand hears of its confirm when a newer generation runs already."""
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.post("a", 2, 20)
        story.run("a", 2, 30, p=OTHER)
        story.say(NODE, 40, "auto", id="a", n=1, tok=tok, accepted=True, result="DONE")
        accepted(story)

    def test_a_failure_that_was_told(self, story):
        """A hand that fails its event asks for a retry; what that was answered is recorded."""
        story.post("a", 1, max_retries=1)
        tok = story.run("a", 1, 10, ph="no")
        story.word("retry", 16, ("a", 1, tok), result="DONE")
        tok = story.run("a", 1, 80, ph="no", att=2)
        story.word("retry", 86, ("a", 1, tok), result="DEAD")
        story.say(NODE, 90, "dead", id="a", n=1, reason="failed", att=2)
        assert {"failed": 1} == accepted(story).redelivered

    def test_a_post_whose_id_nobody_knows(self, story):
        """The poster was killed in a call that was to make an id; its event appears."""
        story.call(POSTER, "post", 0, None, n=1, delay_us=0, max_retries=3, crc=1)
        story.kill(POSTER, 5)
        story.run("made", 1, 10)
        assert 1 == accepted(story).counts["recovered"]

    def test_a_late_confirm_counts(self, story):
        """A confirm after the lease's end counts until somebody else has claimed."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=2 * LEASE)
        story.word("confirm", 1000, ("a", 1, tok))
        accepted(story)

    def test_claimed_again_under_the_same_token(self, story):
        """A turn whose reply was lost is given again: the token is older than the claim."""
        story.post("a", 1)
        story.run("a", 1, 300, tok=server_us(5), due=server_us(1))
        accepted(story)

    def test_paused_past_its_lease(self, story):
        """A node that was stopped runs on beside the one that took its event."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=1500)
        story.fault("F52", 20, 1490, target="node-1")
        story.run("a", 1, 700, p=OTHER, att=2)
        story.say(NODE, 1515, "auto", id="a", n=1, tok=tok, accepted=False)
        assert {"paused": 1} == accepted(story).redelivered

    def test_a_stale_claim_begins_after_a_cancel(self, story):
        """A node stopped between claim and handler may begin after the event was cancelled."""
        story.post("a", 1)
        story.fault("F52", 5, 2000, target="node-1")
        story.run("a", 1, 700, p=OTHER, att=2, ph="no")
        story.cancel("a", 720)
        story.run("a", 1, 2010, tok=server_us(4), srv=server_us(4), due=server_us(1))
        accepted(story)

    def test_a_starved_machine(self, story):
        """A stall that a process noticed explains a lease that ran out."""
        story.post("a", 1)
        story.run("a", 1, 10, took=1000)
        story.say(NODE, 800, "stall", ms=700)
        story.run("a", 1, 800, p=OTHER, att=2)
        assert {"stalled": 1} == accepted(story).redelivered

    def test_longer_than_max_run(self, story):
        """A handler that overran ``max_run`` is no longer renewed."""
        story.say(NODE, 0, "node", phase="begin", max_run_ms=300)
        story.post("a", 1)
        story.run("a", 1, 10, took=5000)
        story.run("a", 1, 1000, p=OTHER, att=2)
        assert {"overran": 1} == accepted(story).redelivered

    def test_cancelled_in_flight(self, story):
        """What was in flight when it was cancelled may end as it likes; nothing follows."""
        story.post("a", 1)
        story.run("a", 1, 10, took=50, ph="no")
        story.cancel("a", 20, "IN_FLIGHT")
        assert 1 == accepted(story).counts["cancelled"]

    def test_an_unknown_cancel(self, story):
        """A cancel of unknown outcome explains an event that is never seen, and one that is."""
        for n, id in enumerate("ab"):
            story.post(id, n, delay_us=500_000)
            story.cancel(id, 10, None, took=300)
        story.run("b", 1, 600)
        accepted(story)

    def test_concurrent_posts_have_no_order(self, story):
        """Of two posts that overlapped either may have been the last."""
        story.post("a", 1, 0, took=50)
        story.post("a", 2, 10, took=5)
        story.run("a", 1, 60)
        accepted(story)

    def test_kept_instead(self, story):
        """A post that keeps what is pending may store nothing."""
        story.post("a", 1, delay_us=30_000)
        story.post("a", 2, 10, if_exists="keep")
        story.run("a", 1, 40)
        assert 1 == accepted(story).counts["superseded"]

    def test_kept_and_said_so(self, story):
        """A post that said it was not stored has no say in what becomes of the other."""
        story.post("a", 1, delay_us=30_000)
        story.post("a", 2, 10, if_exists="keep", stored=False)
        story.run("a", 1, 40)
        assert 1 == accepted(story).counts["superseded"]

    def test_superseded_by_an_earlier_one_in_flight(self, story):
        """A conditional post supersedes an event in flight, and that one's confirm is refused."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=100)
        story.post("a", 2, 20, if_exists="earliest", delay_us=10_000, stored=True)
        story.word("confirm", 50, ("a", 1, tok), accepted=False)
        story.run("a", 2, 60, p=OTHER)
        accepted(story)

    def test_moved_to_an_earlier_time(self, story):
        """A rescheduled event is due by its last move."""
        story.post("a", 1, delay_us=900_000)
        said = {"moved": True}
        story.call(POSTER, "reschedule", 10, 12, said=said, id="a", delay_us=50_000)
        story.run("a", 1, 70)
        accepted(story)

    def test_claimed_ahead(self, story):
        """An event whose id the library has made is claimed ahead, and kept until it is due."""
        story.post("a", 1, delay_us=50_000, minted=True)
        story.ahead("a", 1, 53, due=51, by=20)
        story.post("b", 2)
        story.run("b", 2, 60)
        verdict = accepted(story)
        assert 1 == verdict.counts["claimed ahead"]

    def test_another_attempt_is_claimed_ahead(self, story):
        """So is what was given back, and has to wait for its next attempt."""
        story.post("a", 1, minted=True)
        story.run("a", 1, 10, ph="no")
        story.ahead("a", 1, 101, due=100, by=20, p=OTHER, att=2)
        assert {"failed": 1} == accepted(story).redelivered

    def test_the_lease_of_what_was_claimed_ahead(self, story):
        """It begins with the claim, and not when the event is due."""
        story.post("a", 1, delay_us=50_000, minted=True)
        story.ahead("a", 1, 52, due=51, by=19, took=None)
        story.kill(NODE, 60)
        story.run("a", 1, 32 + LEASE + 2, p=OTHER, att=2)
        assert {"killed": 1} == accepted(story).redelivered

    def test_late_by_what_its_node_says(self, story):
        """What was claimed ahead is late from when it was due until a hand had it."""
        story.post("a", 1, delay_us=50_000, minted=True)
        story.ahead("a", 1, 53, due=51, by=20, late_us=1_500)
        assert 1.5 == accepted(story).lateness["healthy"].max

    def test_given_again_after_the_clock_was_put_back(self, story):
        """The second answer tells a time before it was due; the token tells when it was claimed."""
        story.post("a", 1, delay_us=900_000)
        story.fault("F50", 910, 2_000)
        story.run("a", 1, 1_000, due=server_us(901), tok=server_us(902), srv=server_us(-800))
        accepted(story)

    def test_kept_while_the_clock_is_put_back(self, story):
        """It begins when its node has waited, whatever the server's clock shows by then."""
        story.post("a", 1, delay_us=50_000, minted=True)
        story.fault("F50", 60, 9_000)
        story.call(SUPERVISOR, "clock", 1_300, 1_300.1, said={"srv": server_us(-500)})
        story.ahead("a", 1, 1_500, due=51, by=15)
        accepted(story)

    def test_a_batch_has_one_k(self, story):
        """The items of a burst share a ``k``, and each has its end."""
        fields = {"delay_us": 0, "max_retries": 3, "if_exists": "replace", "k": 9_000}
        for n in range(3):
            story.say(POSTER, 0, "post", "inv", id=f"b{n}", n=n, crc=n, **fields)
        for n in range(3):
            story.say(POSTER, 9, "post", "ok", id=f"b{n}", n=n, k=9_000)
            story.run(f"b{n}", n, 20 + n)
        assert 3 == accepted(story).counts["handled"]

    def test_the_server_clock_is_stepped(self, story):
        """A clock set forward ends leases and delays sooner than the monotonic one."""
        story.fault("F49", 5, 2000)
        story.post("a", 1, delay_us=600_000)
        ahead = server_us(60_000)
        story.run("a", 1, 100, due=server_us(601), srv=ahead, tok=ahead)
        accepted(story)

    def test_a_clock_that_nobody_stepped(self, story):
        """A server's clock that jumps by itself is no proof of anything, and is told."""
        story.post("a", 1, delay_us=600_000)
        story.post("b", 2, 50)
        ahead = server_us(60_000)
        story.run("a", 1, 100, due=server_us(601), srv=ahead, tok=ahead)
        story.run("b", 2, 200)
        assert "distance" in accepted(story).notes[0]

    def test_the_server_clock_is_put_back_while_a_handler_runs(self, story):
        """What is left of a lease when it is renewed then ends at an earlier time than it had."""
        story.post("a", 1)
        story.fault("F50", 500, 600)
        story.run("a", 1, 10, took=2_390, ph="no")
        back = server_us(1_900 - 1_800)
        story.run("a", 1, 1_900, att=2, srv=back, due=back, tok=server_us(2_000))
        accepted(story)

    def test_revived(self, story):
        """A dead letter that was revived has its attempts anew."""
        story.post("a", 1, max_retries=0)
        story.run("a", 1, 10, ph="no")
        story.say(NODE, 20, "dead", id="a", n=1, reason="failed", attempt=1)
        story.call(POSTER, "revive", 30, 32, said={"revived": True}, id="a")
        story.run("a", 1, 40)
        accepted(story)


class TestEvents:
    """Each invariant of an event, broken in more than one way."""

    def test_early_by_the_server(self, story):
        """I1: claimed before it was due."""
        story.post("a", 1)
        story.run("a", 1, 10, due=server_us(500))
        caught(story, "I1", "before it was due")

    def test_a_named_event_claimed_ahead(self, story):
        """I1: what has a name of the user's is his to replace until it is due."""
        story.post("a", 1, delay_us=50_000)
        story.ahead("a", 1, 52, due=51, by=5)
        caught(story, "I1", "claimed before it was due")

    def test_a_named_event_posted_under_an_id_that_was_made(self, story):
        """I1: it is the last post that says whether the id was given."""
        story.post("a", 1, minted=True)
        story.run("a", 1, 10)
        story.post("a", 2, 20, delay_us=50_000)
        story.ahead("a", 2, 72, due=71, by=5)
        caught(story, "I1", "claimed before it was due")

    @pytest.mark.parametrize("more", [{"by": 20.001}, {"by": 5, "ahead_us": 0}])
    def test_claimed_too_far_ahead(self, story, more):
        """I1: no node claims further ahead than it was told to."""
        story.post("a", 1, delay_us=50_000, minted=True)
        story.ahead("a", 1, 52, due=51, **more)
        caught(story, "I1", "too far ahead")

    def test_begun_early_though_claimed_ahead_in_time(self, story):
        """I1: what was claimed ahead does not begin before it is due, by the server's clock."""
        story.post("a", 1, minted=True)
        story.ahead("a", 1, 50, due=54, by=15)
        caught(story, "I1", "before it was due by the server's clock")

    def test_claimed_ahead_of_the_end_of_a_lease(self, story):
        """I4: a lease that was renewed is over when it ends, and not a moment before."""
        story.post("a", 1, minted=True)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 500)
        story.ahead("a", 1, 1_001, due=1_000, by=10, p=OTHER, att=2)
        caught(story, "I4", "ahead of the end of the lease")

    def test_expired_and_claimed_ahead(self, story):
        """I3: what will have expired when it is due is not handed out at all."""
        story.post("a", 1, delay_us=100_000, expires_us=85_000, minted=True)
        story.ahead("a", 1, 102, due=101, by=20)
        caught(story, "I3", "expired")

    def test_early_by_the_host(self, story):
        """I1: the handler began before the delay was over, whatever the record says of due."""
        story.post("a", 1, delay_us=500_000)
        story.run("a", 1, 300)
        assert 1 == caught(story, "I1", "before the delay").counts["early"]

    def test_early_though_the_clock_was_stepped_before(self, story):
        """I1: a step of the server's clock excuses what is under way, and not all that follows."""
        story.fault("F49", -9000, -8000)
        story.post("a", 1, delay_us=500_000)
        story.run("a", 1, 300)
        caught(story, "I1", "before the delay")

    def test_early_after_a_move(self, story):
        """I1: a move to later counts from its answer on."""
        story.post("a", 1, delay_us=100_000)
        said = {"moved": True}
        story.call(POSTER, "reschedule", 10, 12, said=said, id="a", delay_us=500_000)
        story.run("a", 1, 110)
        caught(story, "I1", "before the delay")

    def test_expired_early(self, story):
        """I1: an event does not expire before its time."""
        story.post("a", 1, expires_us=500_000)
        story.say(NODE, 100, "expired", id="a", n=1, reason="expired")
        caught(story, "I1", "expired too early")

    def test_lost_beside_a_post_that_was_not_stored(self, story):
        """I2: a post that said it was not stored supersedes nothing."""
        story.post("a", 1, delay_us=30_000)
        story.post("a", 2, 10, if_exists="keep", stored=False)
        assert 1 == caught(story, "I2").counts["lost"]

    @pytest.mark.parametrize("policy", ["earliest", "latest"])
    def test_dropped_for_an_event_in_flight(self, story, policy):
        """I2: a confirm ended the event and, with it, a post that was compared with it."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=100)
        story.post("a", 2, 20, if_exists=policy, delay_us=10_000, stored=False)
        story.word("confirm", 50, ("a", 1, tok))
        caught(story, "I2", "dropped for an event in flight")

    def test_kept_an_event_that_cannot_exist(self, story):
        """I2: a post that found its id free, and was dropped all the same."""
        story.post("a", 1, if_exists="keep", stored=False)
        caught(story, "I2", "cannot exist")

    def test_not_stored_and_handed_out(self, story):
        """I2: a post said that it was not stored, and its poster posts again."""
        story.post("a", 1, delay_us=30_000)
        story.post("a", 2, 10, if_exists="keep", stored=False)
        story.run("a", 2, 40)
        caught(story, "I2", "it was")

    def test_lost(self, story):
        """I2: acknowledged, and nothing came of it."""
        story.post("a", 1)
        assert 1 == caught(story, "I2").counts["lost"]

    def test_lost_in_a_handler(self, story):
        """I2: started by a process that died, and never again."""
        story.post("a", 1)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 20)
        caught(story, "I2", "started 1 times")

    def test_lost_after_a_failure(self, story):
        """I2: failed, with retries left, and never again."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        caught(story, "I2")

    def test_lost_at_most_once(self, story):
        """I2: also what is started at most once ends somewhere."""
        story.post("a", 1, max_retries=0)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 20)
        caught(story, "I2")

    def test_lost_though_an_older_one_ran(self, story):
        """I2: a run of the older generation is none of the newer."""
        story.post("a", 1)
        story.run("a", 1, 10)
        story.post("a", 2, 50)
        caught(story, "I2", "n=2")

    def test_lost_though_an_earlier_call_was_unknown(self, story):
        """I2: an unknown call is over when all has been well for a while after it."""
        story.post("a", 1, took=300, ph="info")
        story.cancel("a", 400, None, took=300)
        story.post("a", 2, 30_000)
        caught(story, "I2", "n=2")

    def test_lost_after_a_retry(self, story):
        """I2: a handler that asked for a retry, and returned, has not handled its event."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=20)
        story.word("retry", 20, ("a", 1, tok))
        caught(story, "I2")

    def test_lost_when_refused(self, story):
        """I2: a run whose confirm was refused has not handled its event either."""
        story.post("a", 1)
        story.fault("F52", 5, 900, target="node-1")
        tok = story.run("a", 1, 10, took=900)
        story.say(NODE, 920, "auto", id="a", n=1, tok=tok, accepted=False)
        caught(story, "I2")

    def test_unexpected(self, story):
        """I3: what nobody posted, or was refused, or is not posted yet, is not handed out."""
        story.run("nobody", 1, 10)
        story.post("refused", 2, ph="no")
        story.run("refused", 2, 20)
        story.post("later", 3, 100)
        story.run("later", 3, 50)
        story.post("other", 4)
        story.run("other", 99, 10)
        verdict = caught(story, "I3")
        assert {"nobody", "refused", "later", "other"} == {
            v.id for v in verdict.violations if v.invariant == "I3"
        }

    def test_unexpected_in_the_end(self, story):
        """I3: nothing is pending or dead that nobody made."""
        story.ends(pending=["ghost"], dead=[{"id": "zombie", "n": 5, "reason": "failed"}])
        story.post("a", 1)
        story.run("a", 1, 10)
        verdict = caught(story, "I3", "nobody had made it")
        assert 2 == verdict.broken["I3"]

    def test_expired_and_handed_out(self, story):
        """I3: an event that has expired is not handed out any more."""
        story.post("a", 1, expires_us=100_000)
        story.run("a", 1, 300)
        caught(story, "I3", "expired")

    def test_handed_out_again_for_no_reason(self, story):
        """I4: a second run that nothing explains."""
        story.post("a", 1)
        story.run("a", 1, 10)
        story.run("a", 1, 700, p=OTHER, att=2)
        verdict = caught(story, "I4", "nothing explains why")
        assert {"unexplained": 1} == verdict.redelivered

    def test_two_leases_overlap(self, story):
        """I4: claimed before the lease could have run out, even though its node was killed."""
        story.post("a", 1)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 20)
        story.run("a", 1, 300, p=OTHER, att=2)
        caught(story, "I4", "before the lease before it")

    def test_a_fault_elsewhere_explains_nothing(self, story):
        """I4: neither the other node's trouble, nor one long ago, nor one that harms no lease."""
        story.fault("F52", 20, 400, target="node-2")
        story.fault("F22", -30_000, -29_000)
        story.fault("F28", 20, 400)
        story.post("a", 1)
        story.run("a", 1, 10)
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I4", "nothing explains why")

    def test_an_attempt_is_missing(self, story):
        """I4: an attempt that reached no handler, and nothing went wrong."""
        story.post("a", 1)
        story.run("a", 1, 10, att=2)
        caught(story, "I4", "reached no handler")

    def test_one_claim_started_twice(self, story):
        """I5: each claim is started once."""
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.run("a", 1, 30, p=OTHER, tok=tok)
        caught(story, "I5", "started twice")

    @pytest.mark.parametrize("op", ["confirm", "retry", "extend"])
    def test_a_stale_holder_counts(self, story, op):
        """I5: the word of a holder counts only until the next claim."""
        story.post("a", 1)
        story.fault("F52", 20, 700, target="node-1")
        tok = story.run("a", 1, 10, took=1500)
        story.run("a", 1, 700, p=OTHER, att=2, took=200)
        story.word(op, 800, ("a", 1, tok))
        caught(story, "I5", "after a newer claim")

    def test_a_superseded_holder_counts(self, story):
        """I5: neither does it count when the newer claim is of a newer generation."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=200)
        story.post("a", 2, 20)
        story.run("a", 2, 30, p=OTHER)
        story.word("confirm", 100, ("a", 1, tok))
        caught(story, "I5", "after a newer claim")

    def test_refused_for_no_reason(self, story):
        """I5: the only holder is believed."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=100)
        story.word("confirm", 50, ("a", 1, tok), accepted=False)
        story.post("b", 2)
        tok = story.run("b", 2, 10)
        story.say(NODE, 20, "auto", id="b", n=2, tok=tok, accepted=False)
        verdict = caught(story, "I5", "for no reason")
        assert 2 == verdict.broken["I5"]

    def test_a_word_about_nothing(self, story):
        """I5: there is no word about a claim that nobody had."""
        story.post("a", 1)
        story.run("a", 1, 10)
        story.word("confirm", 12, ("a", 1, 12345))
        caught(story, "I5", "nobody had")

    @pytest.mark.parametrize("outcome", ["CANCELLED", "IN_FLIGHT", "NOT_FOUND"])
    def test_claimed_after_a_cancel(self, story, outcome):
        """I6: whatever a cancel answered, what was there before it does not start after it."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.cancel("a", 50, outcome)
        story.run("a", 1, 100, att=2)
        caught(story, "I6", outcome)

    def test_cancelled_and_dead(self, story):
        """I6: what was cancelled does not end among the dead letters."""
        story.post("a", 1, delay_us=500_000)
        story.cancel("a", 50)
        story.ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 4}])
        caught(story, "I6", "dead letter")

    def test_confirmed_and_claimed(self, story):
        """I7: what was confirmed is not handed out again, whatever went wrong besides."""
        story.fault("F22", 20, 600)
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.word("confirm", 12, ("a", 1, tok))
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I7", "claimed once more")

    def test_confirmed_by_the_hand_and_claimed(self, story):
        """I7: also where the hand was told so, and not the handler."""
        story.fault("F22", 20, 600)
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.say(NODE, 17, "auto", id="a", n=1, tok=tok, accepted=True, result="DONE")
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I7", "claimed once more")

    def test_confirmed_twice(self, story):
        """I7: two holders are not both believed."""
        story.fault("F52", 20, 700, target="node-1")
        story.post("a", 1)
        first = story.run("a", 1, 10, took=1500)
        second = story.run("a", 1, 700, p=OTHER, att=2, took=500)
        story.word("confirm", 690, ("a", 1, first))
        story.word("confirm", 800, ("a", 1, second), p=OTHER)
        caught(story, "I7", "two holders")

    def test_confirmed_and_given_back(self, story):
        """I7: one claim is settled in one way."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=50)
        story.word("confirm", 20, ("a", 1, tok))
        story.word("retry", 30, ("a", 1, tok))
        caught(story, "I7", "two ways")

    def test_confirmed_and_dead(self, story):
        """I7: what was confirmed is no dead letter."""
        story.post("a", 1, max_retries=0)
        tok = story.run("a", 1, 10)
        story.word("confirm", 12, ("a", 1, tok))
        story.ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 1}])
        caught(story, "I7", "dead letter")

    def test_too_many_starts(self, story):
        """I8: no more starts than retries and one."""
        story.post("a", 1, max_retries=1)
        for i in range(3):
            story.run("a", 1, 10 + 50 * i, ph="no" if i < 2 else "ok", att=i + 1)
        caught(story, "I8", "started 3 times")

    def test_attempts_that_do_not_grow(self, story):
        """I8: each start is counted."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.run("a", 1, 80, att=1)
        caught(story, "I8", "do not grow")

    def test_dead_too_soon(self, story):
        """I8: dead only when the retries are spent."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.ends(dead=[{"id": "a", "n": 1, "reason": "failed", "attempt": 1}])
        caught(story, "I8", "after attempt 1")

    @pytest.mark.parametrize("result", ["DEAD", "CANCELLED"])
    def test_claimed_after_its_end(self, story, result):
        """I8: what a failure came to is final."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, ph="no")
        story.word("retry", 16, ("a", 1, tok), result=result)
        story.run("a", 1, 80, att=2)
        caught(story, "I8", f"came to {result}")

    def test_a_failure_that_was_refused_explains_nothing(self, story):
        """I4: a holder whose retry was refused has not given it back."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, ph="no")
        story.word("retry", 16, ("a", 1, tok), accepted=False)
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I4", "nothing explains why")

    def test_claimed_after_its_death(self, story):
        """I8: the dead are not handed out."""
        story.post("a", 1, max_retries=1)
        story.run("a", 1, 10, ph="no")
        story.say(NODE, 50, "dead", id="a", n=1, reason="failed", attempt=2)
        story.run("a", 1, 100, att=2)
        caught(story, "I8", "after its death")

    def test_at_most_once(self, story):
        """I9: with no retries there is no second start, whatever happens to the first."""
        story.post("a", 1, max_retries=0)
        story.run("a", 1, 10, took=None)
        story.kill(NODE, 20)
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I9", "max_retries=0")

    def test_the_older_after_the_newer_was_stored(self, story):
        """I10: after the answer to a post nothing older starts."""
        story.post("a", 1, delay_us=50_000)
        story.post("a", 2, 10, delay_us=900_000)
        story.run("a", 1, 60)
        story.run("a", 2, 920)
        caught(story, "I10", "newer one was stored")

    def test_the_older_under_a_newer_token(self, story):
        """I10: nor after the newer one was claimed, though its post was never answered."""
        story.fault("F49", 0, 5000)
        story.post("a", 1)
        story.post("a", 2, 10, took=None)
        story.run("a", 2, 20)
        story.run("a", 1, 21, p=OTHER)
        caught(story, "I10", "claimed after a newer")

    def test_generations_take_turns(self, story):
        """I10: a generation that gave way does not come back, whatever their order was."""
        story.post("a", 1, 0, took=50)
        story.post("a", 2, 1, took=50)
        story.run("a", 1, 60, ph="no")
        story.run("a", 2, 70, ph="no")
        story.run("a", 1, 80, att=2)
        caught(story, "I10", "came back")

    def test_another_payload(self, story):
        """I10: what is delivered is what was posted, at each attempt."""
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.run("a", 1, 80, att=2, crc=999)
        caught(story, "I10", "another payload")

    def test_unsound(self, story):
        """I12: the state at the end is sound, and there is one."""
        story.post("a", 1)
        story.run("a", 1, 10)
        story.ends(sound=False)
        caught(story, "I12", "contradict")

    def test_no_end(self, story, tmp_path):
        """I12: a history that stops in the middle shows nothing."""
        story.post("a", 1)
        folder = story.write(final=False)
        assert {"I12": 1} == checker.check(folder).broken
        assert {} == checker.check(folder, partial=True).broken

    def test_pending_and_cannot_be(self, story):
        """I12: what was confirmed or cancelled is not pending."""
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.word("confirm", 12, ("a", 1, tok))
        story.post("b", 2, delay_us=900_000)
        story.cancel("b", 10)
        story.ends(pending=["a", "b"])
        assert 2 == caught(story, "I12", "pending at the end").broken["I12"]

    def test_handlers_overlap(self, story):
        """I13: a second handler beside the first, with nothing wrong."""
        story.post("a", 1)
        story.run("a", 1, 10, took=2000)
        story.run("a", 1, 700, p=OTHER, att=2)
        caught(story, "I13", "while its handler ran")

    def test_a_short_extension_ends_no_lease(self, story):
        """I4: a handler that asks for less than is left of its lease keeps what is left."""
        story.post("a", 1)
        tok = story.run("a", 1, 10, took=2000)
        story.word("extend", 20, ("a", 1, tok), ms=100)
        story.run("a", 1, 200, p=OTHER, att=2)
        caught(story, "I4", "before the lease before it could have run out")

    def test_a_short_extension_after_the_handler_ends_the_lease_sooner(self, story):
        """I4: once the handler has returned the lease is as long as its holder says."""
        story.post("a", 1)
        tok = story.run("a", 1, 10)
        story.word("extend", 20, ("a", 1, tok), ms=100)
        story.run("a", 1, 200, p=OTHER, att=2)
        assert "I4" not in [v.invariant for v in story.check().violations if "before" in v.text]

    def left_leased(self, story, **leave):
        """A node claims, leaves, and another has the event when the lease of the claim ends."""
        story.post("a", 1)
        story.claim("a", 1, 100)
        story.leave(**{"begin": 90, "end": 110} | leave)
        story.run("a", 1, 6_105, p=OTHER, att=2, due=server_us(6_100))

    def test_left_leased(self, story):
        """I17: what a node had claimed when it left is not late by its lease."""
        self.left_leased(story)
        caught(story, "I17", "6000 ms late")

    def test_left_leased_until_the_last_renewal(self, story):
        """I17: nor by a lease that was renewed before the node had gone."""
        story.post("a", 1)
        story.claim("a", 1, 100)
        story.leave(2_000, 2_200)
        story.run("a", 1, 8_110, p=OTHER, att=2, due=server_us(8_100))
        caught(story, "I17", "ms late")

    def test_left_to_die(self, story):
        """I17: nor a dead letter that was never started."""
        story.post("a", 1, max_retries=0)
        story.claim("a", 1, 100)
        story.leave(90, 110)
        error = "the lease of node incarnation-1 ran out"
        story.ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 1, "error": error}])
        caught(story, "I17", "never started")

    @pytest.mark.parametrize("leave", [{"timeout": 300}, {"end": None}, {"end": 95}])
    def test_left_leased_for_a_reason(self, story, leave):
        """A leave that gives up, or has not ended, and one before the claim, promise nothing."""
        self.left_leased(story, **leave)
        assert "I17" not in story.check().broken

    def test_left_leased_in_an_outage(self, story):
        """A node that cannot reach the server while it leaves can release nothing."""
        story.fault("F22", 95, 105)
        self.left_leased(story)
        assert "I17" not in story.check().broken

    def test_released_by_a_node_that_left(self, story):
        """What is released starts elsewhere, uncharged; if that node dies, it is charged to it."""
        for n, id in enumerate(("started", "released", "died elsewhere"), 1):
            story.post(id, n)
            tok = story.claim(id, n, 100)
        story.run("started", 1, 101, tok=tok)
        story.leave(90, 110)
        story.run("released", 2, 120, p=OTHER)
        story.kill("node-3.13", 300)
        story.say("node-3.13", 200, "node", phase="begin")
        story.run("died elsewhere", 3, 905, p=OTHER, att=2, due=server_us(900))
        assert 2 == accepted(story).counts["left unstarted"]

    def test_a_call_over_its_deadline(self, story):
        """I16: a call comes back within its deadline, unless its process was stopped."""
        story.say(POSTER, 0, "node", phase="begin", timeout_ms=300)
        story.post("a", 1, 10, took=350)
        story.post("b", 2, 1000, took=500)
        story.post("c", 3, 5000, took=900)
        story.fault("F52", 5100, 5700, target="poster")
        for n, id in enumerate("abc", 1):
            story.run(id, n, 6000 + n)
        verdict = caught(story, "I16", "took 500 ms")
        assert {"I16": 1} == verdict.broken

    def test_a_call_that_never_returned(self, story):
        """I16: a process that left by itself had no call under way."""
        story.post("a", 1, took=None)
        story.say(POSTER, 9000, "node", phase="end")
        caught(story, "I16", "had not returned")


class TestRollback:
    """Where acknowledged writes were lost on purpose, what that explains is excused, no more."""

    def rolled_back(self, story):
        story.fault("F42", 1000, 1500)

    def test_lost_in_the_window(self, story):
        """Posts that were acknowledged shortly before may be lost, and are counted as that."""
        self.rolled_back(story)
        story.post("a", 1, 900)
        verdict = accepted(story, rollback=True)
        assert {"I2": 1} == verdict.excused
        assert 1 == verdict.counts["lost"]

    def test_not_when_it_is_not_expected(self, story):
        """The same history is broken where nothing was to be lost."""
        self.rolled_back(story)
        story.post("a", 1, 900)
        caught(story, "I2")

    def test_lost_long_before(self, story):
        """What was acknowledged long before is kept by any rollback."""
        self.rolled_back(story)
        story.post("a", 1, -30_000)
        caught(story, "I2", rollback=True)

    def test_come_back(self, story):
        """A cancel, a confirm and a newer post of the window may be undone."""
        self.rolled_back(story)
        for n, id in enumerate(("cancelled", "confirmed", "replaced"), 1):
            story.post(id, n, -30_000, delay_us=30_900_000)
        story.cancel("cancelled", 950)
        story.post("replaced", 4, 950, delay_us=900_000_000)
        tok = story.run("confirmed", 2, 960)
        story.word("confirm", 962, ("confirmed", 2, tok))
        story.run("cancelled", 1, 1600)
        story.run("confirmed", 2, 1600, p=OTHER)
        story.run("replaced", 3, 1610)
        verdict = accepted(story, rollback=True)
        assert {"I6", "I7", "I8", "I10", "I2", "I4"} >= set(verdict.excused)

    def test_a_wipe_takes_all(self, story):
        """What was there before a FLUSHALL is gone, however old."""
        story.fault("F21", 1000, 1001)
        story.post("a", 1, -30_000)
        accepted(story, rollback=True)

    def test_early_is_early(self, story):
        """No rollback makes an event early."""
        self.rolled_back(story)
        story.post("a", 1, 5000, delay_us=900_000)
        story.run("a", 1, 5200)
        caught(story, "I1", rollback=True)


class TestReport:
    """What a person sees."""

    @pytest.fixture
    def broken(self, story):
        story.say(SUPERVISOR, 0, "phase", phase="faulty")
        story.fault("F22", 0, 100)
        story.say(SUPERVISOR, 200, "recovered", fault="F22", ms=350)
        story.post("a", 1)
        story.run("a", 1, 10, ph="no")
        story.run("a", 1, 80, att=2)
        story.post("gone", 2, 5000)
        return story

    def test_the_table(self, broken):
        """The table is aligned, and names the figures, faults and broken promises."""
        text = as_text(broken.check())
        lines = [line.split() for line in text.splitlines()]
        for expected in (["lost", "1"], ["failed", "1"], ["unexplained", "0"], ["early", "0"]):
            assert expected in lines
        assert ["F22", "1", "1", "350.0", "350.0", "350.0"] in lines
        assert ["I2", "nothing", "lost", "1"] in lines
        ends = {len(line) for line in text.splitlines() if line.startswith(("posted", "lost"))}
        assert 1 == len(ends)

    def test_the_figures(self, broken):
        """As JSON they can be kept and compared."""
        figures = json.loads(as_json(broken.check()))
        assert figures["ok"] is False
        assert (2, 1) == (figures["counts"]["posted"], figures["counts"]["lost"])
        assert {"I2": 1} == figures["violations"]
        assert 350 == figures["recovery_ms"]["F22"]["p50"]

    def test_the_proof(self, broken):
        """A violation shows the records that prove it."""
        text = str(broken.check())
        assert "I2 (nothing lost): 'gone'" in text
        assert "poster.10 post ok 'gone' n=2" in text

    def test_many_of_a_kind(self, story):
        """Of many violations a few are shown, and all are counted."""
        for n in range(100):
            story.post(str(n), n)
        verdict = story.check()
        assert 100 == verdict.broken["I2"]
        assert len(verdict.violations) < 50
        assert "I2: 100 violations in all" in str(verdict)

    def test_the_command_line(self, broken, capsys):
        """A kept history can be checked again, and the exit code says how it went."""
        folder = broken.write()
        assert 1 == checker.main([str(folder)])
        out, err = capsys.readouterr()
        assert "posted" in out
        assert "nothing lost" in err
        assert 1 == checker.main([str(folder), "--json"])
        assert 1 == json.loads(capsys.readouterr().out)["counts"]["lost"]

    def test_two_posts_of_one_serial(self, story):
        """A history that contradicts itself is refused, and not judged."""
        story.post("a", 1)
        story.post("a", 1, 20)
        with pytest.raises(HistoryError):
            story.check()
