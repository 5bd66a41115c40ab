"""
The command line: ``dtimer``, and ``python -m dtimer``.

This module answers ``dtimer --version`` by itself and at once. click and rich, which are
an extra, are imported when there is something else to do, and redis only when it has to
be asked.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from dtimer.cli.exits import Exit

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line *arguments*, by default the process's, and return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        import dtimer

        try:
            print(f"dtimer {dtimer.__version__}", flush=True)
        except OSError as e:
            from dtimer.cli.output import Output, unwritable

            return unwritable(e, Output(as_json=False))
        return Exit.DONE
    if any(importlib.util.find_spec(name) is None for name in ("click", "rich")):
        print(
            "dtimer: the command line is an extra that is not installed: pip install 'dtimer[cli]'",
            file=sys.stderr,
        )
        return Exit.IMPORT
    from dtimer.cli.app import run

    return run(words)
