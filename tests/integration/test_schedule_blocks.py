"""Blocks of schedules: declared together, under the version of their owner."""

from __future__ import annotations

import gc
import threading

import pytest
from logged import kept
from peers import Now, definition

from dtimer import Declared, OptionError, UsageError, log
from dtimer.model.schedules import Declaration

START = Now().us
DAY_MS = 86_400_000


def declare(store, version, *specs, owner="billing"):
    """Declare schedules together; a text stands for a schedule of that name."""
    made = tuple(definition(spec) if isinstance(spec, str) else spec for spec in specs)
    return store.schedules.declare_together(Declaration(made, owner, version))


def names(store):
    return store.schedules.ids()


class TestVersions:
    """The version of the owner decides what a block may do."""

    def test_a_block_declares_all_of_its_schedules(self, store):
        """A program with many schedules declares them with one script."""
        done = declare(store, "1", "a", definition("b", cron="@daily"), definition("c", every=50))
        assert ([Declared.NEW] * 3, [], None) == (done.outcomes, done.removed, done.lower_than)
        assert ["a", "b", "c"] == names(store)
        assert ["billing"] * 3 == [schedule.owner for schedule in store.schedules.all()]

    def test_a_higher_version_removes_what_it_does_not_declare(self, store):
        """A line that was deleted from the program ends its schedule."""
        declare(store, "1", "a", "b")
        done = declare(store, "2", "b", "c")
        assert ([Declared.SAME, Declared.NEW], ["a"]) == (done.outcomes, done.removed)
        assert ["b", "c"] == names(store)
        assert [] == declare(store, "3", "b", "c").removed

    def test_the_same_version_adds_and_changes(self, store):
        """Two parts of a program may have different blocks, and neither undoes the other."""
        declare(store, "1", "a", "b")
        done = declare(store, "1", definition("b", every=5_000), "c")
        assert ([Declared.CHANGED, Declared.NEW], []) == (done.outcomes, done.removed)
        assert ["a", "b", "c"] == names(store)

    def test_what_the_same_version_added_is_removed_by_a_higher_one(self, store):
        """The record has the schedules of all blocks of the version."""
        declare(store, "1", "a")
        declare(store, "1", "b")
        assert ["a", "b"] == declare(store, "2", "c").removed

    @pytest.mark.parametrize("block", [["a"], ["a", "new"], []])
    def test_a_lower_version_changes_nothing(self, store, block):
        """A process of the old version that starts during a rolling update undoes nothing."""
        declare(store, "1.9", "a", "b")
        declare(store, "1.10", "b")
        before = store.schedules.get("b")
        done = declare(store, "1.9", *block)
        assert ("1.10", [], []) == (done.lower_than, done.outcomes, done.removed)
        assert (["b"], before) == (names(store), store.schedules.get("b"))

    @pytest.mark.parametrize(
        ("lower", "higher"), [("1", "1.1"), ("1.9.9", "1.10"), ("2026.11.30", "2026.12.1")]
    )
    def test_versions_are_compared_by_their_numbers(self, store, lower, higher):
        """As texts, 1.10 would be lower than 1.9."""
        declare(store, lower, "a")
        assert declare(store, higher, "a").lower_than is None
        assert higher == declare(store, lower, "a").lower_than

    def test_a_missing_number_is_zero(self, store):
        """2 and 2.0 are the same version."""
        declare(store, "2", "a")
        assert (None, []) == declare(store, "2.0", "b")[2:0:-1]
        assert ["a", "b"] == names(store)

    def test_owners_are_independent(self, store):
        """A program removes only its own schedules."""
        declare(store, "1", "a", owner="billing")
        declare(store, "9", "b", owner="mail")
        store.schedules.declare(definition("c"))
        assert ["a"] == declare(store, "2", "d", owner="billing").removed
        assert ["b", "c", "d"] == names(store)

    def test_a_schedule_belongs_to_the_owner_that_declared_it_last(self, store):
        """If a schedule moves to another program, the first one does not remove it."""
        declare(store, "1", "a", owner="billing")
        assert [Declared.SAME] == declare(store, "1", "a", owner="mail").outcomes
        assert [] == declare(store, "2", "b", owner="billing").removed
        assert ["a"] == declare(store, "2", "b", owner="mail").removed

    def test_a_declaration_without_a_block_keeps_the_owner(self, store):
        """A change by hand does not hide the schedule from the next release."""
        declare(store, "1", "a")
        assert Declared.CHANGED is store.schedules.declare(definition("a", every=5_000))
        assert ["a"] == declare(store, "2", "b").removed

    def test_a_schedule_that_was_removed_by_hand_is_not_reported(self, store):
        """The record may name a schedule that no longer exists."""
        declare(store, "1", "a", "b")
        store.schedules.remove("a")
        assert ["b"] == declare(store, "2", "c").removed

    def test_declaring_the_same_again_stores_nothing(self, store, client):
        """Hundreds of processes declare the same block at each start."""
        declare(store, "1", "a", "b")
        before = [client.hgetall(key) for key in (store.keys.beats, store.keys.sys)]
        declare(store, "1", "b", "a")
        assert before == [client.hgetall(key) for key in (store.keys.beats, store.keys.sys)]

    def test_a_clear_forgets_the_owners(self, store):
        """After it, any version may declare, and no schedule is paused as it was before."""
        declare(store, "2", definition("a", count=5), "b")
        store.schedules.pause("a", on=True)
        declare(store, "3", "b")
        store.clear()
        assert [Declared.NEW] == declare(store, "1", definition("a", count=5)).outcomes
        assert not store.schedules.get("a").paused

    def test_a_foreign_record_is_replaced(self, store, client):
        """A record that dtimer has not written counts as none."""
        declare(store, "1", "a")
        client.hset(store.keys.sys, "owner:billing", "what;is this")
        assert ([Declared.SAME], []) == declare(store, "0", "a")[:2]
        assert ["a"] == declare(store, "2", "b").removed


