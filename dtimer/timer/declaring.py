"""Check the arguments of ``every`` and ``cron`` before any I/O, and collect those of a block."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from dtimer import log
from dtimer.errors import OptionError, UsageError
from dtimer.model import summary
from dtimer.model.ids import check_id
from dtimer.model.options import MOST_RETRIES, Options, check_count
from dtimer.model.outcomes import Declared
from dtimer.model.schedules import Declaration, ScheduleSpec, make_spec
from dtimer.naming import public
from dtimer.store.replies import Declaring
from dtimer.store.schedules import Schedules

Send = Callable[[Declaration], Declaring]

# The limits of a block, because one script declares all of its schedules.
_MOST_SCHEDULES = 500
_MOST_BYTES = 4_000_000

# The owner is part of the state of a schedule, in which ';' separates the fields.
_OWNER = re.compile(r"[A-Za-z0-9_.:/-]{1,100}", re.ASCII)
# At most 15 digits, so that a script can compare the numbers as doubles.
_VERSION = re.compile(r"v?(\d{1,15}(?:[.-]\d{1,15}){0,7})", re.ASCII)


def prepare_schedule(
    options: Options, *, id: str, ev: Mapping[str, Any], max_retries: int | None, **rule: Any
) -> ScheduleSpec:
    """
    Return the schedule to declare. *rule* has the other arguments of ``every`` or ``cron``.

    Raises:
        OptionError: an argument is not valid.
        PayloadError: the payload is not valid.
    """
    retries = options.max_retries if max_retries is None else max_retries
    return make_spec(
        check_id(id),
        max_retries=check_count(retries, "max_retries", 0, MOST_RETRIES),
        payload=options.codec.encode(ev, options.max_payload),
        identity=options.codec.identify(ev, options.max_payload),
        stepped=options.now is not None,
        **rule,
    )


def _check_owner(owner: object) -> str:
    if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
        raise OptionError(
            "owner must have 1 to 100 letters, digits and characters of _.:/-, not"
            f" {summary.value(owner)}"
        )
    return owner


def _check_version(version: object) -> str:
    """Return a version as whole numbers joined by dots, such as ``1.10.2``."""
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    found = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if found is None:
        raise OptionError(
            "version must be a whole number, or a text of whole numbers joined by '.' or '-', such"
            f" as '1.10.2' or '2026-11-30', not {summary.value(version)}: it must be higher with"
            " each release, and a commit hash or a suffix like 'rc1' is not"
        )
    return ".".join(str(int(number)) for number in re.split("[.-]", found[1]))


class ScheduleBlock:
    """
    The schedules that are declared within ``with dt.declare_schedules(…) as block:``.

    Attributes:
        outcomes: The outcome of each schedule by its id, once the block has ended.
        removed: The ids of the schedules that a lower version had declared and this one does not,
            so that they were removed.
        newer: The recorded version of the owner if it is higher than that of the block. Then
            nothing was changed.
    """

    def __init__(
        self,
        open_blocks: MutableMapping[int, ScheduleBlock],
        send: Send,
        names: tuple[str, str],
        *,
        empty: bool,
        source: log.Source,
    ) -> None:
        self.outcomes: dict[str, Declared] = {}
        self.removed: list[str] = []
        self.newer: str | None = None
        self._open = open_blocks
        self._send = send
        self._owner, self._version = names
        self._may_be_empty = empty
        self._source = source
        self._specs: dict[str, ScheduleSpec] = {}
        self._bytes = 0
        self._thread = 0

    def add(self, spec: ScheduleSpec) -> Declared:
        """
        Add a schedule, which is declared at the end of the block.

        Raises:
            OptionError: the block has this id already, or has too many schedules.
        """
        self._bytes += len(spec.payload.encode(errors="surrogateescape")) + len(spec.to_json())
        if spec.id in self._specs:
            raise OptionError(f"the schedule {spec.id!r} is declared twice in one block")
        if len(self._specs) == _MOST_SCHEDULES or self._bytes > _MOST_BYTES:
            raise OptionError(
                f"a block may have at most {_MOST_SCHEDULES} schedules and {_MOST_BYTES} bytes:"
                " divide it into blocks with different owners"
            )
        self._specs[spec.id] = spec
        return Declared.DEFERRED

    def __enter__(self) -> Self:
        """
        Begin the block: from now on, this thread's declarations are added to it.

        Raises:
            UsageError: A block of this thread is open, or this one was used before.
        """
        if self._thread:
            raise UsageError("a block of schedules can be used only once")
        thread = threading.get_ident()
        if self._open.get(thread) is not None:
            raise UsageError("a block of schedules cannot be within another block")
        self._thread = thread
        self._open[thread] = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Declare the schedules, unless the block raised an exception."""
        self._open.pop(self._thread, None)
        if kind is not None or not (self._specs or self._may_be_empty):
            return
        declaration = Declaration(tuple(self._specs.values()), self._owner, self._version)
        declaring = self._send(declaration)
        self.newer, self.removed = declaring.lower_than, declaring.removed
        self.outcomes = dict(zip(self._specs, declaring.outcomes, strict=False))
        if self.newer is not None:
            words = self._owner, self._version, self.newer
            log.write(log.OLDER_SCHEDULES, *words, source=self._source)


class Declarer:
    """
    Declares schedules: each at once, or all of a block at its end.

    It knows the open block of each thread by a weak reference. If a signal handler raises between
    the beginning of a block and its first statement, Python does not end the block. The block is
    then forgotten with its last reference.

    Args:
        options: The options of the timer.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._open = WeakValueDictionary[int, ScheduleBlock]()

    def declare(self, schedules: Schedules, **arguments: Any) -> Declared:
        """Check the arguments of ``every`` or ``cron``, and declare the schedule."""
        spec = prepare_schedule(self._options, **arguments)
        block = self._open.get(threading.get_ident()) if self._open else None
        return schedules.declare(spec) if block is None else block.add(spec)

    def block(self, send: Send, owner: str, version: int | str, *, empty: bool) -> ScheduleBlock:
        """Check the arguments of ``declare_schedules``, and return the block."""
        source = log.Source(ns=self._options.ns)
        names = _check_owner(owner), _check_version(version)
        return ScheduleBlock(self._open, send, names, empty=empty, source=source)


public(ScheduleBlock)
