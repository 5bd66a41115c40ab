"""
The command line: ``dtimer``, and ``python -m dtimer``.

This module answers ``dtimer --version`` itself, at once. click and rich, which come with an
extra, are imported only for other commands, and redis only when a command needs the server.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from dtimer.cli.exit_codes import ExitCode

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line *arguments*, by default those of the process; return the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        import dtimer

        try:
            print(f"dtimer {dtimer.__version__}", flush=True)
        except OSError as e:
            from dtimer.cli.output import Output, report_unwritable

            return report_unwritable(e, Output(as_json=False))
        return ExitCode.DONE
    if any(importlib.util.find_spec(name) is None for name in ("click", "rich")):
        print(
            "dtimer: the command line is an extra; install it: pip install 'dtimer[cli]'",
            file=sys.stderr,
        )
        return ExitCode.IMPORT
    from dtimer.cli.app import run

    return run(words)
