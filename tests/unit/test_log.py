"""The log: records on their way from a node to the logger, and the table that documents them."""

import logging
import queue
import re
from types import SimpleNamespace

import pytest
from logged import SOURCE, Logged, kept
from pages import ROOT
from seats import Announced, FakeLeaseStore, make_leases
from servers import PATIENCE

from dtimer import log
from dtimer.engine.callbacks import CallbackThread
from dtimer.engine.lease import Lease
from dtimer.errors import HandlerError, LeaseLost
from dtimer.log import Log, Message
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.options import validate
from dtimer.model.outcomes import Reason
from dtimer.model.records import DeadLetter
from dtimer.timer.contact import Contact
from dtimer.timer.emitter import Emitter

MESSAGES = {name: value for name, value in vars(log).items() if isinstance(value, Message)}


@pytest.fixture
def logged():
    """The log of a node that keeps debug records too."""
    return Logged(debugging=True)


class Broken(logging.Handler):
    """Raises for every record, as a handler of the user's own may."""

    def emit(self, record):
        """Raise."""
        raise OSError("no log")


@pytest.fixture
def broken():
    """A logging handler that raises."""
    handler = Broken()
    log.logger.addHandler(handler)
    with kept():
        yield
    log.logger.removeHandler(handler)


def test_the_docs_list_every_record():
    """An operator looks a record up by its text, and finds its level and what to do."""
    page = (ROOT / "docs" / "logging.rst").read_text("utf-8")
    row = r"^   \* - (debug|info|warning|error)\n     - ``(.*)``\n     - \S"
    documented = re.findall(row, page, re.MULTILINE)
    in_code = [(logging.getLevelName(m.level).lower(), m.text) for m in MESSAGES.values()]
    assert in_code == documented


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_every_record_has_all_fields(message):
    """A format that names a missing field fails for that record, and loses it."""
    values = {"d": 1, "s": "text", "r": "text", ".1f": 1.0}
    arguments = [values[kind] for kind in re.findall(r"%(\.1f|.)", message.text)]
    with kept() as records:
        log.write(message, *arguments, source=SOURCE, ids=["a"])
    (record,) = records.kept
    assert message.level == record.levelno
    assert message.text % tuple(arguments) == record.getMessage()
    assert (*SOURCE, ["a"]) == (record.node, record.ns, record.incarnation, record.event_ids)


def test_fields_of_the_programs_own_factory_lose_no_record():
    """
    A program may add its own ``node`` to all records. `logging` refuses the same name as an
    ``extra``, and each record would be lost.
    """

    def factory(*arguments, **named):
        record = before(*arguments, **named)
        record.node = record.ns = "of the program"
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        with kept() as records:
            assert log.write(log.JOINED, source=SOURCE) is None
    finally:
        logging.setLogRecordFactory(before)
    (record,) = records.kept
    assert SOURCE == (record.node, record.ns, record.incarnation)


def test_an_argument_without_a_text_loses_no_record():
    """The ``__str__`` of the program's own exception may fail."""

    class Mute(Exception):
        def __str__(self):
            raise ValueError("no text")

    with kept() as records:
        log.write(log.OUTAGE_BEGAN, "a server", Mute(), source=SOURCE)
    (record,) = records.kept
    assert "<Mute without a text>" == record.args[1]


@pytest.mark.usefixtures("broken")
def test_an_error_that_cannot_be_logged_is_printed(capsys):
    """A failing event handler must not be invisible because a logging handler fails, too."""
    assert isinstance(log.write(log.JOINED, source=SOURCE), OSError)
    assert "" == capsys.readouterr().err
    error = HandlerError(ValueError("the shop is closed"), [])
    assert isinstance(log.write(log.UNHEARD, error, source=SOURCE, error=error), OSError)
    assert "a handler raised ValueError: the shop is closed" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("event", ["error", "other"])
