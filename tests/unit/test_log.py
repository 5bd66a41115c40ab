"""The log: records on their way from a node to the logger, and the table that documents them."""

from __future__ import annotations

import logging
import queue
import re
from types import SimpleNamespace

import pytest
from logged import SOURCE, Logged, kept
from pages import ROOT
from servers import PATIENCE

from dtimer import log
from dtimer.engine.callbacks import CallbackThread
from dtimer.engine.lease import Lease
from dtimer.engine.leases import LeaseTable
from dtimer.errors import HandlerError, LeaseLost
from dtimer.log import MESSAGES, Log, Message
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.options import validate
from dtimer.timer.contact import Contact
from dtimer.timer.emitter import Emitter

OPTIONS = validate({})

#: The names of the levels in the table of docs/logging.rst.
LEVELS = {getattr(logging, name.upper()): name for name in ("debug", "info", "warning", "error")}


def documented():
    """Return the levels and texts of the table in docs/logging.rst."""
    page = (ROOT / "docs" / "logging.rst").read_text("utf-8")
    row = r"^   \* - (debug|info|warning|error)\n     - ``(.*)``\n     - \S"
    return re.findall(row, page, re.MULTILINE)


def test_the_docs_list_every_record():
    """An operator looks a record up by its text, and finds its level and what to do."""
    assert [(LEVELS[m.level], m.text) for m in MESSAGES.values()] == documented()


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
        logged = Logged()
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
        logged = Logged()
        with kept():
            try:
                prepare(log.logger)
                logged.log.refresh()
                assert (expected, expected) == (
                    logged.log.debugging,
                    log.logger.isEnabledFor(logging.DEBUG),
                )
            finally:
                log.logger.disabled = False
                logging.disable(logging.NOTSET)

    def test_a_record_has_the_time_at_which_it_was_made(self, monkeypatch):
        """A listener of 'error' may be slow, and the record is then written later."""
        monkeypatch.setattr(log.time, "time", lambda: 1_800_000_000.25)
        logged = Logged()
        logged.log.add(log.JOINED)
        monkeypatch.undo()
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
        assert [f"{n} log record(s) were dropped" for n in (3, 1)] == [
            record.getMessage().partition(",")[0] for record in records.of(log.DROPPED)
        ]
        assert 3 == len(records.of(log.LEFT))

    def test_a_logging_handler_that_raises_is_reported_once(self):
        """The callback thread pauses after an exception. Telemetry must not delay listeners."""

        class Broken(logging.Handler):
            """Raises for every record."""

            def emit(self, record):
                """Raise."""
                raise OSError("no log")

        emitted, broken = queue.SimpleQueue(), Broken()
        callbacks = CallbackThread("dtimer-callbacks", lambda *event: emitted.put(event))
        log.logger.addHandler(broken)
        try:
            with kept():
                records = Log(callbacks.call, SOURCE)
                for _ in range(3):
                    records.add(log.JOINED)
                callbacks.announce("ready")
                callbacks.start()
                name, error = emitted.get(timeout=PATIENCE)
                assert ("error", "no log") == (name, str(error))
                assert ("ready",) == emitted.get(timeout=PATIENCE)
        finally:
            log.logger.removeHandler(broken)
            callbacks.stop()
            assert callbacks.join(PATIENCE)
        assert emitted.empty()


class TestCallbackThread:
    """The thread that writes the records."""

    def test_half_of_the_queue_is_kept_for_announcements(self):
        """A node that logs each step must still emit 'dead' and 'error'."""
        callbacks = CallbackThread("dtimer-callbacks", lambda *event: None)
        taken = sum(callbacks.call(print) for _ in range(6_000))
        assert 5_000 == taken
        for _ in range(5_000):
            callbacks.announce("retry", None)
        assert 0 == callbacks.dropped


def table():
    """Return a table of leases whose log is kept."""
    logged = Logged(debugging=True)
    announced = []
    return (
        LeaseTable("node", OPTIONS, lambda *what: announced.append(what), logged.log),
        logged,
        announced,
    )


def lease(book, id, outcome=Outcome.DONE):
    """Return a lease of the table, whose direct settling has *outcome*."""
    claim = Claim(id, int(id), 1, 0, 0, 3, b"{}")
    store = SimpleNamespace(settle=lambda settlements: [outcome], extend=lambda held, us: [False])
    made = Lease(claim, OPTIONS, store, book._ended, 0.0)
    book._add([made])
    return made


