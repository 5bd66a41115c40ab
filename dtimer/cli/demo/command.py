"""The command ``demo``."""

from __future__ import annotations

import contextlib
import sys

import click

from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.server import Settings


@click.command(
    epilog="""
    The exit code is 0 if no event was lost and the event of the killed node was delivered
    again, otherwise 1.

    \b
    Examples:
      $ dtimer demo
      $ dtimer demo --json
    """
)
@shared(ns=False)
@click.pass_obj
def demo(settings: Settings) -> int:
    """
    See dtimer work, in ten seconds.

    Three nodes handle 400 events, and one node is killed.

    Three node processes join a namespace of their own, on a private embedded server or
    on the server that --url names. One of them is killed with SIGKILL while it handles an
    event. Another node receives that event again when the lease has expired.
    """
    from dtimer.cli.demo.run import Run, private_server, swept
    from dtimer.cli.demo.view import opened_view, table

    output = settings.output
    typed = settings.url if settings.url_is_typed else None
    server = contextlib.nullcontext(typed) if typed else private_server()
    with server as url, swept(url) as ns, opened_view(output) as view:
        outcome = Run(url, ns, view).run()
    if output.as_json:
        output.result(**outcome.fields())
        return ExitCode.DONE if outcome.ok else ExitCode.NEGATIVE
    if not sys.stdout.isatty():
        output.console(sys.stdout).print(table(outcome.counts), width=100)
    for error in outcome.counts.errors:
        output.notice(error)
    totals = outcome.stats.totals
    counted = ", ".join(f"{name} {totals.get(name, 0)}" for name in ("posted", "confirmed"))
    output.result(f"Redis itself counts {counted}, pending {outcome.pending}")
    output.result((outcome.line(), "bold green" if outcome.ok else "bold red"))
    return ExitCode.DONE if outcome.ok else ExitCode.NEGATIVE
