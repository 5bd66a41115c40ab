"""
The checker accepts every history that a correct library can produce, and rejects the others.

`chaos.history` explains the fields of the records, and `chaos.verdict.INVARIANTS` the codes I1 to
I18.
"""

from __future__ import annotations

import json

import pytest

from chaos import checker
from chaos.cases import (
    LEASE,
    NODE,
    OTHER,
    POSTER,
    RUNNER,
    accepted,
    caught,
    server_us,
)
from chaos.history import HistoryError
from chaos.steps import (
    ahead,
    auto,
    began,
    call,
    cancel,
    check_illegal,
    check_legal,
    claim,
    drop,
    ends,
    fault,
    holder,
    illegal,
    kill,
    leave,
    legal,
    post,
    run,
    say,
    tell,
    update,
)
from chaos.table import as_json, as_text

#: The server's clock after a jump of a minute.
JUMPED = server_us(60_000)

#: A node's process is stopped for longer than its lease, and the server freezes. `chaos.catalogue`
#: lists the faults.
PAUSED, FROZEN = "F52", "F22"
#: The server's clock is set forward, or back.
CLOCK_FORWARD, CLOCK_BACK = "F49", "F50"

# The rows below are laid out by hand: the formatter would give each step a line.
# fmt: off
LEGAL = [
    # Each way in which an event can end.
    legal("an event is handled once",
          post("a", 1), run("a", 1, 10),
          counts={"posted": 1, "handled": 1, "lost": 0}),
    legal("a failed event is retried",
          post("a", 1), run("a", 1, 10, ph="no"), run("a", 1, 80, p=OTHER, att=2),
          redelivered={"failed": 1}),
    legal("an event without retries left is a dead letter, seen when it dies or at the end",
          post("a", 1, max_retries=1), run("a", 1, 11, ph="no"), run("a", 1, 81, ph="no", att=2),
          post("b", 2, max_retries=1), run("b", 2, 12, ph="no"), run("b", 2, 82, ph="no", att=2),
          say(NODE, 90, "dead", id="a", n=1, reason="failed", attempt=2),
          ends(dead=[{"id": "b", "n": 2, "reason": "failed", "attempt": 2}]),
          counts={"dead": 2}),
    legal("every other end is counted by its name",
          post("cancelled", 1, delay_us=9_000_000), cancel("cancelled", 10),
          post("superseded", 2, delay_us=9_000_000),
          post("superseded", 3, 10), run("superseded", 3, 20),
          post("expired", 4, delay_us=30_000, expires_us=20_000),
          say(NODE, 40, "expired", id="expired", n=4, reason="expired"),
          post("refused", 5, ph="no"),
          post("unknown", 6, ph="info"),
          post("pending", 7, delay_us=900_000_000), ends(pending=["pending"]),
          counts={"cancelled": 1, "superseded": 1, "expired": 1, "refused": 1, "pending": 1,
                  "unknown outcomes": 1}),
    legal("a revived dead letter has all its attempts again",
          post("a", 1, max_retries=0), run("a", 1, 10, ph="no"),
          say(NODE, 20, "dead", id="a", n=1, reason="failed", attempt=1),
          call(POSTER, "revive", 30, 32, said={"revived": True}, id="a"), run("a", 1, 40)),
    legal("a failure is followed by the server's reply to the retry",
          post("a", 1, max_retries=1),
          run("a", 1, 10, ph="no"), holder("retry", 16, began("a", 1, 10), result="DONE"),
          run("a", 1, 80, ph="no", att=2), holder("retry", 86, began("a", 1, 80), result="DEAD"),
          say(NODE, 90, "dead", id="a", n=1, reason="failed", att=2),
          redelivered={"failed": 1}),

    legal("snoozes charge no attempt, even without retries",
          post("a", 1, max_retries=0),
          run("a", 1, 10), holder("snooze", 12, began("a", 1, 10)),
          run("a", 1, 40, p=OTHER), holder("snooze", 42, began("a", 1, 40), p=OTHER),
          run("a", 1, 80), redelivered={"snoozed": 2}, counts={"handled": 1}),
    legal("a buried event is a dead letter with retries left",
          post("a", 1), run("a", 1, 10), holder("bury", 12, began("a", 1, 10)),
          ends(dead=[{"id": "a", "n": 1, "reason": "buried", "attempt": 1}]),
          counts={"dead": 1, "handled": 0}),
    legal("a handler fails after its own retry was refused, so that the library retries",
          post("a", 1), run("a", 1, 10, took=30, ph="no"),
          holder("retry", 20, began("a", 1, 10), ph="no", accepted=None),
          run("a", 1, 110, p=OTHER, att=2),
          redelivered={"failed": 1}),

    # A redelivery that the fault explains.
    legal("a node is killed in the handler",
          post("a", 1), run("a", 1, 10, took=None), kill(NODE, 50),
          run("a", 1, 700, p=OTHER, att=2),
          redelivered={"killed": 1}),
    legal("a node is killed between the claim and the handler, so that no run has attempt 1",
          post("a", 1), say(NODE, 1, "node", phase="begin"), kill(NODE, 10),
          run("a", 1, 700, p=OTHER, att=2)),
    legal("a node is killed between the handler and the confirm",
          post("a", 1), run("a", 1, 10), kill(NODE, 16), run("a", 1, 700, p=OTHER, att=2),
          redelivered={"killed": 1}),
    legal("a paused node runs its handler beside the node that claimed the event next",
          post("a", 1), run("a", 1, 10, took=1500), fault(PAUSED, 20, 1490, target="node-1"),
          run("a", 1, 700, p=OTHER, att=2), auto(1515, began("a", 1, 10), accepted=False),
          redelivered={"paused": 1}),
    legal("a node paused between claim and handler starts the event after a cancel",
          post("a", 1), fault(PAUSED, 5, 2000, target="node-1"),
          run("a", 1, 700, p=OTHER, att=2, ph="no"), cancel("a", 720),
          run("a", 1, 2010, tok=server_us(4), srv=server_us(4), due=server_us(1))),
    legal("a lease runs out in a stall that the process noticed",
          post("a", 1), run("a", 1, 10, took=1000), say(NODE, 800, "stall", ms=700),
          run("a", 1, 800, p=OTHER, att=2),
          redelivered={"stalled": 1}),
    legal("a handler that runs longer than max_run loses its lease",
          say(NODE, 0, "node", phase="begin", max_run_ms=300), post("a", 1),
          run("a", 1, 10, took=5000), run("a", 1, 1000, p=OTHER, att=2),
          redelivered={"overran": 1}),
    legal("a claim is replayed after a lost reply: its token is older than the replay",
          post("a", 1), run("a", 1, 300, tok=server_us(5), due=server_us(1))),
    legal("a confirm counts after the end of the lease, while no other node has claimed",
          post("a", 1), run("a", 1, 10, took=2 * LEASE),
          holder("confirm", 1000, began("a", 1, 10))),

    # Calls whose outcome is unknown.
    legal("an unknown post takes effect after its call gave up",
          post("a", 1, took=300, ph="info"), run("a", 1, 900),
          counts={"recovered": 1}),
    legal("an unknown post replaces an event during a fault, so that neither is seen",
          fault(FROZEN, 0, 2000), post("a", 1, took=300, ph="info"), post("a", 2, 400)),
    legal("a poster is killed before the library has returned the id of its event",
          call(POSTER, "post", 0, None, n=1, delay_us=0, max_retries=3, crc=1), kill(POSTER, 5),
          run("made", 1, 10),
          counts={"recovered": 1}),
    legal("an unknown cancel takes effect, or does not",
          *[post(id, n, delay_us=500_000) for n, id in enumerate("ab")],
          *[cancel(id, 10, None, took=300) for id in "ab"],
          run("b", 1, 600)),
    legal("a handler ends in any way after a cancel in flight, and the event is not retried",
          post("a", 1), run("a", 1, 10, took=50, ph="no"), cancel("a", 20, "IN_FLIGHT"),
          counts={"cancelled": 1}),

    # Posts of an id that is in use.
    legal("a run of the replaced event overlaps the next, and its confirm is refused",
          post("a", 1), run("a", 1, 10, took=100), post("a", 2, 20), run("a", 2, 30, p=OTHER),
          auto(112, began("a", 1, 10), accepted=False)),
    legal("a handler posts the id of its own event",
          post("a", 1), run("a", 1, 10, took=50),
          call(NODE, "post", 20, 22, id="a", n=2, delay_us=0, max_retries=3, crc=2,
               if_exists="replace"),
          run("a", 2, 25, p=OTHER),
          counts={"handled": 2}),
    legal("the reply to a confirm arrives while the next generation runs",
          post("a", 1), run("a", 1, 10), post("a", 2, 20), run("a", 2, 30, p=OTHER),
          auto(40, began("a", 1, 10), accepted=True, result="DONE")),
    legal("two posts overlap: either may be the last",
          post("a", 1, 0, took=50), post("a", 2, 10, took=5), run("a", 1, 60)),
    legal("a post with if_exists=keep is acknowledged and stores nothing",
          post("a", 1, delay_us=30_000), post("a", 2, 10, if_exists="keep"), run("a", 1, 40),
          counts={"superseded": 1}),
    legal("a post that reports stored=False leaves the pending event alone",
          post("a", 1, delay_us=30_000), post("a", 2, 10, if_exists="keep", stored=False),
          run("a", 1, 40),
          counts={"superseded": 1}),
    legal("a conditional post replaces an event in flight, whose confirm is refused",
          post("a", 1), run("a", 1, 10, took=100),
          post("a", 2, 20, if_exists="earliest", delay_us=10_000, stored=True),
          holder("confirm", 50, began("a", 1, 10), accepted=False), run("a", 2, 60, p=OTHER)),
    legal("a rescheduled event is due at its new time",
          post("a", 1, delay_us=900_000),
          call(POSTER, "reschedule", 10, 12, said={"moved": True}, id="a", delay_us=50_000),
          run("a", 1, 70)),

    # Changes of a stored event.
    legal("an updated event is delivered with the new payload, also with its retry",
          post("a", 1), update("a", 1, 3, crc=71), run("a", 1, 10, crc=71, ph="no"),
          update("a", 1, 30, crc=72), run("a", 1, 80, att=2, crc=72)),
    legal("an update that found the event in flight changes nothing",
          post("a", 1), run("a", 1, 10, took=30, ph="no"), update("a", 1, 20, False, crc=71),
          run("a", 1, 90, att=2)),
    legal("an update with an unknown outcome may have been done or not",
          post("a", 1), call(POSTER, "update", 3, 5, "info", id="a", n=1, crc=71),
          run("a", 1, 10, crc=71),
          post("b", 2), call(POSTER, "update", 3, 5, "info", id="b", n=2, crc=72),
          run("b", 2, 10)),
    legal("a dropped dead letter is gone",
          post("a", 1, max_retries=0), run("a", 1, 10, ph="no"), drop("a", 30),
          counts={"dropped": 1, "lost": 0}),
    legal("a debounce is due at the end of its wait, before the delay of the last post is over",
          post("a", 1, delay_us=100_000, max_wait_us=150_000),
          post("a", 2, 60, delay_us=100_000, max_wait_us=150_000),
          run("a", 2, 152, due=server_us(151)),
          counts={"debounced": 1, "superseded": 1}),
    legal("a post during the handler begins a new wait",
          post("a", 1, max_wait_us=100_000), run("a", 1, 10, took=90),
          post("a", 2, 60, delay_us=100_000, max_wait_us=100_000), run("a", 2, 163)),
    legal("a post whose wait is over already is due at once",
          post("a", 1, delay_us=100_000, max_wait_us=100_000),
          post("a", 2, 4_000, delay_us=100_000, max_wait_us=100_000),
          run("a", 2, 4_010, due=server_us(4_002), srv=server_us(4_009))),
    legal("a post without a limit ends the wait",
          post("a", 1, delay_us=100_000, max_wait_us=100_000), post("a", 2, 50, delay_us=100_000),
          post("a", 3, 140, delay_us=100_000, max_wait_us=100_000), run("a", 3, 243)),
    legal("a node that was killed may have claimed the event and begun a new wait",
          say(NODE, 0, "node", phase="begin"),
          post("a", 1, delay_us=100_000, max_wait_us=100_000), kill(NODE, 103),
          post("a", 2, 120, delay_us=100_000, max_wait_us=100_000), run("a", 2, 223, p=OTHER)),

    # Events that are claimed ahead of their due time.
    legal("an event with a generated id is claimed ahead",
          post("a", 1, delay_us=50_000, generated=True), ahead("a", 1, 53, due=51, early=20),
          post("b", 2), run("b", 2, 60),
          counts={"claimed ahead": 1}),
    legal("the next attempt of a failed event is claimed ahead",
          post("a", 1, generated=True), run("a", 1, 10, ph="no"),
          ahead("a", 1, 101, due=100, early=20, p=OTHER, att=2),
          redelivered={"failed": 1}),
    legal("the lease of an event claimed ahead begins with the claim, not at the due time",
          post("a", 1, delay_us=50_000, generated=True),
          ahead("a", 1, 52, due=51, early=19, took=None),
          kill(NODE, 60), run("a", 1, 32 + LEASE + 2, p=OTHER, att=2),
          redelivered={"killed": 1}),

    # The server's clock is set.
    legal("a clock set forward ends a delay early by the monotonic clock",
          fault(CLOCK_FORWARD, 5, 2000), post("a", 1, delay_us=600_000),
          run("a", 1, 100, due=server_us(601), srv=JUMPED, tok=JUMPED)),
    legal("a clock set back between claim and replay: the token shows when the claim was made",
          post("a", 1, delay_us=900_000), fault(CLOCK_BACK, 910, 2_000),
          run("a", 1, 1_000, due=server_us(901), tok=server_us(902), srv=server_us(-800))),
    legal("a clock set back while a node waits for the due time of an event",
          post("a", 1, delay_us=50_000, generated=True), fault(CLOCK_BACK, 60, 9_000),
          call(RUNNER, "clock", 1_300, 1_300.1, said={"srv": server_us(-500)}),
          ahead("a", 1, 1_500, due=51, early=15)),
    # A renewal then sets the end of the lease to an earlier time than before.
    legal("a clock set back while a handler runs shortens its lease",
          post("a", 1), fault(CLOCK_BACK, 500, 600), run("a", 1, 10, took=2_390, ph="no"),
          run("a", 1, 1_900, att=2, srv=server_us(100), due=server_us(100), tok=server_us(2_000))),

    # A node that leaves in good order.
    legal("an event released by a leaving node starts elsewhere and is not charged an attempt",
          *[post(id, n) for n, id in enumerate(("started", "released", "died elsewhere"), 1)],
          *[claim(id, n, 100) for n, id in enumerate(("started", "released", "died elsewhere"), 1)],
          run("started", 1, 101, tok=server_us(100)), leave(90, 110),
          run("released", 2, 120, p=OTHER),
          # The node that claims it next is killed: that attempt is charged.
          kill("node-3.13", 300), say("node-3.13", 200, "node", phase="begin"),
          run("died elsewhere", 3, 905, p=OTHER, att=2, due=server_us(900)),
          counts={"left unstarted": 2}),
]