class TestRemoval:
    """A schedule that was removed is remembered for a day."""

    def removed(self, store, now, *, days, **options):
        """Return the schedule ``a``: paused, removed, and declared again after some days."""
        declare(store, "1", definition("a", count=5), "b")
        store.schedules.pause("a", on=True)
        declare(store, "2", "b")
        now.tick(days * DAY_MS)
        declare(store, "3", definition("a", **{"count": 5} | options), "b")
        return store.schedules.get("a")

    def test_it_stays_paused(self, store, now):
        """A release that was rolled back must not resume what an operator paused."""
        assert self.removed(store, now, days=0.9).paused

    def test_after_a_day_it_is_forgotten(self, store, now):
        """A schedule of that name may be another one by then."""
        assert not self.removed(store, now, days=1).paused

    def test_it_continues_with_the_occurrences_that_were_left(self, store, node, now):
        """A schedule with a count must not start over at each release that brings it back."""
        declare(store, "1", definition("a", count=3))
        now.tick(1_000)
        node.confirm(node.claim()[0])
        declare(store, "2", "b")
        declare(store, "3", definition("a", count=3))
        assert 2 == store.schedules.get("a").left

    def test_another_definition_counts_from_zero(self, store, now):
        """As after every change of a definition."""
        again = self.removed(store, now, days=0.5, every=5_000)
        assert (True, 5) == (again.paused, again.left)

    def test_an_occurrence_in_flight_runs_on(self, store, node, now):
        """A removal ends the schedule, not the work that has begun."""
        declare(store, "1", "a")
        now.tick(1_000)
        (claim,) = node.claim()
        assert ["a"] == declare(store, "2", "b").removed
        node.fail(claim)
        now.tick(500)
        assert [claim.id] == [c.id for c in node.claim()]


class TestOneScript:
    """All schedules of a block are declared together, or none is."""

    def test_a_reply_that_was_lost_changes_nothing_twice(self, store):
        """A repetition returns what was done, and does not remove more."""
        declare(store, "1", "a", "b")
        call = store._scripts.call_once
        one = ["c", "p", "{}", "3|{}", "1000000", *"cq0", "", "", "+1000000", *[""] * 4]
        replies = [call("declare", "billing", "2", *one, op="s:1") for _ in range(2)]
        assert [b"done;n;1:a1:b"] * 2 == replies

    @pytest.mark.fault("F50")
    def test_nothing_is_declared_while_the_times_of_one_are_unknown(self, store, node, now):
        """After the clock was set back, the caller sends later times, and all are declared."""
        every_second = {"cron": "* * * * * *"}
        declare(store, "1", definition("a", **every_second))
        now.tick(3_000)
        node.confirm(node.claim()[0])
        now.tick(-60_000)
        done = declare(store, "2", "b", definition("a", **every_second, payload='{"n":2}'))
        assert [Declared.NEW, Declared.CHANGED] == done.outcomes
        assert START + 4_000_000 == store.schedules.get("a").due * 1_000