def test_a_logging_handler_that_raises_fails_no_call(event, capsys):
    """An error of a timer that has not joined is logged by the caller's thread, within a post."""
    emitter = Emitter()
    emitter.on("other", lambda error: 1 / 0)
    emitter._announce(event, ValueError("no"))
    assert "Error: " in capsys.readouterr().err


def test_a_record_stays_on_one_line():
    """An id that another client of Redis has written must not forge further lines of a log."""
    with kept() as records:
        log.write(log.CLAIMED, 1, "é\n\x1b[2J", source=SOURCE)
    (record,) = records.kept
    assert r"claimed 1 event(s): é\n\x1b[2J" == record.getMessage()


class TestLog:
    """The log of one node."""

    def test_debug_records_are_not_queued_while_they_are_off(self):
        """A queued record costs a change of threads. Other levels are rare, and always queued."""
        logged = Logged(debugging=False)
        logged.log.add(log.WAKE_HEARD)
        logged.log.add(log.JOINED)
        assert [(log.JOINED, (), [])] == logged.records

    @pytest.mark.parametrize(
        ("prepare", "expected"),
        [
            (lambda logger: None, True),
            (lambda logger: logger.setLevel(logging.INFO), False),
            (lambda logger: setattr(logger, "disabled", True), False),
            (lambda logger: logging.disable(logging.DEBUG), False),
        ],
        ids=["on", "level", "disabled", "all disabled"],
    )
    def test_debug_records_are_on_if_the_logger_takes_them(self, prepare, expected):
        """The log looks this up itself, because ``isEnabledFor`` may wait for a lock."""
        logged = Logged(debugging=not expected)
        with kept():
            try:
                prepare(log.logger)
                logged.log.refresh()
                assert expected == logged.log.debugging
                assert expected == log.logger.isEnabledFor(logging.DEBUG)
            finally:
                log.logger.disabled = False
                logging.disable(logging.NOTSET)

    def test_a_level_that_is_a_text_fails_no_claim(self, logged, monkeypatch):
        """`logging` cannot compare such a level. The claimer looks it up, and must go on."""
        monkeypatch.setattr(log.logger, "level", "DEBUG")
        logged.log.refresh()
        assert not logged.log.debugging

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_joined_and_left_are_a_pair(self, logged, interrupted):
        """
        A signal handler that interrupts the end of a join may leave before ``joined`` is queued.
        The interrupted call then continues, and queues it too late.
        """
        steps = [logged.log.joined, logged.log.left]
        for step in reversed(steps) if interrupted else steps:
            step()
        with kept() as records:
            for call in logged.calls:
                call[0](*call[1:])
        assert [log.JOINED.text, log.LEFT.text] == [record.msg for record in records.kept]

    def test_a_record_has_the_time_at_which_it_was_made(self, logged, monkeypatch):
        """A listener of 'error' may be slow, and the record is then written later."""
        with monkeypatch.context() as patched:
            patched.setattr(log.time, "time", lambda: 1_800_000_000.25)
            logged.log.add(log.JOINED)
        with kept() as records:
            logged.log._write(*logged.calls[0][1:])
        (record,) = records.kept
        assert (1_800_000_000.25, 250) == (record.created, record.msecs)

    def test_dropped_records_are_counted(self):
        """A gap in the log must not look like a quiet node."""
        logged = Logged(accepts=False)
        for _ in range(3):
            logged.log.add(log.JOINED)
        with kept() as records:
            logged.log._write(log.LEFT, (), (), 1.0)
            logged.log._write(log.LEFT, (), (), 1.0)
            logged.log.add(log.JOINED)
            logged.log._write(log.LEFT, (), (), 1.0)
        dropped = [record.getMessage().partition(",")[0] for record in records.of(log.DROPPED)]
        assert [f"{n} log record(s) were dropped" for n in (3, 1)] == dropped
        assert 3 == len(records.of(log.LEFT))

    @pytest.mark.usefixtures("broken")
    def test_a_logging_handler_that_raises_is_reported_once(self):
        """The callback thread pauses after an exception. Telemetry must not delay listeners."""
        emitted = queue.SimpleQueue()
        callbacks = CallbackThread(
            "dtimer-callbacks", SimpleNamespace(emit=lambda *event: emitted.put(event))
        )
        try:
            records = Log(callbacks.call, SOURCE)
            for _ in range(3):
                records.add(log.OUTAGE_ENDED, 1.0, "a server")
            callbacks.announce("ready")
            callbacks.start()
            name, error = emitted.get(timeout=PATIENCE)
            assert ("error", "no log") == (name, str(error))
            assert ("ready",) == emitted.get(timeout=PATIENCE)
        finally:
            callbacks.stop()
            assert callbacks.join(PATIENCE)
        assert emitted.empty()