ILLEGAL = [
    illegal("claimed before the due time", "I1", "before it was due",
            post("a", 1), run("a", 1, 10, due=server_us(500))),
    # The user may still replace it.
    illegal("an event with a given id is claimed ahead", "I1", "claimed before it was due",
            post("a", 1, delay_us=50_000), ahead("a", 1, 52, due=51, early=5)),
    illegal("a generated id is posted again by its name, and claimed ahead", "I1",
            "claimed before it was due",
            post("a", 1, generated=True), run("a", 1, 10),
            post("a", 2, 20, delay_us=50_000), ahead("a", 2, 72, due=71, early=5)),
    illegal("claimed further ahead than look_ahead", "I1", "too far ahead",
            post("a", 1, delay_us=50_000, generated=True), ahead("a", 1, 52, due=51, early=20.001)),
    illegal("claimed ahead by a node with look_ahead=0", "I1", "too far ahead",
            post("a", 1, delay_us=50_000, generated=True),
            ahead("a", 1, 52, due=51, early=5, ahead_us=0)),
    illegal("claimed ahead, and started before the due time", "I1",
            "before it was due by the server's clock",
            post("a", 1, generated=True), ahead("a", 1, 50, due=54, early=15)),
    illegal("started before the delay is over by the host's clock", "I1", "before the delay",
            post("a", 1, delay_us=500_000), run("a", 1, 300),
            counts={"early": 1}),
    illegal("a clock set long before does not explain an early start", "I1", "before the delay",
            fault(CLOCK_FORWARD, -9000, -8000), post("a", 1, delay_us=500_000), run("a", 1, 300)),
    illegal("started at its first time after a move to a later one", "I1", "before the delay",
            post("a", 1, delay_us=100_000),
            call(POSTER, "reschedule", 10, 12, said={"moved": True}, id="a", delay_us=500_000),
            run("a", 1, 110)),
    illegal("an update is lost", "I10", "another payload",
            post("a", 1), update("a", 1, 3, crc=71), run("a", 1, 10)),
    illegal("a refused update is done", "I10", "another payload",
            post("a", 1), update("a", 1, 3, False, crc=71), run("a", 1, 10, crc=71)),
    illegal("an event in flight is updated", "I10", "in flight was updated",
            post("a", 1), run("a", 1, 10, took=50), update("a", 1, 20, crc=71),
            holder("confirm", 40, began("a", 1, 10))),
    illegal("a dropped dead letter is still there at the end", "I8", "still there",
            post("a", 1, max_retries=0), run("a", 1, 10, ph="no"), drop("a", 30),
            ends(dead=[{"id": "a", "n": 1, "reason": "failed", "attempt": 1}])),
    illegal("a dropped dead letter is delivered", "I8", "still there",
            post("a", 1, max_retries=0), run("a", 1, 10, ph="no"), drop("a", 30),
            run("a", 1, 60, att=2)),
    illegal("a debounce is due after the end of its wait", "I18", "after the end of its wait",
            post("a", 1, delay_us=100_000, max_wait_us=150_000),
            post("a", 2, 60, delay_us=100_000, max_wait_us=150_000),
            run("a", 2, 193, due=server_us(192))),
    illegal("expired before its time", "I1", "expired too early",
            post("a", 1, expires_us=500_000),
            say(NODE, 100, "expired", id="a", n=1, reason="expired")),

    illegal("an acknowledged post has no end", "I2", "",
            post("a", 1),
            counts={"lost": 1}),
    illegal("lost beside a post that was not stored", "I2", "",
            post("a", 1, delay_us=30_000), post("a", 2, 10, if_exists="keep", stored=False),
            counts={"lost": 1}),
    *[illegal(f"if_exists={policy} compares with an event in flight, whose confirm ends both",
              "I2", "dropped for an event in flight",
              post("a", 1), run("a", 1, 10, took=100),
              post("a", 2, 20, if_exists=policy, delay_us=10_000, stored=False),
              holder("confirm", 50, began("a", 1, 10)))
      for policy in ("earliest", "latest")],
    illegal("not stored, though its id was free", "I2", "cannot exist",
            post("a", 1, if_exists="keep", stored=False)),
    # The poster, told that it was not stored, posts again.
    illegal("reported as not stored, and claimed", "I2", "reported as not stored",
            post("a", 1, delay_us=30_000), post("a", 2, 10, if_exists="keep", stored=False),
            run("a", 2, 40)),
    illegal("not redelivered after its node was killed in the handler", "I2", "started 1 times",
            post("a", 1), run("a", 1, 10, took=None), kill(NODE, 20)),
    illegal("not redelivered after a failure", "I2", "",
            post("a", 1), run("a", 1, 10, ph="no")),
    illegal("not even a dead letter, with max_retries=0", "I2", "",
            post("a", 1, max_retries=0), run("a", 1, 10, took=None), kill(NODE, 20)),
    illegal("only the older generation ran", "I2", "n=2",
            post("a", 1), run("a", 1, 10), post("a", 2, 50)),
    # A call cannot act that much later.
    illegal("unknown calls long before the post do not explain the loss", "I2", "n=2",
            post("a", 1, took=300, ph="info"), cancel("a", 400, None, took=300),
            post("a", 2, 30_000)),
    illegal("its handler asked for a retry, and returned", "I2", "",
            post("a", 1), run("a", 1, 10, took=20), holder("retry", 20, began("a", 1, 10))),
    illegal("snoozed, and not delivered again", "I2", "",
            post("a", 1), run("a", 1, 10, took=20), holder("snooze", 20, began("a", 1, 10))),
    illegal("buried, and not found as a dead letter", "I2", "",
            post("a", 1), run("a", 1, 10, took=20), holder("bury", 20, began("a", 1, 10))),
    illegal("its confirm was refused", "I2", "",
            post("a", 1), fault(PAUSED, 5, 900, target="node-1"), run("a", 1, 10, took=900),
            auto(920, began("a", 1, 10), accepted=False)),

    illegal("pending or dead at the end, though never posted", "I3", "never posted",
            ends(pending=["ghost"], dead=[{"id": "zombie", "n": 5, "reason": "failed"}]),
            post("a", 1), run("a", 1, 10),
            times=2),
    illegal("claimed after its expiry", "I3", "expired",
            post("a", 1, expires_us=100_000), run("a", 1, 300)),
    illegal("claimed ahead, though expired by the due time", "I3", "expired",
            post("a", 1, delay_us=100_000, expires_us=85_000, generated=True),
            ahead("a", 1, 102, due=101, early=20)),

    illegal("redelivered without a reason", "I4", "nothing explains why",
            post("a", 1), run("a", 1, 10), run("a", 1, 700, p=OTHER, att=2),
            redelivered={"unexplained": 1}),
    illegal("redelivered after a kill, but before the lease could end", "I4",
            "before the previous lease",
            post("a", 1), run("a", 1, 10, took=None), kill(NODE, 20),
            run("a", 1, 300, p=OTHER, att=2)),
    illegal("a renewed lease is claimed ahead of its end", "I4", "end of the previous lease",
            post("a", 1, generated=True), run("a", 1, 10, took=None), kill(NODE, 500),
            ahead("a", 1, 1_001, due=1_000, early=10, p=OTHER, att=2)),
    # Another node, a fault long ago, and a fault that harms no lease.
    illegal("unrelated faults do not explain a redelivery", "I4", "nothing explains why",
            fault(PAUSED, 20, 400, target="node-2"), fault(FROZEN, -30_000, -29_000),
            fault("F28", 20, 400),
            post("a", 1), run("a", 1, 10), run("a", 1, 700, p=OTHER, att=2)),
    illegal("a refused retry does not explain a redelivery", "I4", "nothing explains why",
            post("a", 1), run("a", 1, 10, ph="no"),
            holder("retry", 16, began("a", 1, 10), accepted=False),
            run("a", 1, 700, p=OTHER, att=2)),
    illegal("an attempt reached no handler, without a fault", "I4", "reached no handler",
            post("a", 1), run("a", 1, 10, att=2)),
    # A handler that asks for less than is left of its lease keeps it.
    illegal("a short extension by a running handler does not end the lease", "I4",
            "before the previous lease could have expired",
            post("a", 1), run("a", 1, 10, took=2000),
            holder("extend", 20, began("a", 1, 10), ms=100),
            run("a", 1, 200, p=OTHER, att=2)),

    illegal("one claim starts two runs", "I5", "started twice",
            post("a", 1), run("a", 1, 10), run("a", 1, 30, p=OTHER, tok=server_us(9))),
    *[illegal(f"a {op} counts after another node's claim", "I5", "after a newer claim",
              post("a", 1), fault(PAUSED, 20, 700, target="node-1"), run("a", 1, 10, took=1500),
              run("a", 1, 700, p=OTHER, att=2, took=200), holder(op, 800, began("a", 1, 10)))
      for op in ("confirm", "retry", "extend", "snooze", "bury")],
    illegal("a confirm counts after a claim of the next generation", "I5", "after a newer claim",
            post("a", 1), run("a", 1, 10, took=200), post("a", 2, 20), run("a", 2, 30, p=OTHER),
            holder("confirm", 100, began("a", 1, 10))),
    illegal("the only holder is refused", "I5", "for no reason",
            post("a", 1), run("a", 1, 10, took=100),
            holder("confirm", 50, began("a", 1, 10), accepted=False),
            post("b", 2), run("b", 2, 10), auto(20, began("b", 2, 10), accepted=False),
            times=2),
    illegal("a confirm of a claim that no node made", "I5", "unknown claim",
            post("a", 1), run("a", 1, 10), holder("confirm", 12, ("a", 1, 12345))),

    *[illegal(f"retried after cancel returned {outcome}", "I6", outcome,
              post("a", 1), run("a", 1, 10, ph="no"), cancel("a", 50, outcome),
              run("a", 1, 100, att=2))
      for outcome in ("CANCELLED", "IN_FLIGHT", "NOT_FOUND")],
    illegal("a cancelled event is a dead letter", "I6", "dead letter",
            post("a", 1, delay_us=500_000), cancel("a", 50),
            ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 4}])),

    illegal("claimed after its handler confirmed it, in an outage", "I7", "claimed once more",
            fault(FROZEN, 20, 600), post("a", 1), run("a", 1, 10),
            holder("confirm", 12, began("a", 1, 10)), run("a", 1, 700, p=OTHER, att=2)),
    illegal("claimed after the handler thread confirmed it, in an outage", "I7",
            "claimed once more",
            fault(FROZEN, 20, 600), post("a", 1), run("a", 1, 10),
            auto(17, began("a", 1, 10), accepted=True, result="DONE"),
            run("a", 1, 700, p=OTHER, att=2)),
    illegal("two holders confirm", "I7", "two holders",
            fault(PAUSED, 20, 700, target="node-1"), post("a", 1), run("a", 1, 10, took=1500),
            run("a", 1, 700, p=OTHER, att=2, took=500), holder("confirm", 690, began("a", 1, 10)),
            holder("confirm", 800, began("a", 1, 700), p=OTHER)),
    illegal("a claim is confirmed and retried", "I7", "two ways",
            post("a", 1), run("a", 1, 10, took=50), holder("confirm", 20, began("a", 1, 10)),
            holder("retry", 30, began("a", 1, 10))),
    illegal("a confirmed event is a dead letter", "I7", "dead letter",
            post("a", 1, max_retries=0), run("a", 1, 10), holder("confirm", 12, began("a", 1, 10)),
            ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 1}])),

    illegal("started more often than max_retries + 1", "I8", "started 3 times",
            post("a", 1, max_retries=1), run("a", 1, 10, ph="no"),
            run("a", 1, 60, ph="no", att=2), run("a", 1, 110, att=3)),
    illegal("the attempt is not counted up", "I8", "do not grow",
            post("a", 1), run("a", 1, 10, ph="no"), run("a", 1, 80, att=1)),
    illegal("a dead letter with retries left", "I8", "after attempt 1",
            post("a", 1), run("a", 1, 10, ph="no"),
            ends(dead=[{"id": "a", "n": 1, "reason": "failed", "attempt": 1}])),
    *[illegal(f"claimed after its retry returned {result}", "I8", f"came to {result}",
              post("a", 1), run("a", 1, 10, ph="no"),
              holder("retry", 16, began("a", 1, 10), result=result), run("a", 1, 80, att=2))
      for result in ("DEAD", "CANCELLED")],
    illegal("a snooze charges an attempt", "I4", "reached no handler",
            post("a", 1), run("a", 1, 10), holder("snooze", 12, began("a", 1, 10)),
            run("a", 1, 40, att=2)),
    illegal("claimed after it was buried", "I8", "came to DEAD",
            post("a", 1), run("a", 1, 10), holder("bury", 12, began("a", 1, 10)),
            run("a", 1, 700, p=OTHER, att=2)),
    illegal("a refused snooze charges the attempt", "I9", "max_retries=0",
            post("a", 1, max_retries=0), run("a", 1, 10, took=None), kill(NODE, 20),
            holder("snooze", 12, began("a", 1, 10), accepted=False),
            run("a", 1, 700, p=OTHER, att=2)),
    illegal("a dead letter is claimed", "I8", "after its death",
            post("a", 1, max_retries=1), run("a", 1, 10, ph="no"),
            say(NODE, 50, "dead", id="a", n=1, reason="failed", attempt=2),
            run("a", 1, 100, att=2)),

    illegal("started a second time with max_retries=0", "I9", "max_retries=0",
            post("a", 1, max_retries=0), run("a", 1, 10, took=None), kill(NODE, 20),
            run("a", 1, 700, p=OTHER, att=2)),

    illegal("the older generation starts after the newer was stored", "I10",
            "newer one was stored",
            post("a", 1, delay_us=50_000), post("a", 2, 10, delay_us=900_000),
            run("a", 1, 60), run("a", 2, 920)),
    illegal("the older generation is claimed after the newer, whose post had no reply", "I10",
            "claimed after a newer",
            fault(CLOCK_FORWARD, 0, 5000), post("a", 1), post("a", 2, 10, took=None),
            run("a", 2, 20), run("a", 1, 21, p=OTHER)),
    illegal("a replaced generation comes back, whichever was the older", "I10", "came back",
            post("a", 1, 0, took=50), post("a", 2, 1, took=50),
            run("a", 1, 60, ph="no"), run("a", 2, 70, ph="no"), run("a", 1, 80, att=2)),
    illegal("the payload differs at the second attempt", "I10", "another payload",
            post("a", 1), run("a", 1, 10, ph="no"), run("a", 1, 80, att=2, crc=999)),

    illegal("the state at the end contradicts itself", "I12", "contradict",
            post("a", 1), run("a", 1, 10), ends(sound=False)),
    illegal("a confirmed and a cancelled event are pending", "I12", "pending at the end",
            post("a", 1), run("a", 1, 10), holder("confirm", 12, began("a", 1, 10)),
            post("b", 2, delay_us=900_000), cancel("b", 10), ends(pending=["a", "b"]),
            times=2),

    illegal("two handlers overlap without a fault", "I13", "while its handler ran",
            post("a", 1), run("a", 1, 10, took=2000), run("a", 1, 700, p=OTHER, att=2)),

    illegal("a process ends in good order during a call", "I16", "had not returned",
            post("a", 1, took=None), say(POSTER, 9000, "node", phase="end")),

    illegal("a leaving node keeps a lease until it was renewed the last time", "I17", "ms late",
            post("a", 1), claim("a", 1, 100), leave(2_000, 2_200),
            run("a", 1, 8_110, p=OTHER, att=2, due=server_us(8_100))),
    illegal("a leaving node keeps the lease of an event that is then a dead letter", "I17",
            "never started",
            post("a", 1, max_retries=0), claim("a", 1, 100), leave(90, 110),
            ends(dead=[{"id": "a", "n": 1, "reason": "lease_lost", "attempt": 1,
                        "error": "the lease of node incarnation-1 ran out"}])),
]
# fmt: on


