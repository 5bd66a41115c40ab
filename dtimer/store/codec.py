"""Between the plain data of the model and the arguments and replies of the scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from dtimer.errors import NamespaceCorrupt, PayloadError
from dtimer.model.claims import Claim, Result, Settlement, Turn, Verdict
from dtimer.model.event import DeadLetter, Record, State
from dtimer.model.payload import decode
from dtimer.model.recurrence import Schedule, definition_from_json
from dtimer.store.witness import Standing

# <expires µs or nothing>,<max_retries>, of an occurrence s<nominal µs>,<missed> too, and
# for what later versions may add, more fields.
# Numbers are bounded, because what a stranger has written there may be endless.
_BODY = re.compile(rb"(\d{0,17}),(\d{1,7})(?:,s(\d{1,17}),(\d{1,15}))?(?:,[^|]*)?\|")
_CLAIM = re.compile(rb"(\d+),(\d+),(\d+),(\d+),(\d+)\|")
_DECLARED = re.compile(rb"new|changed|same|behind:\d{1,17}")
_RESULTS = {ord(result.value): result for result in Result}
_LETTER = re.compile(rb"(\d{1,8}),(\w+),(\d{1,9})\|")


def text(raw: bytes) -> str:
    """Decode an id or a text; what is not UTF-8 is somebody else's, and goes back as it came."""
    return raw.decode(errors="surrogateescape")


def whole(raw: bytes) -> int:
    """Read a number, a score say; what is none is somebody else's, and shown as 0."""
    try:
        return int(float(raw))
    except (ValueError, OverflowError):
        return 0


def read_payload(raw: bytes | None) -> dict[str, Any] | None:
    """Return the payload in a body, None when there is none that can be read."""
    match = _BODY.match(raw or b"")
    if match is None or raw is None:
        return None
    try:
        return decode(raw[match.end() :])
    except PayloadError:
        return None


def read_posted(reply: bytes, count: int) -> tuple[bytes, int | None, str]:
    """
    Read the reply to a post: its letters, how many were ever posted, an id that was taken.

    Args:
        reply: The reply.
        count: How many letters it must have, unless nothing was stored.
    """
    letters, total, id = reply.split(b";", 2)
    if (len(letters) != count or letters.strip(b"01")) and letters != b"x":
        raise ValueError("letters of another alphabet or number")
    return letters, int(total) if total else None, text(id) if id else ""


def settlement_arguments(settlements: Iterable[Settlement]) -> tuple[list[str], list[int]]:
    """
    Write settlements as arguments: the confirmed first, as the scripts want them.

    Returns:
        The arguments, and for each result in the reply's order the index of its
        settlement.
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
            others += (s.id, str(s.token), s.verdict.value, wait, s.error)
            last.append(index)
    return [str(len(first)), str(len(last)), *confirms, *others], first + last


def read_results(letters: bytes, order: Sequence[int]) -> list[Result]:
    """Bring the letters of a reply back into the order of the settlements."""
    results = [Result.STALE] * len(order)
    for letter, index in zip(letters, order, strict=True):
        results[index] = _RESULTS[letter]
    return results


def _read_claims(reply: bytes, at: int, count: int, now: int) -> tuple[list[Claim], int]:
    """
    Read so many claims, the first of which begins *at* a place, and tell where the last ends.

    The head of a body is read off its payload; what is no body is left as it is.
    """
    claims: list[Claim] = []
    for _ in range(count):
        mark = _CLAIM.match(reply, at)
        if mark is None:
            raise ValueError("the reply to a turn is cut short")
        token, attempt, due, id_length, body_length = map(int, mark.groups())
        start = mark.end()
        end = start + id_length
        raw = reply[start:end]
        id = raw.decode() if raw.isascii() else text(raw)
        at = end + body_length
        body = _BODY.match(reply, end, at)
        if body is None:
            claims.append(Claim(id, token, attempt, due, now, 0, reply[end:at]))
            continue
        claim = Claim(id, token, attempt, due, now, int(body[2]), reply[body.end() : at])
        if body.end(1) > end:
            claim.expires_us = int(body[1])
        if body[3] is not None:
            claim.schedule = id.rpartition("@")[0]
            claim.nominal_us, claim.missed = int(body[3]), int(body[4])
        claims.append(claim)
    return claims, at


class Claims(Sequence[Claim]):
    """
    The claims in the reply to a turn, read when they are looked at and not before.

    How many there are is known at once, and so whether to ask for more: that can be on its way
    while these are read.
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
        """Return the claims, and where they end."""
        if self._read is None:
            # All or nothing: again from the beginning, where it has failed.
            self._read, self._at = _read_claims(self._reply, self._at, self._count, self._now)
        return self._read, self._at


def _last_token(reply: bytes, at: int, count: int) -> int:
    """Return the greatest token that was given out, or a little less where some were left out."""
    mark = _CLAIM.match(reply, at) if count else None
    return int(mark[1]) + count - 1 if mark else 0


