"""Pickle and copy: errors and events survive them, and a timer refuses them with a reason."""

import copy
import inspect
import json
import multiprocessing
import pickle
import pickletools
import typing

import pytest

import dtimer
from dtimer import (
    Cancelled,
    Cleared,
    DeadLetter,
    Declared,
    DTimer,
    DueCount,
    Emission,
    EventId,
    Health,
    InFlight,
    Json,
    Minute,
    NodeInfo,
    Reason,
    Record,
    RunAt,
    Schedule,
    State,
    Stats,
    Zlib,
    errors,
)
from dtimer.errors import (
    ClockJump,
    DTimerError,
    EventExists,
    HandlerError,
    LeaseLost,
    NotReplicated,
    StateRollback,
    StoreError,
    UnknownKind,
    UsageError,
)
from dtimer.model.claims import Claim
from dtimer.model.event import Event

#: Seconds to wait; only a failing test waits this long.
PATIENCE = 60


class FakeLease:
    """The lease of a node, which cannot be sent to another process."""

    def __init__(self):
        self.confirms = 0
        self.like_a_lock = lambda: None  # cannot be pickled

    def confirm(self):
        self.confirms += 1
        return True

    def lost(self):
        return False


def an_event():
    """Return a running event of a schedule, with a distinct value for each attribute."""
    claim = Claim(
        "e", token=7, attempt=2, due_us=1_500, claimed_us=1_750, max_retries=3, payload=b"",
        schedule="s", nominal_us=1_000, missed=4,
    )  # fmt: skip
    return Event({"a": [1]}, claim, FakeLease())


def attributes(event):
    return {name: getattr(event, name) for name in Event.__slots__ if name != "_holder"}


#: Errors with more than a text.
ERRORS_WITH_ATTRIBUTES = [
    EventExists("an-id"),
    LeaseLost("id", "node", 7),
    UnknownKind("the kind 'a'", "a", None),
    StateRollback(1.0, 2.0, wiped=False),
    StateRollback(None, 2.0, wiped=True),
    NotReplicated(["a", "b"], 2, 1),
    ClockJump(-3.5),
    HandlerError(ValueError("v"), [an_event()]),
    HandlerError(ValueError("v"), []),
]
OTHER_ERRORS = [
    kind("a text")
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DTimerError)
    and kind not in {type(error) for error in ERRORS_WITH_ATTRIBUTES}
]

each_way = pytest.mark.parametrize(
    "copy_of",
    [lambda x: pickle.loads(pickle.dumps(x)), lambda x: pickle.loads(pickle.dumps(x, 0)),
     copy.copy, copy.deepcopy],
    ids=["pickle", "pickle, the oldest protocol", "copy", "deepcopy"],
)  # fmt: skip


def chain_of_causes(length, *, closed=False):
    """Return an error with *length* errors in its chain of causes, itself included."""
    first = error = StoreError("0")
    for n in range(1, length):
        above = StoreError(str(n))
        above.__cause__, error = error, above
    if closed:
        first.__cause__ = error
    return error