class TestOutcomes:
    """The records of settled leases."""

    def test_a_batch_is_one_record_for_each_outcome(self):
        """A record for each event would make the log cost more than the events."""
        book, logged, _ = table()
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
            one = lease(book, str(i))
            assert one.reserve(verdict)
            settlements.append(Settlement(*one.key, verdict))
            results.append(result)
        book.settled(settlements, results)
        expected = {m: [[str(i), str(i + 6)]] for i, (*_, m) in enumerate(outcomes, 1) if m}
        assert expected == {message: logged.ids(message) for message in expected}
        assert 5 == len(logged.records)

    def test_an_event_that_dies_is_a_dead_letter_and_no_retry(self):
        """The reader of the log must not wait for a retry that never comes."""
        book, logged, _ = table()
        one = lease(book, "1")
        one.reserve(Verdict.RETRY)
        book.settled([Settlement("1", 1, Verdict.RETRY)], [Outcome.DEAD])
        assert [log.BURIED] == [message for message, *_ in logged.records]

    def test_a_call_of_the_handler_is_one_record(self):
        """``ev.confirm()`` settles at once, not with a claim, and shows in the log alike."""
        book, logged, _ = table()
        assert lease(book, "1").confirm()
        assert [(log.CONFIRMED, (1, "1"), ["1"])] == logged.records

    def test_a_lost_lease_is_logged_once(self):
        """The heartbeat finds the loss first, and the confirm again."""
        book, logged, announced = table()
        one = lease(book, "1", Outcome.STALE)
        book.mark_lost(one)
        assert not one.confirm()
        assert [(log.LEASE_LOST, (1, "1"), ["1"])] == logged.records
        assert ["lease_lost"] == [name for name, *_ in announced]

    def test_a_lease_of_an_event_that_this_process_replaced_is_not_lost(self):
        """A program that posts an id again has not lost an event."""
        book, logged, _ = table()
        one = lease(book, "1", Outcome.STALE)
        book.superseded(["1"])
        assert not one.confirm()
        assert [] == logged.records


class TestContact:
    """The records of outages."""

    @pytest.fixture
    def contact(self):
        logged = Logged()
        store = SimpleNamespace(place="redis://…@host", ns="dt")
        return Contact(store, lambda *what: None, lambda: 2.0, lambda: 1.0, logged.log), logged

    def test_an_outage_begins_and_ends_once(self, contact):
        """Several kinds of errors are one outage."""
        contact, logged = contact
        contact.connectivity_changed(None)
        assert [] == logged.records
        first = ConnectionError("refused")
        contact.connectivity_changed(first)
        contact.connectivity_changed(TimeoutError("silent"))
        contact.connectivity_changed(None)
        (began, ended) = logged.records
        assert (log.OUTAGE_BEGAN, ("redis://…@host", first), []) == began
        assert (log.OUTAGE_ENDED, "redis://…@host") == (ended[0], ended[1][1])

    def test_deafness_begins_and_ends_once(self, contact):
        """Events are late meanwhile, which an operator must be able to explain."""
        contact, logged = contact
        error = OSError("no pub/sub")
        for changed in (None, error, error, None, None):
            contact.hearing_changed(changed)
        assert [(log.DEAF, (error,), []), (log.HEARS, (), [])] == logged.records


class TestEmitter:
    """Errors that no listener hears."""

    @pytest.mark.parametrize(
        ("error", "ids"),
        [
            (HandlerError(ValueError("no"), [SimpleNamespace(id="a"), SimpleNamespace(id="b")]), 2),
            (LeaseLost("a", "node", 1), 1),
            (ConnectionError("refused"), 0),
        ],
        ids=["handler", "lease", "server"],
    )
    def test_an_unheard_error_names_its_events(self, error, ids):
        """A search of the log for an event's id finds its failure."""
        with kept() as records:
            Emitter()._announce("error", error)
        (record,) = records.of(log.UNHEARD)
        assert (["a", "b"][:ids], error) == (record.event_ids, record.exc_info[1])


def test_messages_are_constants():
    """A log service groups records by their text, which must not contain ids or figures."""
    assert all(isinstance(message, Message) for message in MESSAGES.values())
    assert len(MESSAGES) == len({message.text for message in MESSAGES.values()})
