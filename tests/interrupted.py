"""
Interrupt a call of the library at each of its bytecodes in turn, as a signal would.

A signal handler runs between two bytecodes of the main thread. A trace function does too, and
at the bytecode that a test chooses.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import dtimer

_PACKAGE = str(Path(dtimer.__file__).parent)

#: The step between the bytecodes that are tried. ``DTIMER_TEST_BYTECODES=1`` tries each one.
STRIDE = int(os.environ.get("DTIMER_TEST_BYTECODES", "0"))


# After these bytecodes the interpreter checks for signals.
_HANDLING = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")


def _in_finalizer(frame: FrameType | None) -> bool:
    """Return True within a ``__del__``, whose exceptions Python does not raise in any call."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Interruption:
    """
    Calls *handler* once, before this thread runs its bytecode number *at* within the library.

    Args:
        at: The number of the bytecode, from 0.
        handler: The signal handler. Its exceptions are raised in the interrupted code.
        raises: Count only the bytecodes before which the interpreter handles signals. This leaves
            out, for example, the one after ``with`` takes a lock: an exception there would leave
            the lock taken.
    """

    def __init__(self, at: int, handler: Callable[[], object], *, raises: bool = False) -> None:
        self._left = at
        self._raises = raises
        # By id of the frame: True if the interpreter handles signals after its last bytecode. The
        # frame itself would keep objects alive whose end the tests wait for.
        self._after: dict[int, bool] = {}
        self._handler = handler
        #: Where the call was interrupted; None before that.
        self.where: str | None = None

    def during(self, act: Callable[[], Any]) -> Any:
        """Call *act*, interrupt it, and return its result."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return act()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Any:
        del event, arg
        if self.where is not None or not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if self._raises and _in_finalizer(frame):
            return None
        self._after.pop(id(frame), None)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        del arg
        if self.where is not None:
            frame.f_trace_opcodes = False
            return None
        if event == "exception":
            # The call has raised. The interpreter then goes to the frame's handler, such as the end
            # of a `with`, and handles no signal before it.
            self._after[id(frame)] = False
        if event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            handled = self._after.get(id(frame), False)
            self._after[id(frame)] = name.startswith(_HANDLING)
            if self._raises and not handled:
                return self._step
            if not self._left:
                name = Path(frame.f_code.co_filename).stem
                self.where = f"{name}.{frame.f_code.co_qualname}:{frame.f_lineno}"
                self._handler()
            self._left -= 1
        return self._step


def each_bytecode(stride: int = 1) -> Iterator[int]:
    """
    Yield the numbers of the bytecodes to try. The test stops when its call has no more bytecodes.

    Args:
        stride: The step between two numbers, unless the environment sets another.
    """
    n = 0
    while True:
        yield n
        n += STRIDE or stride


class NoMoreBytecodes(Exception):
    """The call has ended before the bytecode at which it should be interrupted."""


class Interrupt:
    """Interrupts the one call of a test, before the bytecode number *at*."""

    def __init__(self, at: int, *, raises: bool) -> None:
        self.at = at
        self._raises = raises
        #: Where the call was interrupted; None before that.
        self.where: str | None = None

    def __call__(self, call: Callable[[], Any], handler: Callable[[], object]) -> Any:
        """Run *call* and, inside it, *handler*; return the result of *call*."""
        interruption = Interruption(self.at, handler, raises=self._raises)
        try:
            return interruption.during(call)
        finally:
            self.where = interruption.where
            if self.where is None:
                raise NoMoreBytecodes


def at_each_bytecode(*, more_than: int, raises: bool = False) -> Callable[[Any], Any]:
    """
    Run a test again and again: its call is interrupted at the first bytecode, then at the second,
    and so on to its end. The last argument of the test is an `Interrupt`, which it calls once.

    Args:
        more_than: The call has more bytecodes than this, or its code was not interrupted at all.
        raises: The handler raises; see `Interruption`.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **fixtures: Any) -> None:
            at = 0
            for at in each_bytecode():
                interrupt = Interrupt(at, raises=raises)
                try:
                    test(*arguments, interrupt=interrupt, **fixtures)
                except NoMoreBytecodes:
                    break
                except Exception as e:
                    e.add_note(f"interrupted at {interrupt.where}")
                    raise
            assert at > more_than

        # Without its last parameter, which pytest would take for a fixture.
        signature = inspect.signature(test)
        parameters = [*signature.parameters.values()][:-1]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


class Alarm(Exception):
    """The exception of a signal handler."""


def raise_alarm() -> None:
    """Raise `Alarm`, as a signal handler may."""
    raise Alarm
