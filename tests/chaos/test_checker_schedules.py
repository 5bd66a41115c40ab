"""
The checker on histories of schedules, and on those of the keys that `RunAt` writes and reads.

`chaos.history` explains the fields of the records, and `chaos.verdict.INVARIANTS` the codes I1 to
I18.
"""

from __future__ import annotations

import pytest

from chaos.cases import NODE, OTHER, POSTER, server_us
from chaos.steps import (
    call,
    cancel,
    check_illegal,
    check_legal,
    ends,
    illegal,
    kill,
    legal,
    run,
    say,
)

EVERY = 200
FIRST = 1000

RUNAT = {"face": "runat"}

#: One occurrence a second, from a cron expression.
CRON = {"every_us": None, "start_us": None, "cron": "* * * * * *"}


def nominal(i):
    """Return the i-th nominal time, in µs."""
    return server_us(FIRST + i * EVERY)


def occurrence(i):
    """Return the id of the i-th occurrence."""
    return f"beat@{nominal(i)}"


def declare(at=0, **more):
    fields = {"every_us": EVERY * 1000, "start_us": nominal(0), "max_retries": 3, "crc": 7}
    return call(NODE, "schedule", at, at + 2, id="beat", **(fields | more))


def beat(i, *, late=1, missed=0, **more):
    """Run the i-th occurrence, *late* ms after its nominal time."""
    at = FIRST + i * EVERY + late
    fields = {"due": nominal(i), "srv": server_us(at - 0.5), "crc": 7, "missed": missed}
    return run(occurrence(i), None, at, **(fields | more))


def extra(id_at, at, **more):
    """Run an occurrence with this nominal time, in ms."""
    return run(f"beat@{server_us(id_at)}", None, at, **({"crc": 7, "missed": 0} | more))


def pending(i):
    """Leave the i-th occurrence pending at the end."""
    return ends(pending=[occurrence(i)])


def claimed_at(us):
    """Return the fields of a run whose event was claimed ahead, at this time."""
    return {"srv": us, "tok": us, "ahead_us": 20_000}


def write(key, at, *, n=1, delay_ms=0, ph="ok", **more):
    fields = {"n": n, "delay_us": delay_ms * 1000} | RUNAT | more
    return call(POSTER, "write", at, at + 2, ph, id=key, **fields)


def read(key, at, *, p="reader.20", **said):
    return call(p, "read", at - 1, at, said={"id": key} | said, **RUNAT)


