"""Convert between the objects of the model and the arguments and replies of the scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from dtimer.errors import NamespaceCorrupt
from dtimer.model.claims import Claim, ClaimReply, Outcome, Renewal, Settlement, Verdict
from dtimer.model.codecs import PLAIN, Coder
from dtimer.model.outcomes import Declared
from dtimer.model.records import Cancelled, Record, Schedule, State
from dtimer.store.format import (
    open_payload,
    read_body,
    read_claim,
    read_letter,
    read_schedule_state,
    read_spec,
    text,
)
from dtimer.store.rollback import NamespaceState

_CLAIM = re.compile(rb"(\d+),(\d+),(\d+),(\d+),(\d+)\|")
_DECLARED = {ord(d.value[0]): d for d in (Declared.NEW, Declared.CHANGED, Declared.SAME)}
_CANCELLED = {
    ord("c"): Cancelled.CANCELLED,
    ord("f"): Cancelled.IN_FLIGHT,
    ord("n"): Cancelled.NOT_FOUND,
    ord("s"): None,
}
_RESULTS = {ord(result.value): result for result in Outcome}
_RENEWALS = {ord(renewal.value): renewal for renewal in Renewal}


def integer(raw: bytes) -> int:
    """Read a number, such as a score; return 0 for any other text, which dtimer did not write."""
    try:
        return int(float(raw))
    except (ValueError, OverflowError):
        return 0


def read_posted(reply: bytes, count: int) -> tuple[bytes, int | None, str]:
    """
    Read the reply to a post, with *count* digits unless nothing was stored.

    Returns:
        A digit for each event (one for all with generated ids): 1 if it was stored, else 0. Or
        ``x`` if nothing was, because an id existed. Then the total number of posts, and that id.
    """
    digits, total, id = reply.split(b";", 2)
    if (len(digits) != count or digits.strip(b"01")) and digits != b"x":
        raise ValueError(f"expected {count} digits, each 0 or 1")
    return digits, int(total) if total else None, text(id) if id else ""


def settlement_arguments(settlements: Iterable[Settlement]) -> tuple[list[str], list[int]]:
    """
    Return settlements as arguments of a script, which expects the confirmations first.

    Returns:
        The arguments; and, for each outcome in the reply, in order, the index of its settlement.
    """
    confirms: list[str] = []
    others: list[str] = []
    first: list[int] = []
    last: list[int] = []
    for index, s in enumerate(settlements):
        if s.verdict is Verdict.CONFIRM:
            confirms += (s.id, str(s.token))
            first.append(index)
        else:
            wait = s.reason if s.verdict is Verdict.BURY else str(s.wait_us)
            note = s.reason if s.verdict is Verdict.SNOOZE else s.error
            others += (s.id, str(s.token), s.verdict.value, wait, note)
            last.append(index)
    return [str(len(first)), str(len(last)), *confirms, *others], first + last


def read_results(characters: bytes, order: Sequence[int]) -> list[Outcome]:
    """Return the outcomes in a reply in the order of the settlements."""
    results = [Outcome.STALE] * len(order)
    for character, index in zip(characters, order, strict=True):
        results[index] = _RESULTS[character]
    return results


def read_renewals(characters: bytes, count: int) -> list[Renewal]:
    """Return the outcomes of the renewals of *count* leases."""
    renewals = [_RENEWALS[character] for character in characters]
    if len(renewals) != count:
        raise ValueError(f"expected {count} characters, one for each lease")
    return renewals


def _read_claims(reply: bytes, at: int, count: int, now: int) -> tuple[list[Claim], int]:
    """Read *count* claims, from the offset *at*; return them and the offset of their end."""
    claims: list[Claim] = []
    for _ in range(count):
        mark = _CLAIM.match(reply, at)
        if mark is None:
            raise ValueError("the reply to a claim is truncated")
        token, attempt, due, id_length, body_length = map(int, mark.groups())
        start = mark.end()
        end = start + id_length
        raw = reply[start:end]
        id = raw.decode() if raw.isascii() else text(raw)
        at = end + body_length
        claims.append(
            read_claim(reply, end, at, id=id, token=token, attempt=attempt, due=due, now=now)
        )
    return claims, at


class ClaimSequence(Sequence[Claim]):
    """
    The claims in a reply, parsed on first access.

    Their number is known without parsing. So the caller can send the next request first, and parse
    these claims while it is under way.
    """

    def __init__(self, reply: bytes, at: int, count: int, now: int) -> None:
        self._reply = reply
        self._at = at
        self._count = count
        self._now = now
        self._read: list[Claim] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Claim: ...
    @overload
    def __getitem__(self, index: slice) -> list[Claim]: ...
    def __getitem__(self, index: int | slice) -> Claim | list[Claim]:
        return self.read()[0][index]

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.read()[0])

    def read(self) -> tuple[list[Claim], int]:
        """Return the claims, and the offset of their end in the reply."""
        if self._read is None:
            # Assign both only on success, so that a call after a failure starts from the beginning.
            self._read, self._at = _read_claims(self._reply, self._at, self._count, self._now)
        return self._read, self._at


def _last_token(reply: bytes, at: int, count: int) -> int:
    """Return the highest token of the claims, or slightly less if the reply omits some of them."""
    mark = _CLAIM.match(reply, at) if count else None
    return int(mark[1]) + count - 1 if mark else 0


def _read_text(reply: bytes, at: int) -> tuple[str, int]:
    """Read the text at the offset *at*; return it and the offset of its end."""
    colon = reply.index(b":", at)
    end = colon + 1 + int(reply[at:colon])
    return text(reply[colon + 1 : end]), end


def _maybe(raw: bytes) -> int | None:
    """Read an optional number; return None if it is missing or dtimer cannot have written it."""
    return int(raw) if raw.isdigit() and len(raw) < 18 else None


def read_namespace_state(reply: Sequence[Any]) -> NamespaceState:
    """Read the state of a namespace, from the reply to opening it."""
    time, _, born, token, posted, removed = reply
    now = _maybe(time)
    if now is None:
        # A longer number may be a time after the year 9999, which datetime cannot represent.
        raise ValueError("the server's time is not a valid number")
    return NamespaceState(now, text(born), _maybe(token) or 0, _maybe(posted), _maybe(removed))


def read_claim_reply(
    reply: bytes,
    order: Sequence[int],
    received_at: float | None = None,
    ended_us: int | None = None,
) -> ClaimReply:
    """
    Read the reply to a claim, which arrived at *received_at*, on the monotonic clock.

    *ended_us* is the server's time after the script, if it is known.

    An invalid body raises no error here: decoding its payload fails later.
    """
    at = reply.index(b"|")
    head = reply[:at].split(b";")
    at += 1
    now, wait, buried, short = int(head[0]), int(head[1]), int(head[8]), int(head[9])
    count = int(head[7])
    claims = ClaimSequence(reply, at, count, now)
    token = _last_token(reply, at, count)
    rest: list[str] = []
    if buried or short:
        _, at = claims.read()
        for _ in range(2 * buried + short):
            word, at = _read_text(reply, at)
            rest.append(word)
    return ClaimReply(
        now_us=now,
        wait_us=None if wait < 0 else wait,
        known=head[2] == b"1",
        results=read_results(head[3], order),
        claims=claims,
        token=token,
        buried=[(rest[2 * i], rest[2 * i + 1]) for i in range(buried)],
        short=rest[2 * buried :],
        heard=_maybe(head[4]),
        before=_maybe(head[5]),
        posted=_maybe(head[6]),
        received_at=received_at,
        script_us=max(0, ended_us - now) if ended_us is not None else 0,
    )


def read_record(id: str, reply: Sequence[Any], coder: Coder = PLAIN) -> Record | None:
    """Read the reply to a peek."""
    if not reply:
        return None
    state, due, attempt, raw = State(text(reply[0])), integer(reply[1]), reply[2], reply[3]
    if state is State.DEAD:
        letter = read_letter(id, due, raw, coder)
        return _record(id, letter.raw, letter.died, state, letter.attempt, coder=coder)
    return _record(id, raw, due / 1000, state, integer(attempt), coder=coder)


def _record(id: str, raw: bytes, due: float, state: State, attempt: int, *, coder: Coder) -> Record:
    body = read_body(raw)
    if body is None:
        return Record(id, None, due, state, attempt)
    expires = None if body.expires_us is None else body.expires_us / 1000
    event, sealed = open_payload(body.payload, coder)
    return Record(id, event, due, state, attempt, body.max_retries, expires, sealed)


def read_cancelled(reply: bytes, count: int) -> list[Cancelled | None]:
    """
    Read the outcomes of cancelling *count* events.

    None is for an occurrence that was not cancelled, because the next one is not known yet.
    """
    if len(reply) != count:
        raise ValueError(f"expected {count} letters, one for each event")
    return [_CANCELLED[letter] for letter in reply]


def read_stored_schedule(reply: Sequence[Any]) -> tuple[bytes, bytes, dict[str, str], bool] | None:
    """
    Read a stored schedule.

    Returns:
        The definition, the template of its occurrences (max_retries and payload), the state, and
        True if the state is readable. None if the schedule does not exist.
    """
    if not reply:
        return None
    definition, template, schedule_state, _, readable = reply
    return definition, template, read_schedule_state(schedule_state), bool(readable)


class Declaring(NamedTuple):
    """
    The reply to a declaration of schedules.

    ``outcomes`` has the outcome of each schedule, and ``removed`` the names of those that their
    owner no longer declares. ``lower_than`` is the recorded version of the owner if it is higher:
    nothing was done then. ``behind`` is the position of a schedule whose next times are all before
    the last claimed occurrence, and that time in µs: later times must be sent.
    """

    outcomes: list[Declared]
    removed: list[str]
    lower_than: str | None = None
    behind: tuple[int, int] | None = None


def read_declaring(count: int, reply: bytes) -> Declaring:
    """Read the reply to a declaration of *count* schedules."""
    kind, _, rest = reply.partition(b";")
    if kind == b"lower":
        return Declaring([], [], lower_than=text(rest))
    if kind == b"behind":
        position, latest = map(integer, rest.split(b";"))
        if not 1 <= position <= count:
            raise ValueError("the position is out of range")
        return Declaring([], [], behind=(position - 1, latest))
    letters, _, names = rest.partition(b";")
    outcomes = [_DECLARED[letter] for letter in letters]
    if kind != b"done" or len(outcomes) != count:
        raise ValueError("unknown outcome of a declaration")
    removed, at = [], 0
    while at < len(names):
        name, end = _read_text(names, at)
        if end <= at:
            raise ValueError("a name has a negative length")
        removed.append(name)
        at = end
    return Declaring(outcomes, removed)


def read_schedule(id: str, reply: Sequence[Any], coder: Coder = PLAIN) -> Schedule | None:
    """
    Read the reply to a look-up of a schedule.

    Raises:
        NamespaceCorrupt: A part of the schedule is not in the form that dtimer writes.
    """
    if not reply:
        return None
    spec = read_spec(id, reply[0], reply[1])
    schedule_state = read_schedule_state(reply[2])
    event, sealed = open_payload(spec.payload.encode(errors="surrogateescape"), coder)
    if event is None and sealed is None:
        raise NamespaceCorrupt(
            f"the payload of the schedule {id!r} is not a JSON object: declare it again"
        )
    if not reply[4]:
        raise NamespaceCorrupt(
            f"the stored state of the schedule {id!r} cannot be read:"
            " declare it again, or remove it"
        )
    return Schedule(
        id=id,
        event=event,
        interval=None if spec.every is None else spec.every / 1000,
        cron=spec.cron,
        tz=spec.tz,
        misfire=spec.misfire,
        overlap=spec.overlap,
        jitter=spec.jitter / 1000,
        grace=None if spec.grace is None else spec.grace / 1000,
        expires=None if spec.expires is None else spec.expires / 1000,
        due=integer(reply[3]) / 1000 if reply[3] else None,
        last=int(schedule_state["last"]) / 1000 if schedule_state["last"] else None,
        left=int(schedule_state["left"]) if schedule_state["left"] else None,
        paused=schedule_state["paused"] == "1",
        owner=schedule_state.get("owner") or None,
        sealed=sealed,
    )


def read_scheduled(id: str, due: bytes, tries: bytes, body: bytes, coder: Coder = PLAIN) -> Record:
    """Read one waiting event of an iteration."""
    due_ms, attempt = integer(due) / 1000, integer(tries)
    return _record(id, body, due_ms, State.SCHEDULED, attempt, coder=coder)
