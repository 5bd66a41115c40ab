"""
The bugs that ``make mutants`` plants: a name, the change of text, and the tests that should fail.

Each change replaces an exact text. `test_mutants` fails if the library has changed so that a text
is not found exactly once; the mutant must then be adapted. ``docs/mutants.rst`` lists the names in
the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

_STORE = "tests/integration/test_store.py"
_DUTY = "tests/integration/test_roster.py"
_LAGGING = "tests/integration/test_lagging.py"
_AHEAD = "tests/integration/test_look_ahead.py"
_SCHEDULES = "tests/integration/test_schedules.py"
_HANDLERS = "tests/integration/test_handlers.py"
_LIFECYCLE = "tests/integration/test_lifecycle.py"
_MIDDLEWARE = "tests/integration/test_middleware.py"
_SLOW = "tests/integration/test_slow_connections.py"
_HOSTILE = "tests/integration/test_hostile.py"
_CLAIMER = "tests/unit/test_claimer.py"
_CYCLE = "tests/unit/test_claim_cycle.py"
_HEARTBEAT = "tests/unit/test_heartbeat.py"
_POOL = "tests/unit/test_handler_pool.py"
_DISPATCHER = "tests/unit/test_dispatcher.py"
_LEASES = "tests/unit/test_leases.py"
_RUNNER = "tests/unit/test_batch_runner.py"
_NEXT_CLAIM = "tests/unit/test_next_claim.py"
_LISTENER = "tests/unit/test_listener.py"
_SERVICE = "tests/unit/test_service.py"
_SUPERSEDED = "tests/unit/test_superseded.py"
_INTERRUPTIONS = "tests/unit/test_interruptions.py"
_OUTAGES = "tests/integration/test_outages.py"
_REFUSES = "tests/faults/test_server_refuses.py::TestAfterALostReply"
_CLUSTER = "tests/faults/test_availability.py::TestCluster"
_POSTING = "tests/integration/test_posting.py"
_READING = "tests/integration/test_reading.py"
_SNOOZE = "tests/integration/test_snooze_and_bury.py"
_MACHINE = "tests/chaos/test_machine.py"
_ORDERS = "tests/chaos/test_interleavings.py"
_CLAIM = "store/lua/claim.lua"
_GRANT = "store/lua/claim/grant.lua"
_CANDIDATES = "store/lua/claim/candidates.lua"
_JUDGE = "store/lua/parts/judge.lua"
_PICKLE = "tests/unit/test_pickle.py"
_TABLES = "tests/integration/test_new_tables.py"
_NONSENSE = "tests/unit/test_nonsense.py"
_WALKS = "tests/integration/test_walks.py"
_POST = "store/lua/post.lua"
_CANCELLING = "tests/integration/test_cancel_many.py"
_CLEAR = "tests/integration/test_clear.py"
_LETTERS = "tests/integration/test_dead_letters.py"
_UPDATE = "tests/integration/test_update.py"
_DEBOUNCE = "tests/integration/test_debounce.py"
_POST_NEW = "store/lua/post_new.lua"
_GENERATED = "tests/integration/test_post_new.py"
_SETTLE = "store/lua/parts/settle.lua"
_RECALL = "local done, stale = recall()"
_FORGETS = "recall()\nlocal done, stale"


@dataclass(frozen=True)
class Change:
    """Replaces one text in a file of the package by another."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A planted bug; *tests* are run in order until one fails."""

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


def _mutant(name: str, file: str, tests: str | tuple[str, ...], old: str, new: str) -> Mutant:
    several = (tests,) if isinstance(tests, str) else tests
    return Mutant(name, (Change(file, old, new),), several)