class TestBlock:
    """``with dt.declare_schedules()``."""

    def test_the_end_of_the_block_declares(self, make):
        """Before it, nothing is sent. After it, the block has the outcomes."""
        timer = make()
        with timer.declare_schedules(owner="billing", version=1) as block:
            assert Declared.DEFERRED is timer.every(60_000, {}, id="a")
            assert Declared.DEFERRED is timer.cron("@daily", {}, id="b")
            assert [] == list(timer.schedules())
        assert {"a": Declared.NEW, "b": Declared.NEW} == block.outcomes
        assert Declared.SAME is timer.every(60_000, {}, id="a")
        with timer.declare_schedules(owner="billing", version="v1.0-1") as block:
            timer.every(60_000, {}, id="c")
        assert (["a", "b"], None) == (block.removed, block.newer)

    def test_many_schedules_cost_one_script(self, make, monkeypatch):
        """A program with hundreds of schedules starts as fast as with one."""
        timer = make()
        timer.post({})
        calls, call = [], timer._store._scripts.call

        def noted(verb, *arguments, **options):
            calls.append(verb)
            return call(verb, *arguments, **options)

        monkeypatch.setattr(timer._store._scripts, "call", noted)
        with timer.declare_schedules(owner="billing", version=1) as block:
            for i in range(500):
                timer.every(60_000, {}, id=f"s{i}")
            with pytest.raises(OptionError, match="at most 500 schedules"):
                timer.every(60_000, {}, id="one more")
        assert (500, ["declare"]) == (len(block.outcomes), calls)

    def test_a_block_that_raises_declares_nothing(self, make):
        """Half of the schedules would look like a release that removed the others."""
        timer = make()

        def raises():
            with timer.declare_schedules(owner="billing", version=1):
                timer.every(60_000, {}, id="a")
                timer.every(1, {}, id="b")

        with pytest.raises(OptionError):
            raises()
        assert [] == list(timer.schedules())
        assert Declared.NEW is timer.every(60_000, {}, id="a"), "the block is closed"

    def test_an_empty_block_removes_nothing_unless_allowed(self, make):
        """A block is more often empty by mistake than on purpose."""
        timer = make()
        with timer.declare_schedules(owner="billing", version=1):
            timer.every(60_000, {}, id="a")
        with timer.declare_schedules(owner="billing", version=2) as block:
            pass
        assert ([], ["a"]) == (block.removed, [s.id for s in timer.schedules()])
        with timer.declare_schedules(owner="billing", version=2, allow_empty=True) as block:
            pass
        assert (["a"], []) == (block.removed, list(timer.schedules()))

    def test_a_lower_version_is_logged(self, make):
        """An operator who has rolled back a release sees why a schedule is missing."""
        timer = make()
        with timer.declare_schedules(owner="billing", version="1.10"):
            timer.every(60_000, {}, id="a")
        with kept() as records, timer.declare_schedules(owner="billing", version="1.9") as block:
            timer.every(60_000, {}, id="b")
        assert ("1.10", {}) == (block.newer, block.outcomes)
        assert 1 == len(records.of(log.OLDER_SCHEDULES))

    @pytest.mark.parametrize("owner", ["", "a b", "a;b", "é", "x" * 101, None, 3])
    def test_a_bad_owner_is_refused(self, make, owner):
        """The owner is stored in the state of each schedule."""
        with pytest.raises(OptionError, match="owner must have"):
            make().declare_schedules(owner=owner, version=1)

    @pytest.mark.parametrize(
        "version", ["", "a2f3c1d", "1.0rc1", "1..2", "-1", -1, True, None, 1.5, "1" * 16]
    )
    def test_a_version_that_cannot_be_ordered_is_refused(self, make, version):
        """The hash of a commit may be lower than the one of the commit before."""
        with pytest.raises(OptionError, match="whole number"):
            make().declare_schedules(owner="billing", version=version)

    def test_an_id_may_be_declared_once_in_a_block(self, make):
        """The second declaration would silently replace the first."""
        timer = make()
        with timer.declare_schedules(owner="billing", version=1):
            timer.every(60_000, {}, id="a")
            with pytest.raises(OptionError, match="twice"):
                timer.every(90_000, {}, id="a")
        assert [60_000] == [schedule.interval for schedule in timer.schedules()]

    def test_a_block_is_used_once_and_not_within_another(self, make):
        """The inner block would end before the outer one, with an unknown part of its schedules."""
        timer = make()
        block = timer.declare_schedules(owner="billing", version=1)
        with block:
            with (
                pytest.raises(UsageError, match="within another"),
                timer.declare_schedules(owner="mail", version=1),
            ):
                pass
            assert Declared.DEFERRED is timer.every(60_000, {}, id="a")
        with pytest.raises(UsageError, match="only once"), block:
            pass

    def test_a_block_concerns_its_own_thread(self, make):
        """Another thread declares at once, as without a block."""
        timer, outcomes = make(), []
        with timer.declare_schedules(owner="billing", version=1):
            other = threading.Thread(
                target=lambda: outcomes.append(timer.every(60_000, {}, id="a"))
            )
            other.start()
            other.join()
        assert [Declared.NEW] == outcomes

    def test_a_block_that_a_signal_interrupted_is_forgotten(self, make):
        """If a signal handler raises before the first statement, the block is never ended."""
        timer = make()
        timer.declare_schedules(owner="billing", version=1).__enter__()
        gc.collect()
        assert Declared.NEW is timer.every(60_000, {}, id="a")

    def test_a_rollback_declares_the_whole_block_again(self, make, client):
        """The owner and the version are lost with the schedules, and are stored again."""
        timer = make()
        with timer.declare_schedules(owner="billing", version=2):
            timer.every(60_000, {}, id="a")
            timer.every(60_000, {}, id="b")
        timer.unschedule("b")
        client.delete(*timer._store.keys)
        timer._store.schedules.redeclare(None)
        assert [("a", "billing")] == [(s.id, s.owner) for s in timer.schedules()]
        with timer.declare_schedules(owner="billing", version=1) as block:
            timer.every(60_000, {}, id="c")
        assert "2" == block.newer