# fmt: off
LEGAL = [
    legal("each occurrence is followed by the next, however many processes declare the schedule",
          declare(), declare(500), *[beat(i) for i in range(5)], pending(5),
          counts={"occurrences": 5}),
    legal("an occurrence stands for three missed ones, and the one after those is next",
          declare(), beat(0), beat(1, missed=3, late=700), beat(5), pending(6)),
    legal("a cancelled occurrence is left out, and the next one comes",
          declare(), beat(0), cancel(occurrence(1), FIRST + 50), beat(2), pending(3)),
    *[legal(f"the outcome of a cancel is unknown, and the one before stands for {missed} missed",
            declare(), beat(0), beat(1, missed=missed),
            cancel(occurrence(2), FIRST + 350, None), beat(3), pending(4))
      for missed in (0, 1)],
    # It started no handler, so no record says how many missed ones it stood for.
    legal("an occurrence dies with its node before the handler, and the next follows a gap",
          declare(max_retries=0), beat(0), kill(NODE, FIRST + 250), beat(4, p=OTHER),
          ends(dead=[{"id": occurrence(1), "n": None, "reason": "lease_lost", "attempt": 1}],
               pending=[occurrence(5)])),
    legal("a retried occurrence stands for as many missed ones as before",
          declare(), beat(0, missed=1, late=250, ph="no"),
          beat(0, missed=1, late=310, att=2, due=server_us(FIRST + 300)), beat(2), pending(3)),
    legal("misfire=skip leaves occurrences out",
          declare(misfire="skip"), beat(0), beat(4), pending(5)),
    legal("a grace leaves occurrences out",
          declare(grace=100), beat(0), beat(4), pending(5)),
    legal("an occurrence expires, and the next one comes",
          declare(expires=100), beat(0),
          say(NODE, FIRST + 310, "expired", id=occurrence(1), n=None, reason="expired"),
          beat(2), pending(3)),
    legal("an occurrence expires with the latest of the missed ones for which it stands",
          declare(expires=100), beat(0, missed=2, late=450), beat(3), pending(4)),
    legal("run_now makes an occurrence besides, with a nominal time of its own",
          declare(), beat(0),
          call(POSTER, "run_now", FIRST + 76, FIRST + 78, id="beat",
               said={"occurrence": f"beat@{server_us(FIRST + 77)}"}),
          extra(FIRST + 77, FIRST + 82, due=server_us(FIRST + 77)), beat(1), pending(2)),
    # When the change took effect is not recorded.
    legal("a schedule that changed may have any nominal time",
          declare(), beat(0), declare(FIRST + 50, every_us=777_000),
          extra(2400, 2405, due=server_us(2400))),
    legal("an ended schedule has no pending occurrence",
          declare(), beat(0), call(POSTER, "unschedule", FIRST + 50, FIRST + 52, id="beat")),
    legal("a cron expression has the nominal times that the library computes",
          declare(**CRON, tz="UTC"), extra(1000, 1005, due=server_us(1000)),
          extra(2000, 2005, due=server_us(2000), missed=2),
          extra(5000, 5005, due=server_us(5000)), ends(pending=[f"beat@{server_us(6000)}"])),
    legal("overlap=allow runs two occurrences at a time",
          declare(overlap="allow"), beat(0, took=500), beat(1), pending(2)),

    legal("a RunAt key is read once after each write",
          write("x", 0), read("x", 10), write("x", 20), read("x", 30),
          counts={"written": 2, "read": 2, "lost": 0}),
    legal("a RunAt key written twice before it was read is read once",
          write("x", 0, delay_ms=50), write("x", 10, delay_ms=100), read("x", 120)),
    legal("a RunAt key goes to another reader after the first was killed",
          write("x", 0), read("x", 10), kill("reader.20", 20), read("x", 700, p="reader.21"),
          redelivered={"read: killed": 1}),
    # The clock of the process that wrote it does not count.
    legal("a RunAt key is read at its moment by the server's clock",
          write("x", 0, at_us=server_us(900)),
          read("x", 10, srv=server_us(900), due=server_us(900))),
    legal("a RunAt key that is not due is pending at the end",
          write("x", 0, delay_ms=900_000), ends(pending=["x"])),
    legal("a RunAt read ends without a key",
          call("reader.20", "read", 0, 100, "no", **RUNAT)),
]