class TestVerdict:
    """The checker's verdict on one history."""

    @pytest.mark.parametrize(("steps", "figures"), LEGAL)
    def test_accepts(self, case, steps, figures):
        """A violation reported by mistake would hide the real ones of a soak."""
        check_legal(case, steps, figures)

    @pytest.mark.parametrize(("steps", "figures"), ILLEGAL)
    def test_rejects(self, case, steps, figures):
        """A soak proves only the absence of faults that the checker would find."""
        check_illegal(case, steps, figures)

    def test_rejects_a_call_that_returns_after_its_deadline(self, case):
        """I16: unless it is late by less than the slack, or its process was paused."""
        case.say(POSTER, 0, "node", phase="begin", timeout_ms=300)
        case.post("a", 1, 10, took=350)
        case.post("b", 2, 1000, took=500)
        case.post("c", 3, 5000, took=900)
        case.fault(PAUSED, 5100, 5700, target="poster")
        for n, id in enumerate("abc", 1):
            case.run(id, n, 6000 + n)
        verdict = caught(case, "I16", "took 500 ms")
        assert {"I16": 1} == verdict.broken

    def test_rejects_events_that_were_not_posted(self, case):
        """I3: an id never posted, a refused post, a post that comes later, another serial."""
        case.run("nobody", 1, 10)
        case.post("refused", 2, ph="no")
        case.run("refused", 2, 20)
        case.post("later", 3, 100)
        case.run("later", 3, 50)
        case.post("other", 4)
        case.run("other", 99, 10)
        verdict = caught(case, "I3")
        assert {"nobody", "refused", "later", "other"} == {
            v.id for v in verdict.violations if v.invariant == "I3"
        }

    def test_rejects_a_history_without_an_end(self, case):
        """I12: a history that stops in the middle proves nothing, except as a partial one."""
        case.post("a", 1)
        folder = case.write(final=False)
        assert {"I12": 1} == checker.check(folder).broken
        assert {} == checker.check(folder, partial=True).broken

    def test_accepts_a_batch_with_one_call_number(self, case):
        """The posts of a burst share a ``k``, and each has its own end."""
        fields = {"delay_us": 0, "max_retries": 3, "if_exists": "replace", "k": 9_000}
        for n in range(3):
            case.say(POSTER, 0, "post", "inv", id=f"b{n}", n=n, crc=n, **fields)
        for n in range(3):
            case.say(POSTER, 9, "post", "ok", id=f"b{n}", n=n, k=9_000)
            case.run(f"b{n}", n, 20 + n)
        assert 3 == accepted(case).counts["handled"]

    def test_notes_a_clock_that_jumped_without_a_fault(self, case):
        """The server's host may set its clock: that breaks no invariant, but readers must know."""
        case.post("a", 1, delay_us=600_000)
        case.post("b", 2, 50)
        case.run("a", 1, 100, due=server_us(601), srv=JUMPED, tok=JUMPED)
        case.run("b", 2, 200)
        assert "moved apart" in accepted(case).notes[0]

    def test_an_extension_after_the_handler_may_shorten_the_lease(self, case):
        """I4: once the handler has returned the lease is exactly as long as its holder asks."""
        steps = [run("a", 1, 10), holder("extend", 20, began("a", 1, 10), ms=100)]
        tell(case, [post("a", 1), *steps, run("a", 1, 200, p=OTHER, att=2)])
        assert "I4" not in [v.invariant for v in case.check().violations if "before" in v.text]