class TestErrors:
    """An error that does not survive pickling would hang a process pool."""

    @each_way
    @pytest.mark.parametrize(
        "error", [*ERRORS_WITH_ATTRIBUTES, *OTHER_ERRORS], ids=lambda e: type(e).__name__
    )
    def test_survives_with_its_text_and_attributes(self, error, copy_of):
        """The process that handles the error looks at all of them."""
        found = copy_of(error)
        assert type(error) is type(found)
        assert (str(error), error.args) == (str(found), found.args)
        assert repr(vars(error)) == repr(vars(found))

    @each_way
    def test_survives_with_its_cause_and_notes(self, copy_of):
        """The docs tell users to look at the cause. A note says how far a call has come."""
        error = StoreError("refused")
        error.__cause__ = KeyError("gone")
        error.add_note("3 events before")
        found = copy_of(error)
        assert "KeyError('gone')" == repr(found.__cause__)
        assert ["3 events before"] == found.__notes__

    @each_way
    def test_drops_a_cause_that_cannot_be_pickled(self, copy_of):
        """The exception of a handler may hold any object. The error itself still comes through."""
        cause = ValueError("v")
        cause.lock = lambda: None
        found = copy_of(HandlerError(cause, [an_event()]))
        assert "a handler raised ValueError: v ('e')" == str(found)
        assert "e" == found.event.id

    @each_way
    def test_survives_with_a_chain_of_causes(self, copy_of, monkeypatch):
        """Each cause is tested once. Testing it again for each error above would take for ever."""
        dumps, tests = pickle.dumps, []
        monkeypatch.setattr(errors.pickle, "dumps", lambda *a: tests.append(a) or dumps(*a))
        error, texts = copy_of(chain_of_causes(12)), []
        while error is not None:
            texts.append(str(error))
            error = error.__cause__
        assert [str(n) for n in reversed(range(12))] == texts
        assert len(tests) <= 2 * 12

    @pytest.mark.parametrize("closed", [False, True], ids=["long", "closed"])
    def test_drops_the_causes_of_an_endless_chain(self, closed):
        """A chain that pickle cannot follow to its end must not take the error along."""
        error = chain_of_causes(1_000, closed=closed)
        assert "999" == str(pickle.loads(pickle.dumps(error)))

    def test_is_raised_by_a_process_pool(self):
        """`multiprocessing.Pool` hangs for ever on an error that the parent cannot unpickle."""
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            with pytest.raises(NotReplicated):
                pool.apply_async(raise_not_replicated).get(PATIENCE)
            assert 3 == pool.apply_async(abs, [-3]).get(PATIENCE)
            pool.close()
            pool.join()


def raise_not_replicated():
    """Raise in a worker of the pool, which imports this function by its name."""
    raise NotReplicated(["a"], 1, 0)


class TestEvents:
    """An event becomes a detached event in another process."""

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_has_the_payload_and_the_attributes(self, protocol):
        """The other process can do the work: it has everything but the lease."""
        event = an_event()
        detached = pickle.loads(pickle.dumps(event, protocol))
        assert type(event) is type(detached)
        assert event == detached
        assert attributes(event) == attributes(detached)

    def test_a_deep_copy_shares_nothing(self):
        """A change of the copy leaves the original alone, and the copy has no lease."""
        event = an_event()
        detached = copy.deepcopy(event)
        detached["a"].append(2)
        assert {"a": [1]} == event
        assert attributes(event) == attributes(detached)
        with pytest.raises(UsageError):
            detached.confirm()

    @pytest.mark.parametrize(
        "call",
        [Event.confirm, Event.retry, lambda ev: ev.extend(1_000), lambda ev: ev.lease_lost],
        ids=["confirm", "retry", "extend", "lease_lost"],
    )
    def test_a_detached_event_refuses_to_settle_and_to_extend(self, call):
        """A copy does not know the state of the lease, so it must not say that all is well."""
        detached = pickle.loads(pickle.dumps(an_event()))
        for event in (detached, copy.copy(detached), pickle.loads(pickle.dumps(detached))):
            with pytest.raises(UsageError, match="a copy and has no lease"):
                call(event)

    def test_a_shallow_copy_holds_the_same_lease(self):
        """`copy.copy` makes another dict of the same running event."""
        event = an_event()
        shallow = copy.copy(event)
        assert shallow.confirm()
        assert 1 == event._holder.confirms
        assert shallow["a"] is event["a"]
        assert not shallow.lease_lost

    def test_json_dict_and_copy_contain_only_the_payload(self):
        """The attributes are not part of the payload."""
        event = an_event()
        assert {"a": [1]} == json.loads(json.dumps(event)) == dict(event) == event.copy()