def test_half_of_the_queue_is_kept_for_announcements():
    """A node that logs each step must still emit 'dead' and 'error'."""
    callbacks = CallbackThread("dtimer-callbacks", SimpleNamespace(emit=lambda *event: None))
    queued = sum(callbacks.call(print) for _ in range(6_000))
    assert 5_000 == queued
    for _ in range(5_000):
        callbacks.announce("retry", None)
    assert 0 == callbacks.dropped


class TestOutcomes:
    """The records of settled leases."""

    @pytest.fixture
    def announced(self):
        return Announced()

    @pytest.fixture
    def table(self, logged, announced):
        """The leases of a node."""
        return make_leases(announced=announced, log=logged.log)

    def a_lease(self, table, id, outcome=Outcome.DONE):
        """Add a lease that the server settles with *outcome* if the handler asks for it."""
        store = FakeLeaseStore()
        store.outcomes.append(outcome)
        claim = Claim(id, int(id), 1, 0, 0, 3, b"{}")
        lease = Lease(claim, validate({}), store, table, 0.0)
        table._add([lease])
        return lease

    def test_a_batch_is_one_record_for_each_outcome(self, table, logged):
        """A record for each event would make the log cost more than the events."""
        settlements, results = [], []
        outcomes = [
            (Verdict.CONFIRM, Outcome.DONE, log.CONFIRMED),
            (Verdict.RETRY, Outcome.DONE, log.RETRIED),
            (Verdict.RELEASE, Outcome.DONE, log.RELEASED),
            (Verdict.BURY, Outcome.DONE, log.BURIED),
            (Verdict.RETRY, Outcome.CANCELLED, log.CANCELLED),
            (Verdict.RELEASE, Outcome.STALE, None),
        ]
        for i, (verdict, result, _) in enumerate(outcomes * 2, 1):
            lease = self.a_lease(table, str(i))
            assert lease.reserve(verdict)
            settlements.append(Settlement(*lease.key, verdict))
            results.append(result)
        table.settled(settlements, results)
        expected = {m: [[str(i), str(i + 6)]] for i, (*_, m) in enumerate(outcomes, 1) if m}
        assert expected == {message: logged.ids(message) for message in expected}
        assert 5 == len(logged.records)

    def test_an_event_that_dies_is_a_dead_letter_and_no_retry(self, table, logged):
        """The reader of the log must not wait for a retry that never comes."""
        self.a_lease(table, "1").reserve(Verdict.RETRY)
        table.settled([Settlement("1", 1, Verdict.RETRY)], [Outcome.DEAD])
        assert [log.BURIED] == [message for message, *_ in logged.records]

    def test_a_call_of_the_handler_is_one_record(self, table, logged):
        """``ev.confirm()`` settles at once, not with a claim, and is logged in the same way."""
        assert self.a_lease(table, "1").confirm()
        assert [(log.CONFIRMED, (1, "1"), ["1"])] == logged.records

    def test_a_lost_lease_is_logged_once(self, table, logged, announced):
        """The heartbeat finds the loss first, and the confirm again."""
        lease = self.a_lease(table, "1", Outcome.STALE)
        table.mark_lost(lease)
        assert not lease.confirm()
        assert [(log.LEASE_LOST, (1, "1"), ["1"])] == logged.records
        assert ["lease_lost"] == [name for name, *_ in announced.all()]

    def test_a_lease_of_an_event_that_this_process_replaced_is_not_lost(self, table, logged):
        """A program that posts an id again has not lost an event."""
        lease = self.a_lease(table, "1", Outcome.STALE)
        table.superseded(["1"])
        assert not lease.confirm()
        assert [] == logged.records