class TestLateness:
    """Lateness, from the due time to the start of the handler."""

    def test_is_counted_by_the_phase_in_which_the_run_began(self, case):
        """A healthy phase has limits that a faulty one need not keep."""
        case.say(RUNNER, 0, "phase", phase="healthy")
        case.say(RUNNER, 100, "phase", phase="faulty")
        for n, at, late in ((1, 10, 1000), (2, 20, 3000), (3, 150, 50_000)):
            case.post(str(n), n)
            case.run(str(n), n, at, due=server_us(at - 1) - late)
        lateness = accepted(case).lateness
        assert (2, 1.0, 3.0) == (
            lateness["healthy"].n,
            lateness["healthy"].p50,
            lateness["healthy"].max,
        )
        assert 50.0 == lateness["faulty"].p99

    def test_of_an_event_claimed_ahead_is_what_its_node_measured(self, case):
        """Its claim was before the due time, so the time of the claim says nothing."""
        case.post("a", 1, delay_us=50_000, generated=True)
        case.ahead("a", 1, 53, due=51, early=20, late_us=1_500)
        assert 1.5 == accepted(case).lateness["healthy"].max


class TestLeave:
    """I17: a node that leaves releases each event that it has claimed and not started."""

    @staticmethod
    def leased(case, **how):
        """Record a claim, a leave, and a run on another node when the lease has ended."""
        steps = [post("a", 1), claim("a", 1, 100), leave(**{"begin": 90, "end": 110} | how)]
        tell(case, [*steps, run("a", 1, 6_105, p=OTHER, att=2, due=server_us(6_100))])

    def test_rejects_an_event_that_is_late_by_the_lease(self, case):
        """The other nodes had to wait for the end of a lease that its holder had given up."""
        self.leased(case)
        caught(case, "I17", "6000 ms late")

    @pytest.mark.parametrize("how", [{"timeout": 300}, {"end": None}, {"end": 95}])
    def test_accepts_it_of_a_leave_that_cannot_release_the_event(self, case, how):
        """A leave with a time-out, a leave that has not ended, and a leave before the claim."""
        self.leased(case, **how)
        assert "I17" not in case.check().broken

    def test_accepts_it_in_an_outage(self, case):
        """A node that cannot reach the server while it leaves can release nothing."""
        case.fault(FROZEN, 95, 105)
        self.leased(case)
        assert "I17" not in case.check().broken