#: An object of each public class whose objects are data.
DATA = [
    an_event(), *Cancelled, *Declared, *Reason, *State, *ERRORS_WITH_ATTRIBUTES, *OTHER_ERRORS,
    EventId("an-id"), EventId("an-id", stored=False), EventId("an-id", stored=None),
    Record("id", {}, 1.5, State.DEAD, 1),
    DeadLetter("id", {}, 1, Reason.FAILED, "error", 1.5, b"raw"),
    Schedule("id", {}, None, "@daily", "UTC", "all", "skip", 0.0, None, None, None, False),
    NodeInfo("id", "incarnation", "host", 1, 1.5, 2.5, True),
    Stats(1, 2, 3, 4.5, 5, 6, False, {"posted": 1}, (1, 2)),
    Cleared(5, 1, 2), Emission("event", [an_event()], ()), DueCount(1.5, 2),
    InFlight("id", "node", "incarnation", 1, 1.5, 2.5, 3.5, False),
    Minute(1.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.5, None),
    Health(True, True, False, 1.5, 2.5, 0, 0, None),
    Json(),
    Zlib(100),
]  # fmt: skip

#: Public classes that only type checkers use, and those whose objects cannot be pickled.
NO_DATA = {
    *("DTimer", "Route", "Router", "RunAt", "ScheduleBlock"),
    *("CronOptions", "Job", "PostItem", "PostOptions", "RedisAddress", "RunAtOptions"),
    *("ScheduleOptions", "TimerOptions"),
    *("RedisClient", "RedisPipeline"),
    # A pickle of it would have the key.
    *("Codec", "Signed"),
}

CLASSES = {n: kind for n in dtimer.__all__ if isinstance(kind := getattr(dtimer, n), type)}


def modules_in(pickled):
    """Return the modules that a pickle imports from, without those of the standard library."""
    found, texts = set(), []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(argument.split(" ")[0])
        elif opcode.name == "STACK_GLOBAL":
            found.add(texts[-2])
        elif isinstance(argument, str):
            texts.append(argument)
    return {name for name in found if name.startswith("dtimer")}


class TestNames:
    """A pickle names only `dtimer`, so that modules within the package may change."""

    @pytest.mark.parametrize("name", dtimer.__all__)
    def test_a_pickled_name_is_that_of_the_package(self, name):
        """A job queue pickles a class by the name that it gives, and imports it from there."""
        kind = getattr(dtimer, name)
        pickled = pickle.dumps(kind, 0) + pickle.dumps(kind)
        assert modules_in(pickled) <= {"dtimer"}
        if name in CLASSES:
            assert f"cdtimer\n{name}\n".encode() in pickled

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("data", DATA, ids=repr)
    def test_a_pickled_object_names_only_the_package(self, data, protocol):
        """A stored pickle must not depend on the module of a class, or of a helper of its own."""
        pickled = pickle.dumps(data, protocol)
        assert {"dtimer"} == modules_in(pickled)
        assert repr(data) == repr(pickle.loads(pickled))

    def test_an_object_of_each_public_class_is_pickled_above(self):
        """A new public class is added to DATA or to NO_DATA."""
        assert {type(data).__name__ for data in DATA} == {*CLASSES} - NO_DATA

    @pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
    def test_the_annotations_of_a_public_class_can_be_resolved(self, kind):
        """Programs such as pydantic look up the names of annotations in the module of a class."""
        assert {*typing.get_type_hints(kind)} >= {*inspect.get_annotations(kind)}


@pytest.mark.parametrize("kind", [DTimer, RunAt])
@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_timer_refuses_pickling_and_says_what_to_do(kind, way):
    """
    The error names the timer and the remedy. The error of an inner lock would name neither.

    A bound method, which users give to a pool, gets the same message.
    """
    timer = kind("name")
    for refused in (timer, timer.on) if way is pickle.dumps else (timer,):
        with pytest.raises(TypeError, match=f"Make a {kind.__name__} in each process"):
            way(refused)
