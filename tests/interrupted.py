"""
Interrupts a call at one bytecode of the library after the other, as a signal does.

A signal's handler runs between two bytecodes of the main thread. A trace function does the same,
and at the bytecode that a test names.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import dtimer

_PACKAGE = str(Path(dtimer.__file__).parent)

#: One bytecode in so many is tried; ``DTIMER_TEST_BYTECODES=1`` tries each.
STRIDE = int(os.environ.get("DTIMER_TEST_BYTECODES", "0"))


# After these the interpreter looks whether a signal has come.
_HANDLING = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")


class Interruption:
    """
    Calls *handler* once, before the bytecode number *at* that this thread runs in the library.

    Args:
        at: Counted from 0.
        handler: What the handler of the signal does. What it raises is raised there.
        raises: Count only the bytecodes before which the interpreter handles signals: not, for
            example, the one after a lock is taken by ``with``, where an exception would leave it
            taken.
    """

    def __init__(self, at: int, handler: Callable[[], object], *, raises: bool = False) -> None:
        self._left = at
        self._raises = raises
        # Whether a frame's last bytecode was one after which signals are handled. By its id: a
        # frame that is kept keeps what is to be found gone.
        self._after: dict[int, bool] = {}
        self._handler = handler
        #: Where it was, once it has been.
        self.where: str | None = None

    def during(self, act: Callable[[], Any]) -> Any:
        """Call *act*, interrupted, and return what it returns."""
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
        self._after.pop(id(frame), None)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        del arg
        if self.where is not None:
            frame.f_trace_opcodes = False
            return None
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
    Count up, for a test that stops when its call has fewer bytecodes.

    Args:
        stride: One bytecode in so many, unless the environment says otherwise.
    """
    n = 0
    while True:
        yield n
        n += STRIDE or stride
