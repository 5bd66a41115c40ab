"""The command ``dtimer``: its subcommands, and their exit codes."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence

import click

import dtimer
from dtimer.cli.cancel import cancel
from dtimer.cli.completion import completion
from dtimer.cli.dead_letters import dead, drop, purge, revive
from dtimer.cli.demo.command import demo
from dtimer.cli.doctor import doctor
from dtimer.cli.events import post, stats, upcoming
from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.groups import Grouped
from dtimer.cli.listen import listen
from dtimer.cli.namespace import clear, health, nodes, pause, resume, upgrade
from dtimer.cli.options import shared
from dtimer.cli.output import Output, report_unwritable
from dtimer.cli.overviews import ahead, history, in_flight
from dtimer.cli.schedules import cron, every, run_now, schedules, unschedule
from dtimer.cli.single_event import peek, reschedule, update
from dtimer.cli.tail import tail
from dtimer.cli.top.command import top
from dtimer.cli.transfer.export import export
from dtimer.cli.transfer.import_ import import_
from dtimer.errors import DTimerError, EventExists, NotReplicated, StoreError


@click.group(
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Exit codes:
      0   done
      1   the answer is no: no such event, or it exists; not healthy; warnings
      2   the command was not understood; nothing was done
      3   Redis could not be reached, or refused; doctor found errors
      4   the handler cannot be imported
      5   too late to cancel: the event was delivered
      6   the output could not be written: a full disk, for example

    \b
    Example:
      $ dtimer post '{"msg": "hello"}' 200ms
    """,
)
@click.version_option(dtimer.__version__, prog_name="dtimer", message="%(prog)s %(version)s")
@shared(environment=True)
def app() -> None:
    """
    A distributed timer backed by Redis.

    Post an event now; after its delay exactly one of the listening processes receives
    it. --url names the server. Without it, dtimer uses redis://localhost:6379 if a server
    answers there, and otherwise an embedded server that all your terminals share.
    """


app.fill(
    {
        "Events": (post, upcoming, peek, reschedule, update, cancel),
        "Workers": (listen, nodes),
        "Schedules": (every, cron, schedules, run_now, unschedule),
        "Dead letters": (dead, revive, drop, purge),
        "Watching": (stats, ahead, in_flight, history, top, tail, health, doctor),
        "The namespace": (pause, resume, clear, export, import_, upgrade),
        "Getting started": (demo, completion),
    }
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line *arguments*, and return the exit code."""
    # Look for --json before click reads the options: errors in the options are JSON too.
    output = Output(as_json="--json" in arguments)
    for stream in (sys.stdout, sys.stderr):
        # If a character that the terminal cannot show raised an error, its event would fail.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    with _warnings_shown(output):
        try:
            code = app.main(list(arguments), prog_name="dtimer", standalone_mode=False)
        except click.ClickException as e:
            if output.as_json:
                output.failure(e)
            else:
                e.show()
            return e.exit_code
        except click.exceptions.Exit as e:
            return e.exit_code
        except (click.Abort, KeyboardInterrupt):
            return ExitCode.INTERRUPTED
        except OSError as e:
            return report_unwritable(e, output)
        except DTimerError as e:
            output.failure(e)
            if isinstance(e, EventExists):
                return ExitCode.NEGATIVE
            return ExitCode.SERVER if isinstance(e, StoreError | NotReplicated) else ExitCode.USAGE
    return code if isinstance(code, int) else ExitCode.DONE


class _NoticeHandler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.notice((f"{record.levelname.lower()}: ", "yellow"), record.getMessage())


@contextlib.contextmanager
def _warnings_shown(output: Output) -> Iterator[None]:
    """
    Write dtimer's warnings and errors to stderr, unless the root logger has handlers.

    Python's RuntimeWarnings are hidden: they are meant for programs, not for people.
    """
    log = logging.getLogger("dtimer")
    handler = _NoticeHandler(output)
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        log.removeHandler(handler)