def _read_text(reply: bytes, at: int) -> tuple[str, int]:
    """Read the text that begins *at* a place, and tell where it ends."""
    colon = reply.index(b":", at)
    end = colon + 1 + int(reply[at:colon])
    return text(reply[colon + 1 : end]), end


def _maybe(raw: bytes) -> int | None:
    """Read a number that need not be there, and may be somebody else's."""
    return int(raw) if raw.isdigit() and len(raw) < 18 else None


def read_standing(reply: Sequence[Any]) -> Standing:
    """Read the reply of an opening."""
    time, _, born, token, posted, struck = reply
    now = _maybe(time)
    if now is None:
        # The calendar ends before a time of more digits.
        raise ValueError("a time that is none")
    return Standing(now, text(born), _maybe(token) or 0, _maybe(posted), _maybe(struck))


def read_turn(reply: bytes, order: Sequence[int], came: float | None = None) -> Turn:
    """
    Read the reply of a turn, which *came* when it did.

    A body that cannot be split is left to fail at decoding.
    """
    at = reply.index(b"|")
    head = reply[:at].split(b";")
    at += 1
    now, wait, buried, short = int(head[0]), int(head[1]), int(head[8]), int(head[9])
    count = int(head[7])
    claims = Claims(reply, at, count, now)
    token = _last_token(reply, at, count)
    rest: list[str] = []
    if buried or short:
        _, at = claims.read()
        for _ in range(2 * buried + short):
            word, at = _read_text(reply, at)
            rest.append(word)
    return Turn(
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
        came=came,
    )


def read_record(id: str, reply: Sequence[Any]) -> Record | None:
    """Read the reply of a peek."""
    if not reply:
        return None
    state, due, attempt, raw = State(text(reply[0])), whole(reply[1]), reply[2], reply[3]
    if state is State.DEAD:
        letter = read_letter(id, due, raw)
        return Record(id, letter.event, letter.died, state, letter.attempt)
    return Record(id, read_payload(raw), due / 1000, state, whole(attempt))


def read_standing_plan(reply: Sequence[Any]) -> tuple[bytes, bytes, dict[str, str], bool] | None:
    """Read where a schedule stands: its definition, its plan, and its beat, if that is readable."""
    if not reply:
        return None
    definition, plan, beat, _, readable = reply
    return definition, plan, read_beat(beat), bool(readable)


def read_declared(reply: bytes) -> str:
    """Read what became of a declaration."""
    if not _DECLARED.fullmatch(reply):
        raise ValueError("an outcome that is not known")
    return text(reply)


def read_schedule(id: str, reply: Sequence[Any]) -> Schedule | None:
    """
    Read the reply of a look at a schedule.

    Raises:
        NamespaceCorrupt: somebody else has written it.
    """
    if not reply:
        return None
    definition = definition_from_json(id, reply[0], reply[1])
    beat = read_beat(reply[2])
    try:
        event = decode(definition.payload.encode())
    except PayloadError as e:
        raise NamespaceCorrupt(f"the payload of the schedule {id!r} cannot be read: {e}") from None
    if not reply[4]:
        raise NamespaceCorrupt(
            f"where the schedule {id!r} stands cannot be read: declare it again, or end it"
        )
    return Schedule(
        id=id,
        event=event,
        interval=None if definition.every is None else definition.every / 1000,
        cron=definition.cron,
        tz=definition.tz,
        misfire=definition.misfire,
        overlap=definition.overlap,
        jitter=definition.jitter / 1000,
        due=whole(reply[3]) / 1000 if reply[3] else None,
        last=int(beat["last"]) / 1000 if beat["last"] else None,
        left=int(beat["left"]) if beat["left"] else None,
        paused=beat["paused"] == "1",
    )


_BEAT = (
    "print", "every", "misfire", "overlap", "jitter", "stop", "left", "paused", "next", "last",
    "running", "ahead", "final", "gap", "anchor", "waits",
)  # fmt: skip


def read_beat(raw: bytes) -> dict[str, str]:
    """Read where a schedule stands: the fields that lua/parts/plan.lua lists."""
    return dict(zip(_BEAT, text(raw).split(";"), strict=False))


def read_scheduled(id: str, due: bytes, tries: bytes, body: bytes) -> Record:
    """Read one event of a walk through the scheduled."""
    due_ms, attempt = whole(due) / 1000, whole(tries)
    return Record(id, read_payload(body), due_ms, State.SCHEDULED, attempt)


def read_letter(id: str, died_us: int, raw: bytes) -> DeadLetter:
    """Read a dead letter; one that is not ours is shown as it is."""
    match = _LETTER.match(raw)
    if match is None:
        return DeadLetter(id, None, 0, "corrupt", "", died_us / 1000, raw)
    end = match.end() + int(match[3])
    error, body = raw[match.end() : end], raw[end:]
    return DeadLetter(
        id=id,
        event=read_payload(body),
        attempt=int(match[1]),
        reason=text(match[2]),
        error=text(error),
        died=died_us / 1000,
        raw=body,
    )
