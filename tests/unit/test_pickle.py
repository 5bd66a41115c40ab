"""What crosses processes: errors and events survive pickle and copy, and a timer says why not."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle

import pytest

from dtimer import DTimer, RunAt, errors
from dtimer.errors import (
    ClockJump,
    DTimerError,
    EventExists,
    HandlerError,
    LeaseLost,
    NotReplicated,
    StateRollback,
    StoreError,
    UsageError,
)
from dtimer.model.event import Event

#: Seconds that only a failing test spends.
PATIENCE = 60


class Held:
    """The hold of a node, which no other process can have."""

    def __init__(self):
        self.confirmed = 0
        self.refuse = lambda: None  # A lambda cannot be pickled, as a lock cannot.

    def confirm(self):
        """Count it."""
        self.confirmed += 1
        return True

    def lost(self):
        """Not lost."""
        return False


def an_event():
    """An event in hand, an occurrence, with every attribute of its own."""
    return Event(
        {"a": [1]}, id="e", due=1.5, attempt=2, max_retries=3, lateness_ms=0.25, token=7,
        holder=Held(), schedule="s", nominal=1.0, missed=4,
    )  # fmt: skip


def attributes(event):
    return {name: getattr(event, name) for name in Event.__slots__ if name != "_holder"}


#: Those whose constructor takes more than a text.
RICH = [
    EventExists("an-id"),
    LeaseLost("id", "node", 7),
    StateRollback(1.0, 2.0, wiped=False),
    StateRollback(None, 2.0, wiped=True),
    NotReplicated(["a", "b"], 2, 1),
    ClockJump(-3.5),
    HandlerError(ValueError("v"), [an_event()]),
    HandlerError(ValueError("v"), []),
]
PLAIN = [
    kind("a text")
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DTimerError) and kind not in {type(error) for error in RICH}
]

ways = pytest.mark.parametrize(
    "way",
    [lambda x: pickle.loads(pickle.dumps(x)), lambda x: pickle.loads(pickle.dumps(x, 0)),
     copy.copy, copy.deepcopy],
    ids=["pickle", "pickle, the oldest protocol", "copy", "deepcopy"],
)  # fmt: skip


class TestErrors:
    """Every error of dtimer comes back as it was: one that does not would hang a process pool."""

    @ways
    @pytest.mark.parametrize("error", [*RICH, *PLAIN], ids=lambda e: type(e).__name__)
    def test_survives_with_its_text_and_attributes(self, error, way):
        """The type, the text and each attribute are the same."""
        back = way(error)
        assert type(error) is type(back)
        assert (str(error), error.args) == (str(back), back.args)
        assert repr(vars(error)) == repr(vars(back))

    @ways
    def test_survives_with_its_cause_and_notes(self, way):
        """The cause is what the docs tell to look at, and a note says how far a call has come."""
        error = StoreError("refused")
        error.__cause__ = KeyError("gone")
        error.add_note("3 events before")
        back = way(error)
        assert "KeyError('gone')" == repr(back.__cause__)
        assert ["3 events before"] == back.__notes__

    @ways
    def test_a_cause_that_does_not_survive_is_left_behind(self, way):
        """What a handler raised may hold anything; the error itself still comes through."""
        cause = ValueError("v")
        cause.lock = lambda: None
        back = way(HandlerError(cause, [an_event()]))
        assert "a handler raised ValueError: v ('e')" == str(back)
        assert "e" == back.event.id

    def test_comes_out_of_a_pool(self):
        """`multiprocessing.Pool` hangs for ever on an error that its parent cannot read back."""
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            with pytest.raises(NotReplicated):
                pool.apply_async(not_replicated).get(PATIENCE)
            assert 3 == pool.apply_async(abs, [-3]).get(PATIENCE)
            pool.close()
            pool.join()


def not_replicated():
    """Fail, in a worker of a pool."""
    raise NotReplicated(["a"], 1, 0)


class TestEvents:
    """An event goes to another process as a detached event."""

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_has_the_payload_and_the_attributes(self, protocol):
        """The process that it is sent to can do the work: it has all but the lease."""
        event = an_event()
        back = pickle.loads(pickle.dumps(event, protocol))
        assert type(event) is type(back)
        assert event == back
        assert attributes(event) == attributes(back)

    def test_a_deep_copy_shares_nothing(self):
        """Changing the copy leaves the original alone, and the copy holds no lease."""
        event = an_event()
        back = copy.deepcopy(event)
        back["a"].append(2)
        assert {"a": [1]} == event
        assert attributes(event) == attributes(back)
        with pytest.raises(UsageError):
            back.confirm()

    @pytest.mark.parametrize(
        "verb",
        [Event.confirm, Event.retry, lambda ev: ev.extend(1_000), lambda ev: ev.lease_lost],
        ids=["confirm", "retry", "extend", "lease_lost"],
    )
    def test_the_verbs_of_a_detached_event_are_refused(self, verb):
        """A copy cannot know of the lease, so it neither settles nor says that all is well."""
        back = pickle.loads(pickle.dumps(an_event()))
        for event in (back, copy.copy(back), pickle.loads(pickle.dumps(back))):
            with pytest.raises(UsageError, match="a copy and holds no lease"):
                verb(event)

    def test_a_shallow_copy_holds_the_same_lease(self):
        """`copy.copy` makes another dict of the same event in hand."""
        event = an_event()
        again = copy.copy(event)
        assert again.confirm()
        assert 1 == event._holder.confirmed
        assert again["a"] is event["a"]
        assert not again.lease_lost

    def test_other_copies_are_plain(self):
        """JSON, ``dict`` and ``copy()`` see the payload alone."""
        event = an_event()
        assert {"a": [1]} == json.loads(json.dumps(event)) == dict(event) == event.copy()


class TestTimers:
    """A timer does not go to another process, and says so."""

    @pytest.mark.parametrize("kind", [DTimer, RunAt])
    @pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_says_that_it_cannot_be_pickled(self, kind, way):
        """
        The words name the timer and what to do, where the failure of some lock within would
        not; so do those about a bound method, which is what a pool is given.
        """
        timer = kind("name", redis="redis://x") if kind is RunAt else kind("name", "redis://x")
        for what in (timer, timer.on) if way is pickle.dumps else (timer,):
            with pytest.raises(TypeError, match=f"Make a {kind.__name__} in each process"):
                way(what)