class TestContact:
    """The records of outages."""

    @pytest.fixture
    def announced(self):
        return []

    @pytest.fixture
    def contact(self, logged, announced):
        server = SimpleNamespace(source=SimpleNamespace(address="redis://…@host"))
        store = SimpleNamespace(server=server, ns="dt")
        announcements = SimpleNamespace(announce=lambda *what: announced.append(what))
        contact = Contact(store, announcements, logged.log)
        contact.answered = 2.0
        return contact

    def test_an_outage_begins_and_ends_once(self, contact, logged):
        """Several kinds of errors are one outage."""
        contact.connectivity_changed(None)
        assert [] == logged.records
        first = ConnectionError("refused")
        contact.connectivity_changed(first)
        contact.connectivity_changed(TimeoutError("silent"))
        contact.connectivity_changed(None)
        (began, ended) = logged.records
        assert (log.OUTAGE_BEGAN, ("redis://…@host", first), []) == began
        assert (log.OUTAGE_ENDED, "redis://…@host") == (ended[0], ended[1][1])

    def test_an_outage_after_an_answer_says_so(self, contact, logged, announced):
        """An operator would otherwise look for a server that is down."""
        contact.connectivity_changed(None)
        error = ValueError("no memory")
        contact.connectivity_changed(error, claim_answered=True)
        assert [(log.STEP_FAILED, ("redis://…@host", error), [])] == logged.records
        report = str(announced[-1][1])
        assert "answered a claim, but a step after it failed" in report
        assert "does not answer" not in report

    def test_deafness_begins_and_ends_once(self, contact, logged):
        """Events are late meanwhile, which an operator must be able to explain."""
        error = OSError("no pub/sub")
        for change in (None, error, error, None, None):
            contact.hearing_changed(change, 1.0)
        assert [(log.DEAF, (error,), []), (log.HEARS, (), [])] == logged.records


@pytest.mark.parametrize(
    ("error", "ids"),
    [
        (HandlerError(ValueError("no"), [SimpleNamespace(id=id) for id in "ab"]), ["a", "b"]),
        (LeaseLost("a", "node", 1), ["a"]),
        (ConnectionError("refused"), []),
    ],
    ids=["handler", "lease", "server"],
)
def test_an_error_without_a_listener_names_its_events(error, ids):
    """A search of the log for an event's id finds its failure."""
    with kept() as records:
        Emitter()._announce("error", error)
    (record,) = records.of(log.UNHEARD)
    assert (ids, error) == (record.event_ids, record.exc_info[1])


def test_the_record_of_a_listener_that_raises_names_the_events():
    """A listener of 'dead' alerts a person. If it fails, the log says for which event."""
    emitter = Emitter()
    for event in ("dead", "error", "ready"):
        emitter.on(event, lambda *about: 1 / 0)
    with kept() as records:
        emitter._announce("dead", DeadLetter("a", {}, 1, Reason.FAILED, "", 1.0, b""))
        emitter._announce("error", LeaseLost("b", "node", 1))
        emitter._announce("ready")
    assert [["a"], ["b"], []] == [each.event_ids for each in records.of(log.LISTENER_RAISED)]


def test_a_lost_lease_shows_no_token():
    """A token admits an effect to a store that fences. The text of the error is logged."""
    with kept() as records:
        Emitter()._announce("error", LeaseLost("a", "node", 123_456))
    (record,) = records.of(log.UNHEARD)
    assert 123_456 == record.exc_info[1].token
    assert "123456" not in logging.Formatter().format(record)


def test_messages_are_constants():
    """A log service groups records by their text, which must not contain ids or figures."""
    assert all(isinstance(message, Message) for message in MESSAGES.values())
    assert len(MESSAGES) == len({message.text for message in MESSAGES.values()})