class TestRollback:
    """A check that expects the server to lose acknowledged writes excuses only their loss."""

    @pytest.fixture
    def rolled_back(self, case):
        """A history with a failover that loses the last writes."""
        case.fault("F42", 1000, 1500)
        return case

    def test_excuses_a_post_shortly_before_the_failover(self, rolled_back):
        """The loss is still counted."""
        rolled_back.post("a", 1, 900)
        verdict = accepted(rolled_back, rollback=True)
        assert {"I2": 1} == verdict.excused
        assert 1 == verdict.counts["lost"]

    def test_rejects_the_loss_if_no_rollback_is_expected(self, rolled_back):
        """Only the options of a check tell whether the server may lose writes."""
        rolled_back.post("a", 1, 900)
        caught(rolled_back, "I2")

    def test_rejects_the_loss_of_a_post_long_before_the_failover(self, rolled_back):
        """A rollback loses the last writes, not old ones."""
        rolled_back.post("a", 1, -30_000)
        caught(rolled_back, "I2", rollback=True)

    def test_excuses_an_undone_cancel_confirm_and_replacement(self, rolled_back):
        """A rollback also undoes writes that removed or replaced an event."""
        case = rolled_back
        for n, id in enumerate(("cancelled", "confirmed", "replaced"), 1):
            case.post(id, n, -30_000, delay_us=30_900_000)
        case.cancel("cancelled", 950)
        case.post("replaced", 4, 950, delay_us=900_000_000)
        tok = case.run("confirmed", 2, 960)
        case.holder("confirm", 962, ("confirmed", 2, tok))
        case.run("cancelled", 1, 1600)
        case.run("confirmed", 2, 1600, p=OTHER)
        case.run("replaced", 3, 1610)
        verdict = accepted(case, rollback=True)
        assert {"I6", "I7", "I8", "I10", "I2", "I4"} >= set(verdict.excused)

    def test_excuses_every_loss_after_a_wipe(self, case):
        """FLUSHALL removes events however old they are."""
        case.fault("F21", 1000, 1001)
        case.post("a", 1, -30_000)
        accepted(case, rollback=True)

    def test_rejects_an_early_event(self, rolled_back):
        """I1: no rollback makes an event early."""
        rolled_back.post("a", 1, 5000, delay_us=900_000)
        rolled_back.run("a", 1, 5200)
        caught(rolled_back, "I1", rollback=True)


