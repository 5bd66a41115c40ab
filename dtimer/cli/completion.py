"""The command ``completion``: prints a shell script that completes the commands of dtimer."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog="""
    \b
    To enable it in every shell, add one of these lines to its startup file:
      eval "$(dtimer completion bash)"         ~/.bashrc
      eval "$(dtimer completion zsh)"          ~/.zshrc
      dtimer completion fish | source          ~/.config/fish/config.fish

    \b
    Examples:
      $ dtimer completion bash
      $ dtimer completion zsh
    """
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands."""
    from click.shell_completion import get_completion_class

    # The script completes the whole command line, not only this command.
    root = ctx.find_root()
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - these three are click's own
    click.echo(made(root.command, {}, "dtimer", "_DTIMER_COMPLETE").source())