# The rows are laid out by hand: the formatter would give each argument a line.
# fmt: off
MUTANTS = [
    # ---------------------------------------------------------------------- tokens and leases
    _mutant("a confirm needs no token", _SETTLE, _STORE,
            "if held and held == ARGV[at + 2 * i - 1] and not seen[id] then",
            "if held and not seen[id] then"),
    _mutant("a retry needs no token", _SETTLE, _STORE,
            "if not held or held ~= token then",
            "if not held or (held ~= token and verdict ~= 'retry') then"),
    _mutant("a release needs no token", _SETTLE, (_STORE, _MACHINE),
            "if not held or held ~= token then",
            "if not held or (held ~= token and verdict ~= 'release') then"),
    _mutant("an extension needs no token", "store/lua/extend.lua", _STORE,
            "if held_token == token then", "if held_token then"),
    _mutant("a heartbeat renews a lost lease", "store/lua/extend.lua", _STORE,
            "letters[i] = '0'", "letters[i] = '1'"),
    _mutant("tokens go back with the clock", _GRANT, _STORE,
            "first_token = math.max(last_token + 1, NOW)", "first_token = NOW"),
    _mutant("an overtaken attempt releases events that are being handled",
            "store/lua/parts/replay.lua", (_STORE, _ORDERS),
            "if latest and not cancelled and (lease_passed", "if not cancelled and (lease_passed"),
    _mutant("a node relies on a lease for longer than its length",
            "engine/lease.py", (_LEASES, _ORDERS),
            "_TRUSTED_FRACTION = 0.9", "_TRUSTED_FRACTION = 1.5"),
    _mutant("two parties may settle one lease", "engine/lease.py", _LEASES,
            '        while (by := self._end.setdefault("by", end)) is not end:\n',
            '        while (by := self._end.setdefault("by", end)) is None:\n'),
    _mutant("a snooze counts as an attempt", _SETTLE, (_SNOOZE, _MACHINE),
            "release(id, attempt, digits(NOW + tonumber(wait)), 'snoozed')",
            "release(id, attempt + 1, digits(NOW + tonumber(wait)), 'snoozed')"),
    _mutant("a snooze needs no token", _SETTLE, (_SNOOZE, _MACHINE),
            "if not held or held ~= token then",
            "if not held or (held ~= token and verdict ~= 'snooze') then"),
    _mutant("each snooze counts as the first", "store/lua/parts/format.lua", (_SNOOZE, _MACHINE),
            " or string.match(head, ',z%d+([%l_]*)') == reason then", " then"),
    _mutant("a retry keeps the time of the first snooze", _SETTLE, (_SNOOZE, _MACHINE),
            "        body = without_snooze(body)\n", "        body = nil\n"),
    _mutant("a SkipRetry that names no event buries the batch", "engine/batch_runner.py", _SNOOZE,
            "            elif len(left) > 1:\n", "            elif not left:\n"),
    _mutant("a node does not learn that its event was cancelled", "store/lua/extend.lua",
            (_SNOOZE, _MACHINE),
            "(flags == '' or flags == 's') and '1' or 'c'", "'1'"),
    _mutant("dead letters that handlers make are not trimmed", "engine/claim_cycle.py", _SNOOZE,
            " or seat.leases.must_trim:\n", ":\n"),
    # --------------------------------------------------------------------------------- time
    _mutant("due times follow the client's clock",
            "store/script_client.py", "tests/faults/test_time.py",
            'return "" if self._now is None else str(self._now())',
            "return str(time.time_ns() // 1000 if self._now is None else self._now())"),
    _mutant("events are claimed a millisecond early", _CLAIM, (_STORE, _MACHINE),
            "local settled, settled_before\n",
            "local settled, settled_before\nahead = ahead + 1000\n"),
    _mutant("an event claimed ahead starts at once", "engine/lookahead.py", _DISPATCHER,
            "at = received_at + left / 1e6 if 0 < left <= self.ahead_us else received_at",
            "at = received_at"),
    _mutant("a lease is taken over before it has expired", _JUDGE, (_AHEAD, _MACHINE),
            "horizon or token or mark or reason", "horizon or mark or reason"),
    _mutant("an event with an id of the user's own is claimed ahead", _JUDGE, _AHEAD,
            "horizon or token or mark or reason",
            "horizon or token or mark == 's' or reason"),
    _mutant("a due event without a free thread is not released",
            "engine/dispatcher.py", _DISPATCHER,
            "            self._release(late)\n", "            pass\n"),
    _mutant("a node that leaves keeps the events that it claimed ahead",
            "engine/dispatcher.py", _DISPATCHER,
            "        self._leases.settle_as(self.lookahead.remove(), Verdict.RELEASE)\n", ""),
    _mutant("an event claimed after a released one starts before it",
            "engine/dispatcher.py", _DISPATCHER,
            "        if self._leases.in_order:\n            self._release_all()\n", ""),
    _mutant("an event that is on its way while another is released starts before it",
            "engine/dispatcher.py", _DISPATCHER,
            "released = self._leases.must_release_waiting and self._release_all()",
            "released = False"),
    _mutant("the only node of a namespace releases events to itself",
            "engine/dispatcher.py", (_DISPATCHER, _HANDLERS),
            "ahead.alone_patience > ahead.patience and self._seat.peers.is_alone()",
            "ahead.alone_patience < ahead.patience and self._seat.peers.is_alone()"),
    _mutant("a node counts as the only one although there are others",
            "store/lua/alone.lua", _STORE,
            "return others <= 0 and 1 or 0", "return 1"),
    _mutant("the only node of a paused namespace keeps events", "store/lua/alone.lua", _STORE,
            "if redis.call('HGET', SYS, 'paused') == '1' then return 0 end", ""),
    _mutant("an event that expired while it was kept starts", "engine/dispatcher.py", _DISPATCHER,
            "now > lease.event_expires_at or lease.lost(now)", "lease.lost(now)"),
    Mutant("a node that is told to leave during a claim keeps the claimed events",
           (Change("engine/claimer.py",
                   "if leaving:\n                    if self._done(abandoned):",
                   "if stopping.is_set():\n                    if self._done(abandoned):"),
            Change("engine/claimer.py", "unsettled or self._dispatcher.lookahead)", "unsettled)")),
           (_CLAIMER,)),
    Mutant("an event whose handler returns while its node ends is not confirmed",
           (Change("engine/claimer.py",
                   "        if self._dispatcher.pool.busy and not abandoned:\n",
                   "        waits = self._seat.leases.unsettled\n"
                   "        if self._dispatcher.pool.busy and not abandoned:\n"),
            Change("engine/claimer.py",
                   "unfinished or seat.leases.unsettled", "unfinished or waits")),
           (_CLAIMER,)),
    _mutant("the settlements of quick handlers wait for a slow one", "engine/claimer.py", _CLAIMER,
            "seat.next_claim_at = min(seat.next_claim_at, time.monotonic() + wait)", "pass"),
    _mutant("a node that lags claims as late as others", "engine/claim_cycle.py", _CYCLE,
            "                wait -= lead\n", "                pass\n"),
    _mutant("a node does not say that it lags", "engine/claim_cycle.py", _CYCLE,
            "request.lags = self._dispatcher.lag.late", "request.lags = False"),
    _mutant("an event that was claimed ahead starts late by the time of the script",
            "engine/claim_cycle.py", _CYCLE,
            "received_at - reply.script_us / 1e6", "received_at"),
    _mutant("an old event starts if its claim was sent while the post was under way",
            "timer/node.py", _CYCLE,
            "self._seat.superseded_ids.add(ids)\n        if self._dispatcher",
            "if self._dispatcher"),
    _mutant("no thread watches an event that is due before another", "engine/handler_pool.py",
            _POOL, "due < min(self._watched, default=math.inf):\n            self._inbox",
            "not self._watched:\n            self._inbox"),
    Mutant("times are rounded down",
           (Change("model/times.py", "return math.ceil(ms * 1000)", "return int(ms * 1000)"),
            Change("model/times.py", "us = value // MICROSECOND",
                   "us = value // MICROSECOND // 1000 * 1000")),
           ("tests/unit/test_model.py",)),
    _mutant("an extension shortens the lease of a running handler",
            "engine/lease.py", (_LEASES, _HANDLERS),
            "at_least=running)[0]", "at_least=False)[0]"),
    _mutant("the server lets an extension shorten a lease", "store/lua/extend.lua", _STORE,
            "if left > ends and left < 9e15 then ends = left end", ""),
    _mutant("a heartbeat undoes a concurrent extension", "engine/heartbeat.py", _HEARTBEAT,
            "                    self._renew([lease], longer)\n", "                    pass\n"),
    _mutant("leases are not renewed", "engine/heartbeat.py", (_HEARTBEAT, _HANDLERS),
            "if now < self.due:", "if now:"),
    _mutant("lost leases are renewed", "engine/leases.py", _HEARTBEAT,
            "each.settled or each.known_lost or ", "each.settled or "),
    _mutant("operations are remembered for ever", "store/lua/parts/session.lua", _STORE,
            "if math.abs(age) < WINDOW then", "if results_since then"),
    # -------------------------------------------------------------------------- repeated calls
    _mutant("a refusal after a lost reply is reported as definite",
            "store/script_client.py", _REFUSES,
            "if what is Failure.REFUSED and not maybe_done:", "if what is Failure.REFUSED:"),
    _mutant("requests sent to a hanging server of a cluster are forgotten",
            "store/connection/cluster.py",
            f"{_CLUSTER}::test_a_post_to_hung_servers_is_unknown_within_its_deadline",
            "self.sent = self._connection.sent", "self.sent = False"),
    _mutant("a repeated post is not recognised", _POST, _STORE,
            _RECALL, _FORGETS),
    _mutant("a repeated post without an id is not recognised", _POST_NEW, _STORE,
            _RECALL, _FORGETS),
    _mutant("a repeated cancel is not recognised", "store/lua/cancel.lua", _STORE,
            _RECALL, _FORGETS),
    _mutant("a repeated claim is not recognised", _CLAIM, _STORE,
            _RECALL, _FORGETS),
    _mutant("a repeated settlement is not recognised", "store/lua/settle.lua", _STORE,
            _RECALL, _FORGETS),
    _mutant("a repeated revive is not recognised", "store/lua/revive.lua", _STORE,
            _RECALL, _FORGETS),
    _mutant("an older operation that arrives late is executed",
            "store/lua/parts/session.lua", _STORE,
            "if tonumber(seq) > tonumber(operation_seq) then", "if false then"),
    _mutant("a claim without a reply is given up", "engine/pipeline.py", (_CYCLE, _ORDERS),
            "            reply = answer(read_late=read_late)\n        except BaseException:\n",
            "            reply = answer(read_late=read_late)\n        except BaseException:\n"
            "            self.request = None\n"),
    _mutant("a claim whose reply broke off is repeated with the same size",
            "engine/pipeline.py", (_CYCLE, _SLOW),
            "            self._capacity.bound(request)\n        return broke_off",
            "            pass\n        return broke_off"),
    _mutant("a claim that is too large for its node is not released",
            "store/lua/parts/replay.lua", _SLOW,
            "(lease_passed and lease_runs or not fits)", "lease_passed and lease_runs"),
    _mutant("payloads are loaded before they are measured", "store/lua/claim/bodies.lua", _SLOW,
            "if bytes > most_bytes and i > 1 then", "if bytes > most_bytes and i == #ids then"),
    _mutant("an event that is too large for a node blocks the events after it",
            "engine/capacity.py", (_CYCLE, "tests/faults/test_network.py"),
            "if too_large:", "if False:"),
    _mutant("a reply that arrives slowly is cut off",
            "store/connection/sockets.py", "tests/unit/test_connection.py",
            "if self._moving:", "if False:"),
    _mutant("the leases of one claim are trusted as long as those of the next",
            "engine/claim_cycle.py", _CYCLE,
            "seat.leases.grant(reply.claims, sent, ",
            "seat.leases.grant(reply.claims, seat.pipeline.sent, "),
    _mutant("an event that is replaced during its claim is delivered",
            "engine/dispatcher.py", _CYCLE,
            "            self._release_ids(gone)\n", "            pass\n"),
    _mutant("an event that is replaced before the reply of its claim is read is delivered",
            "engine/claim_cycle.py", _CYCLE,
            "        seat.superseded_ids.begin(seat.pipeline.seq + 1)\n", ""),
    _mutant("an event that is posted again during each claim never starts",
            "engine/superseded.py", _CYCLE, "        ids -= again\n", ""),
    _mutant("a node whose claims are refused remembers the id of each post",
            "engine/superseded.py", _SUPERSEDED,
            "            if len(self._ids) > _MOST_IDS:\n", "            if False:\n"),
    _mutant("a handler thread that becomes free during a claim is not noticed",
            "engine/claimer.py", _CLAIMER,
            "                self._thread_freed = True\n                self._bell.nudge()\n", ""),
    _mutant("a wake during a claim counts as answered by that claim",
            "engine/claim_cycle.py", _CYCLE,
            "(fresh or seconds <= 0)", "seconds <= 0"),
    _mutant("more events are claimed while claimed ones are waiting",
            "engine/batching.py", (_CYCLE, "tests/unit/test_batching.py"),
            "min(min(most, demand - claimed) - waiting, ", "min(most, demand - claimed, "),
    _mutant("free handler threads are not reported after a backlog",
            "engine/next_claim.py", (_NEXT_CLAIM, _CYCLE),
            " or (hears and not said_hears)", ""),
    _mutant("a claim whose reply cannot be read is not repeated",
            "engine/claim_cycle.py", _CYCLE,
            "            if not more:\n", "            if False:\n"),
    _mutant("after a release the next claim is as large as before",
            "engine/dispatcher.py", _DISPATCHER,
            "            self.batching.claimed_too_many()\n", ""),
    _mutant("more events are claimed while handlers are slow",
            "engine/batching.py", (_CYCLE, "tests/unit/test_batching.py"),
            " or took > MAX_ADVANCE_SECONDS:", ":"),
    # ---------------------------------------------------------------------------- lost events
    _mutant("an event is removed when it is claimed", "store/lua/claim/lease.lua", _STORE,
            "redis.call('ZADD', DUE, unpack(scores))",
            "for i = 2, #scores, 2 do redis.call('ZREM', DUE, scores[i]) end"),
    _mutant("a confirm removes the event that replaced the confirmed one", _POST, _STORE,
            "    redis.call('HDEL', LEASE, unpack(ids))\n", ""),
    _mutant("a post with the id of a running event is dropped", _POST, (_STORE, _MACHINE),
            "return true, not token and tonumber(score)", "return true, tonumber(score)"),
    _mutant("two posts of one id with different policies change their order",
            "timer/posting.py", _POSTING,
            "if entry.id in ids or (chunk is not None and not chunk.has_room_for(entry)):",
            "if chunk is not None and (entry in chunk.entries or not chunk.has_room_for(entry)):"),
    _mutant("a reading call creates a namespace", "store/namespace.py", _READING,
            'create=header(verb).kind != "reads"', "create=True"),
    _mutant("a post that kept an existing event returns stored",
            "store/store.py", (_STORE, _MACHINE),
            'if mark == ord("0")))', 'if mark == ord("2")))'),
    _mutant("a generated id replaces an event that has it by chance", _POST_NEW, _GENERATED,
            "redis.pcall('ZADD', DUE, 'NX', digits(earliest_posted), id)",
            "redis.pcall('ZADD', DUE, digits(earliest_posted), id)"),
    _mutant("a replacement keeps the old payload", _POST, (_STORE, _MACHINE),
            "redis.call('HSET', BODY, unpack(bodies))",
            "for i = 1, #bodies, 2 do\n    if redis.call('HEXISTS', BODY, bodies[i]) == 0 then\n"
            "      redis.call('HSET', BODY, bodies[i], bodies[i + 1])\n    end\n  end"),
    _mutant("an event that cannot be decoded drops the rest of its batch",
            "engine/leases.py", (_LEASES, _HOSTILE),
            "                lease.reserve(Verdict.BURY)\n", "                raise\n"),
    _mutant("a dead letter loses its payload", "store/lua/parts/format.lua", _STORE,
            "attempt .. ',' .. reason .. ',' .. #err .. '|' .. err .. body",
            "attempt .. ',' .. reason .. ',' .. #err .. '|' .. err"),
    _mutant("a dead letter forgets on its import that the id was chosen",
            "cli/transfer/lines.py", "tests/acceptance/test_cli_transfer.py",
            "text, chosen_id=chosen_id)", "text)"),
    _mutant("the newest dead letters are trimmed", "store/lua/trim.lua", (_STORE, _MACHINE),
            "ids = redis.call('ZRANGE', DIED, 0, math.min(over, MOST) - 1)",
            "ids = redis.call('ZRANGE', DIED, -math.min(over, MOST), -1)"),
    _mutant("an event whose handler raised is confirmed", "engine/batch_runner.py", _RUNNER,
            "            elif raised:\n                self._fail(batch, raised)\n", ""),
    _mutant("the events of a failed handler thread are kept for ever",
            "engine/batch_runner.py", (_RUNNER, "tests/faults/test_threads.py"),
            "            self._retry_unsettled(batch, e)\n            raise\n",
            "            raise\n"),
    _mutant("a post is half written when memory is full",
            _POST, (_STORE, _HOSTILE, "tests/faults/test_server_refuses.py"),
            "  local added = redis.call('ZADD', DUE, unpack(scores))\n",
            "  redis.call('HDEL', TRIES, ids[1])\n"
            "  local added = redis.call('ZADD', DUE, unpack(scores))\n"),
    _mutant("a post without an id writes before it has checked the types of the keys",
            _POST_NEW, _GENERATED,
            "    redis.call('ZREM', DUE, unpack(ids))\n", ""),
    _mutant("foreign types are not checked", "store/lua/parts/types.lua", _STORE,
            "if found ~= kind then", "if false then"),
    _mutant("rollbacks are not detected",
            "store/rollback.py",
            ("tests/integration/test_rollback.py", "tests/faults/test_rollbacks.py"),
            "less = found.token < before.token or posted < before.posted", "less = False"),
    # ---------------------------------------------------------------------------- payloads
    _mutant("the script decodes and encodes payloads",
            _GRANT, ("tests/acceptance/test_guarantees_payload.py", _MACHINE),
            "reply[#reply + 1] = head .. length .. ',' .. digits(#body) .. '|' .. id .. body",
            "local function again(head, payload)\n"
            "        local fine, read = pcall(cjson.decode, payload)\n"
            "        return fine and head .. cjson.encode(read) or head .. payload\n      end\n"
            "      body = string.gsub(body, '^([^|]*|)(.*)$', again)\n"
            "      reply[#reply + 1] = head .. length .. ',' .. digits(#body) .. '|' .. id .. "
            "body"),
    _mutant("a payload is decoded once for all attempts",
            "model/payload.py", (_HANDLERS, "tests/unit/test_model.py"),
            "def decode(", "@__import__('functools').cache\ndef decode("),
    # ------------------------------------------------------------------------------ attempts
    _mutant("a lost lease is not counted", _GRANT, _STORE,
            "digits(token), digits(attempt + 1), score",
            "digits(token), digits(old_token and attempt or attempt + 1), score"),
    _mutant("one retry too many after a lost lease", _JUDGE, _STORE,
            "elseif token and attempt > max_retries then",
            "elseif token and attempt > max_retries + 1 then"),
    _mutant("one retry too few after a failure", _SETTLE, _STORE,
            "if attempt > (max_retries or 0) then", "if attempt >= (max_retries or 0) then"),
    _mutant("a release counts as an attempt", "store/lua/parts/events.lua", _STORE,
            "if attempt > 1 then redis.call('HSET', TRIES, id, attempt - 1) end",
            "redis.call('HSET', TRIES, id, attempt)"),
    _mutant("a node that leaves releases nothing",
            "engine/dispatcher.py", (_DISPATCHER, _LIFECYCLE),
            "            self._leases.settle_as(batch, Verdict.RELEASE)\n"
            "            self.pool.thread_is_free()\n",
            "            self.pool.thread_is_free()\n"),
    _mutant("an expired event is delivered", _JUDGE, _STORE,
            "elseif expires and expires <= NOW then", "elseif expires and expires < 0 then"),
    # ------------------------------------------------------------------------------- cancel
    _mutant("a cancelled event is retried", _SETTLE, _STORE,
            "    elseif cancelled then\n", "    elseif cancelled and verdict == 'bury' then\n"),
    _mutant("the cancel of a running event returns CANCELLED", "store/lua/cancel.lua", _STORE,
            "letter = 'f'", "letter = 'c'"),
    # ----------------------------------------------------------------- wakes, polls and duty
    _mutant("a node relies on wakes instead of the poll", "engine/next_claim.py", _NEXT_CLAIM,
            "min(min(poll, _LONGEST_WAIT) * jitter, echo)", "min(_LONGEST_WAIT, echo)"),
    _mutant("the poll interval is stretched", "engine/next_claim.py", _NEXT_CLAIM,
            "min(min(poll, _LONGEST_WAIT) * jitter, echo)",
            "min(min(poll, _LONGEST_WAIT) * 8, echo)"),
    _mutant("the content of a wake is used",
            "store/connection/subscription.py",
            ("tests/integration/test_hostile_wakes.py", _OUTAGES, _LIFECYCLE),
            "heard.append(reply[1].decode())", "heard.append(reply[2].decode())"),
    Mutant("no claim follows a subscription",
           (Change("engine/listener.py",
                   "                self.tried.set()\n                self._bell.ring()\n",
                   "                self.tried.set()\n"),
            Change("engine/listener.py",
                   "                self._contact.hearing_changed(None, None)\n"
                   "                self._bell.ring()\n",
                   "                self._contact.hearing_changed(None, None)\n")),
           (_LISTENER,)),
    _mutant("a deaf node is not noticed", "engine/listener.py", _LISTENER,
            '                    raise Deaf("the subscription does not hear its own echo")\n',
            "                    self._echo_sent = None\n"),
    _mutant("a silent node stays on duty", "store/lua/parts/wake.lua", _DUTY,
            "if claims_at and NOW > claims_at + GRACE then", "if false then"),
    _mutant("a node that begins to lag keeps its place", "store/lua/claim/roster.lua",
            (_LAGGING, _MACHINE), "if place and lags == (place >= BEHIND) then", "if place then"),
    _mutant("a node that is on time again stays behind", "store/lua/claim/roster.lua",
            (_LAGGING, _MACHINE), "'LT', now, node)", "'NX', now, node)"),
    _mutant("a node on time leaves the duty to nodes that lag before its event is due",
            "store/lua/claim/roster.lua", _LAGGING,
            "not other or other_lags and not lags)", "not other)"),
    _mutant("a node that lags takes what a node on time is expected for", _CANDIDATES,
            (_LAGGING, _MACHINE), "expected, ahead, horizon = 1, 0, now", ""),
    _mutant("an event is kept for a node that lags", "store/lua/claim/presence.lua",
            (_LAGGING, _MACHINE),
            "redis.call('ZREM', EXPECTED, '', unpack(redis.call('ZRANGE', EXPECTED, '0', '99')))",
            ""),
    _mutant("nodes that lag are woken beside a node on time", "store/lua/parts/wake.lua", _LAGGING,
            "if lags and on_time then return end", ""),
    _mutant("a node that lags waits for a silent node", _CANDIDATES, (_LAGGING, _MACHINE),
            "and NOW <= claims_at + GRACE\n", "\n"),
    _mutant("a node stays expected after its claim",
            "store/lua/claim/presence.lua", (_DUTY, _MACHINE),
            "\nredis.call('ZREM', EXPECTED, node)\n", "\nredis.call('ZREM', EXPECTED, '')\n"),
    _mutant("a node with free threads waits although due events are kept for no other node",
            "store/lua/claim/wait.lua", _DUTY,
            "and (#ids > claimed + not_yet or expected == 0)", "and #ids > claimed + not_yet"),
    _mutant("a paused namespace delivers events", _CANDIDATES, (_STORE, _DUTY, _MACHINE),
            "paused, last_token = foreign or pause == '1',", "paused, last_token = foreign,"),
    # ------------------------------------------------------------------------------ schedules
    _mutant("the next occurrence is counted from now",
            "store/lua/parts/schedule/next.lua", _SCHEDULES,
            "after = anchor + (math.floor((tonumber(nominal) - anchor) / every) + 1) * every",
            "after = NOW + every"),
    _mutant("occurrences overlap in spite of the overlap policy",
            "store/lua/parts/schedule/due.lua", _SCHEDULES,
            "if running_until and state.overlap == 'q' then", "if false then"),
    _mutant("a schedule with a count does not end",
            "store/lua/parts/schedule/control.lua", _SCHEDULES,
            "state.left = digits(math.max(0, tonumber(state.left) - 1))", ""),
    _mutant("a schedule that is declared again repeats its past",
            "store/lua/parts/schedule/control.lua", _SCHEDULES,
            "    if added == 0 then\n", "    if false then\n"),
    _mutant("new time zone tables are not applied", "store/lua/declare.lua", _TABLES,
            "if retime(schedule, old, times, final) then result = 'changed' end", ""),
    _mutant("an occurrence comes by the old and by the new time zone table",
            "store/lua/parts/retime.lua", _TABLES,
            "if belongs_to(before, known[1]) then table.remove(fresh, 1) end", ""),
    _mutant("new time zone tables undo a user's reschedule", "store/lua/parts/retime.lua", _TABLES,
            "if moved and (usual or state.paused == '1') then", "if moved then"),
    # ---------------------------------------------------------------------------- iterations
    _mutant("an iteration does not stop at the end that it saw first",
            "store/lua/upcoming.lua", _WALKS,
            "if comes_after(score, id, end_score, end_id) then break end", ""),
    _mutant("an iteration yields events that its loop has moved",
            "store/walks.py", (_WALKS, _MACHINE),
            "if entry.id in self.skipped or entry.id not in", "if entry.id not in"),
    _mutant("an iteration yields occurrence after occurrence", "store/walks.py", _WALKS,
            "if entry.schedule in self.schedules:", "if False:"),
    _mutant("a page is not limited in bytes", "store/lua/upcoming.lua", _WALKS,
            "if i == limit or bytes > MOST_PAGE then", "if i == limit then"),
    _mutant("a refused post hides an event from an iteration", "store/store.py", _WALKS,
            'stored_marks = b"" if isinstance(e, OutcomeUnknown) else b"x"', 'stored_marks = b""'),
    _mutant("an iterator that is kept remembers every post", "store/walks.py", _WALKS,
            "if us >= self.next_page_at - self._spare:", "if us:"),
    _mutant("a move whose reply was late is visited again", "store/walks.py", _WALKS,
            "self._spare = _SPARE_US + timeout_us", "self._spare = _SPARE_US"),
    _mutant("a node that describes itself hides a rollback",
            "store/lua/report.lua", "tests/integration/test_rollback.py",
            "if joined then redis.call('HSET', NODES",
            "redis.call('ZADD', ALIVE, NOW, node)\nif joined then redis.call('HSET', NODES"),
    _mutant("the same time zone table changes a schedule at each declaration",
            "store/lua/parts/retime.lua", _TABLES,
            "  if coming == pending\n    and written(", "  if false\n    and written("),
    _mutant("redirections are followed with redis-py only",
            "store/connection/cluster.py", "tests/unit/test_cluster.py",
            'and not str(error).startswith("MOVED "):', "and True:"),
    _mutant("each call of a cancel has a deadline of its own", "store/store.py", _SCHEDULES,
            "self.schedules.add_times(schedule, until)", "self.schedules.add_times(schedule)"),
    # --------------------------------------------------------------------------- foreign data
    _mutant("events are kept for unregistered nodes", _CANDIDATES, _DUTY,
            "if registration then expected = expected + 1 end", "expected = expected + 1"),
    _mutant("a malformed reply raises the exception of its parser",
            "store/reply_checks.py", _NONSENSE,
            "except _MALFORMED as e:", "except ArithmeticError as e:"),
    _mutant("a cancel asks for more nominal times for ever",
            "store/schedules.py", "tests/integration/test_hostile_writers.py",
            "        if spec.cron is None:\n            raise NamespaceCorrupt(",
            "        if spec.cron is None:\n            return False\n            raise _("),
    # -------------------------------------------------------------------------------- pickles
    _mutant("an error is unpickled by its constructor", "errors.py", _PICKLE,
            "return copyreg.__newobj__, (type(self), *self.args), state",
            "return type(self), self.args, state"),
    _mutant("a copy of an event takes the lease with it", "model/event.py", _PICKLE,
            "return new, (type(self),), self._fields(), None, iter(self.items())",
            "return Event.__copy__, (self,)"),
    _mutant("a pickle names the module of a class", "naming.py", f"{_PICKLE}::TestNames",
            'kind.__module__ = "dtimer"', "kind.__module__ += ''"),
    # --------------------------------------------------------------------------------- calls
    _mutant("a script that the server has forgotten is not sent again",
            "store/calls.py", (_OUTAGES, _STORE),
            "        if classify(e, connection.sent) is not Failure.NO_SCRIPT:\n"
            "            raise\n    # Nothing",
            "        raise\n    # Nothing"),
    _mutant("errors of the client library reach the caller",
            "store/script_client.py", ("tests/integration/test_clients.py", _OUTAGES),
            "raise self._deadline_error(script.doing, e, maybe_done) from e", "raise"),
    _mutant("a call goes on past its deadline",
            "store/script_client.py", "tests/unit/test_script_client.py",
            "left < pause + one_try / 2:", "left < -2:"),
    _mutant("an unknown outcome is reported as a failure",
            "store/script_client.py", "tests/unit/test_script_client.py",
            "        if maybe_done:\n", "        if False:\n"),
    _mutant("an error text contains the password",
            "store/script_client.py", "tests/integration/test_secrets.py",
            'return StoreError(f"Redis at {place} could not be reached to {doing} {within}: '
            '{error}")',
            'return StoreError(f"no way to {doing}: {vars(self._source)} "\n'
            '            f"{getattr(getattr(self._source, \'_pool\', 0), \'connection_kwargs\', '
            '0)}")'),
    # ------------------------------------------------------------------- processes, threads
    _mutant("a fork is not noticed", "timer/fork.py", "tests/integration/test_processes.py",
            "    os.register_at_fork(after_in_child=_after_fork_in_child)\n", "    pass\n"),
    _mutant("SystemExit ends a thread", "engine/service.py", _SERVICE,
            "        except BaseException as e:\n            # Also SystemExit",
            "        except Exception as e:\n            # Also SystemExit"),
    _mutant("a failed thread is not restarted", "engine/service.py", _SERVICE,
            "            self._note(e)\n            return last\n", "            self._note(e)\n"),
    _mutant("the listener ends with its subscription", "engine/listener.py", _LISTENER,
            "                self._lost(e)\n                if time",
            "                self._lost(e)\n                return\n                if time"),
    # ----------------------------------------------------------------------- debounces
    _mutant("each post of a debounce begins a new wait", _POST, _DEBOUNCE,
            "  return first and math.min(first, NOW) or NOW\n", "  return NOW\n"),
    _mutant("an event that waits for a retry continues its debounce", _POST, _DEBOUNCE,
            "    and not redis.call('HGET', TRIES, id)\n", ""),
    _mutant("a revived event continues its debounce", "store/lua/parts/format.lua", _DEBOUNCE,
            "  return (string.gsub(body, '^([^|]*),f%d+([,|])', '%1%2', 1))\n",
            "  return body\n"),
    _mutant("an id of new_id counts as an id of the user's own", "timer/posting.py",
            "tests/integration/test_new_id.py",
            "chosen_id=not is_for_caller(id)", "chosen_id=True"),
    # ------------------------------------------------------------------------ updates
    _mutant("an update changes an event in flight", "store/lua/update.lua", _UPDATE,
            " and not parse_lease(redis.call('HGET', LEASE, id))\n", "\n"),
    _mutant("a repeated update undoes a later one", "store/lua/update.lua", _UPDATE,
            _RECALL, _FORGETS),
    # ------------------------------------------------------------------- many events at a time
    _mutant("events after an occurrence that runs short are not cancelled",
            "store/lua/cancel.lua", _CANCELLING,
            "      letter = 's'\n", "      return 's'\n"),
    _mutant("an event that was cancelled by another script call is counted as cancelled",
            "store/replies.py", _CANCELLING,
            'ord("n"): Cancelled.NOT_FOUND', 'ord("n"): Cancelled.CANCELLED'),
    _mutant("dead letters with another reason are revived", "store/lua/revive.lua", _LETTERS,
            "if letter and (reason == '' or reason_of_letter(letter) == reason) then",
            "if letter then"),
    _mutant("a repeated drop deletes a later dead letter", "store/lua/drop.lua", _LETTERS,
            _RECALL, _FORGETS),
    _mutant("a repeated clear deletes later events", "store/lua/clear.lua", _CLEAR,
            _RECALL, _FORGETS),
    _mutant("the leases of deleted events remain", "store/lua/clear.lua", _CLEAR,
            "redis.call('UNLINK', DUE, BODY, LEASE,", "redis.call('UNLINK', DUE, BODY,"),
    # ----------------------------------------------------------------- signal handlers and forks
    _mutant("a signal handler's join starts a second node within a join",
            "timer/membership.py", "tests/integration/test_interruptions.py",
            "                if self.joining_here:\n                    return\n", ""),
    _mutant("a child counts a leave of its parent", "timer/membership.py",
            "tests/integration/test_processes.py",
            "        self._joining = threading.RLock()\n        node, self.node",
            "        self._by_thread = threading.local()\n"
            "        self._joining = threading.RLock()\n        node, self.node"),
    _mutant("a leave within a join is lost",
            "timer/node.py", "tests/integration/test_interruptions.py",
            "        self.leaving = True\n        if self._starter is not None:\n",
            "        self.leaving = self._starter is None\n        if False:\n"),
    _mutant("a ring within a ring is left to the interrupted one", "engine/bell.py", _INTERRUPTIONS,
            "        if (pipe := self._pipe) is not None:\n            self._rung = True\n",
            "        if not self._rung and (pipe := self._pipe) is not None:\n"
            "            self._rung = True\n"),
    _mutant("an interrupted reader stays registered", "engine/readers.py", _INTERRUPTIONS,
            "        reading.abandoned = True\n        self._withdraw(reading)\n",
            "        reading.abandoned = True\n"),
    _mutant("the key of an interrupted reader counts as an attempt",
            "engine/readers.py", _INTERRUPTIONS,
            "        if reading.abandoned:\n            return None\n", ""),
    _mutant("a settlement added while others are collected is lost",
            "engine/leases.py", _INTERRUPTIONS,
            "        del self._settlements[: len(taken)]\n", "        self._settlements.clear()\n"),
    _mutant("a forked child goes on after its listener has returned",
            "timer/emitter.py", "tests/integration/test_processes.py",
            "            fork.end_child_of_listener(pid, None)\n            if result",
            "            if result"),
    _mutant("a middleware that cannot commit confirms the event",
            "timer/middleware.py", _MIDDLEWARE,
            "        replaced.catch(_cut(e, 1), context)\n        return replaced\n",
            "        return raised\n"),
    _mutant("a middleware suppresses an exception", "timer/middleware.py", _MIDDLEWARE,
            "        manager.__exit__(None if error is None else type(error), error, trace)\n",
            "        if manager.__exit__(error and type(error), error, trace):\n"
            "            return Raised()\n"),
    _mutant("listeners of 'error' run outside the context of the handler",
            "engine/callbacks.py", _MIDDLEWARE,
            "            call = () if context is None else (context.run, self._emitter.emit)\n",
            "            call = ()\n"),
    _mutant("a forked child keeps the connections of its parent's calls",
            "store/script_client.py", "tests/integration/test_processes.py",
            "                connection.close()\n        self._begin()\n",
            "                pass\n        self._begin()\n"),
    _mutant("the exception of a signal handler counts as a failed attempt",
            "store/script_client.py", "tests/faults/test_transport_process.py",
            "if (wish := of_signal_handler(e)) is not None:",
            "if (wish := of_signal_handler(e)) is not None and not isinstance(e, Exception):"),
    _mutant("the threads of a node write to the log themselves",
            "log.py", "tests/integration/test_log.py",
            "        if not self._call(self._write, message, arguments, ids, time.time()):\n"
            "            next(self._drops)\n            self._dropped = True\n",
            "        self._write(message, arguments, ids, time.time())\n"),
    _mutant("a slow log drops the announcements of a node",
            "engine/callbacks.py", "tests/unit/test_log.py",
            "_MOST_CALLS = _MOST // 2", "_MOST_CALLS = _MOST"),
    _mutant("a lost lease is logged each time that it is found",
            "engine/leases.py", "tests/unit/test_log.py",
            "            lease.logged_lost = True\n", ""),
    _mutant("an exception of a logging handler fails the call that logs",
            "log.py", "tests/unit/test_log.py",
            "        return e\n    return None\n", "        raise\n    return None\n"),
    _mutant("a node that leaves while its join ends is not logged as joined",
            "log.py", "tests/unit/test_log.py",
            "        if not self._joined:\n            self.add(JOINED)\n", ""),
]
# fmt: on