class TestReport:
    """The report that a person reads."""

    @pytest.fixture
    def broken(self, case):
        """A history with a fault, a failure, and a lost event."""
        case.say(RUNNER, 0, "phase", phase="faulty")
        case.fault(FROZEN, 0, 100)
        case.say(RUNNER, 200, "recovered", fault=FROZEN, ms=350)
        case.post("a", 1)
        case.run("a", 1, 10, ph="no")
        case.run("a", 1, 80, att=2)
        case.post("gone", 2, 5000)
        return case

    def test_table_is_aligned_and_names_figures_faults_and_violations(self, broken):
        """A reader finds each figure by its name, in one column."""
        text = as_text(broken.check())
        lines = [line.split() for line in text.splitlines()]
        for expected in (["lost", "1"], ["failed", "1"], ["unexplained", "0"], ["early", "0"]):
            assert expected in lines
        assert ["F22", "1", "1", "350.0", "350.0", "350.0"] in lines
        assert ["I2", "nothing", "lost", "1"] in lines
        ends = {len(line) for line in text.splitlines() if line.startswith(("posted", "lost"))}
        assert 1 == len(ends)

    def test_json_has_the_figures(self, broken):
        """Figures as JSON can be kept and compared."""
        figures = json.loads(as_json(broken.check()))
        assert figures["ok"] is False
        assert (2, 1) == (figures["counts"]["posted"], figures["counts"]["lost"])
        assert {"I2": 1} == figures["violations"]
        assert 350 == figures["recovery_ms"]["F22"]["p50"]

    def test_violation_shows_the_records_that_prove_it(self, broken):
        """A reader can judge a violation without searching the history."""
        text = str(broken.check())
        assert "I2 (nothing lost): 'gone'" in text
        assert "poster.10 post ok 'gone' n=2" in text

    def test_shows_a_few_of_many_violations_and_counts_all(self, case):
        """A hundred violations of one kind would hide one of another."""
        for n in range(100):
            case.post(str(n), n)
        verdict = case.check()
        assert 100 == verdict.broken["I2"]
        assert len(verdict.violations) < 50
        assert "I2: 100 violations in all" in str(verdict)

    def test_command_line_exits_with_1_after_a_violation(self, broken, capsys):
        """The command checks a kept history again; scripts read its exit code."""
        folder = broken.write()
        assert 1 == checker.main([str(folder)])
        out, err = capsys.readouterr()
        assert "posted" in out
        assert "nothing lost" in err
        assert 1 == checker.main([str(folder), "--json"])
        assert 1 == json.loads(capsys.readouterr().out)["counts"]["lost"]

    def test_raises_for_a_history_that_contradicts_itself(self, case):
        """Two posts of one id and serial are a fault of the recording: no verdict is possible."""
        case.post("a", 1)
        case.post("a", 1, 20)
        with pytest.raises(HistoryError):
            case.check()