ILLEGAL = [
    illegal("a nominal time is left out", "I11", "left out",
            declare(), beat(0), beat(2), pending(3)),
    illegal("the first nominal time is left out", "I11", "left out",
            declare(), beat(1), pending(2)),
    illegal("a nominal time of a cron expression is left out", "I11", "left out",
            declare(**CRON), extra(1000, 1005), extra(3000, 3005),
            ends(pending=[f"beat@{server_us(4000)}"])),
    illegal("an occurrence runs, and another stood for it", "I11", "stood for it",
            declare(), beat(0, missed=2, late=500), beat(1, late=400), beat(3), pending(4)),
    illegal("a nominal time is 1 µs off", "I11", "not a nominal time",
            declare(), beat(0), run(f"beat@{nominal(1) + 1}", None, FIRST + 220, crc=7, missed=0),
            pending(2)),
    illegal("a nominal time is half a second off its cron expression", "I11", "not a nominal time",
            declare(**CRON), extra(1500, 1505)),
    illegal("a schedule ends by itself", "I11", "the chain ended",
            declare(), beat(0)),
    illegal("a retried occurrence stands for fewer missed ones", "I11", "stands for more or fewer",
            declare(), beat(0, missed=1, late=250, ph="no"),
            beat(0, missed=0, late=310, att=2, due=server_us(FIRST + 300)), beat(2), pending(3)),
    illegal("more occurrences than count=2", "I11", "count=2",
            declare(count=2), *[beat(i) for i in range(3)]),
    illegal("an occurrence after the end of its schedule", "I11", "after the schedule's end",
            declare(end_us=nominal(1)), *[beat(i) for i in range(3)]),
    illegal("overlap=queue runs two occurrences at a time", "I11", "overlap=queue",
            declare(), beat(0, took=500), beat(1), pending(2)),
    illegal("an occurrence is claimed after its expiry", "I3", "expired",
            declare(expires=100), beat(0, late=150), pending(1)),
    illegal("an occurrence expires before its time", "I1", "expired too early",
            declare(expires=150), beat(0),
            say(NODE, FIRST + 310, "expired", id=occurrence(1), n=None, reason="expired"),
            beat(2), pending(3)),
    illegal("an occurrence starts before its nominal time", "I1", "nominal time",
            declare(), beat(0, late=-20, due=nominal(0) - 30_000), pending(1)),
    # How many missed ones it stands for is decided by the claim.
    illegal("an occurrence is claimed ahead, as an event may be", "I1", "nominal time",
            declare(generated=True), beat(0), beat(1, **claimed_at(nominal(1) - 5_000)),
            pending(2)),
    illegal("a later attempt of an occurrence is claimed ahead", "I1",
            "claimed before it was due",
            declare(), beat(0, ph="no"),
            beat(0, late=81, att=2, due=nominal(0) + 80_000, **claimed_at(nominal(0) + 75_000)),
            pending(1)),
    illegal("an occurrence is redelivered without a reason", "I4", "nothing explains why",
            declare(), beat(0), beat(0, late=700, att=2, p=OTHER), beat(1, late=720), pending(2)),
    illegal("a cancelled occurrence starts", "I6", "",
            declare(), cancel(occurrence(0), 500), beat(0), pending(1)),
    illegal("an occurrence is not redelivered after its node was killed", "I2", "lost",
            declare(), beat(0, took=None), kill(NODE, FIRST + 20), beat(1, p=OTHER), pending(2)),
    illegal("an occurrence of a schedule that no process declared", "I3", "never declared",
            beat(0)),
    illegal("an occurrence has another payload than the declaration", "I10", "payload",
            declare(), beat(0, crc=8), pending(1)),

    illegal("a RunAt key is read before its moment by the server's clock", "I1",
            "before the time that it was written for",
            write("x", 0, at_us=server_us(900)),
            read("x", 10, srv=server_us(900) - 1, due=server_us(900) - 1)),
    illegal("a RunAt key is claimed before it is due", "I1", "before it was due",
            write("x", 0), read("x", 10, due=server_us(5), srv=server_us(4))),
    illegal("a RunAt key is read before its delay is over", "I1", "before any write",
            write("x", 0, delay_ms=500), read("x", 300)),
    illegal("a RunAt key is never read", "I2", "never read",
            write("x", 0)),
    illegal("a RunAt key is not read after its last write", "I2", "never read",
            write("x", 0), read("x", 10), write("x", 20),
            counts={"lost": 1}),
    illegal("a RunAt key with no, a refused, or a later write is read", "I3", "never written",
            read("x", 10), write("y", 0, ph="no"), read("y", 10), write("z", 100), read("z", 10),
            times=3),
    illegal("a RunAt key written once is read by two live readers", "I4", "more often",
            write("x", 0), read("x", 10), read("x", 700, p="reader.21")),
    # The second read is a second attempt, so the second write does not explain it.
    illegal("a RunAt key is redelivered without a reason", "I4", "more often",
            write("x", 0), write("x", 5), read("x", 10, tok=1, att=1),
            read("x", 700, p="reader.21", tok=2, att=2)),
    illegal("one claim of a RunAt key goes to two readers", "I5", "read twice",
            write("x", 0), write("x", 5), read("x", 10, tok=1),
            read("x", 20, p="reader.21", tok=1)),
]
# fmt: on


@pytest.mark.parametrize(("steps", "figures"), LEGAL)
def test_accepts(case, steps, figures):
    """A violation reported by mistake would hide the real ones of a soak."""
    check_legal(case, steps, figures)


@pytest.mark.parametrize(("steps", "figures"), ILLEGAL)
def test_rejects(case, steps, figures):
    """A soak proves only the absence of faults that the checker would find."""
    check_illegal(case, steps, figures)
