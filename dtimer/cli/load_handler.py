"""Import a handler or a codec that is given as ``package.module:name``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import click

from dtimer.cli.exit_codes import ExitCode

Handler = Callable[[list[Any]], Any]


class NoHandler(click.ClickException):
    """The handler or the codec cannot be imported; the text says why."""

    exit_code: ClassVar[int] = ExitCode.IMPORT


def load_handler(spec: str) -> Handler:
    """
    Import a handler. The current directory is searched first.

    Raises:
        click.UsageError: *spec* is not of the form ``package.module:function``.
        NoHandler: there is no such module or function, or the import failed.
    """
    found = load_object(spec, "--handler")
    if not callable(found):
        raise NoHandler(f"{spec!r} is not callable, but {found!r:.80}")
    if inspect.iscoroutinefunction(found):
        raise NoHandler(f"{spec!r} is a coroutine function; handlers are called on threads")
    return found  # type: ignore[no-any-return]


def load_object(spec: str, option: str) -> Any:
    """
    Import the value of an *option*. The current directory is searched first.

    Raises:
        click.UsageError: *spec* is not of the form ``package.module:name``.
        NoHandler: there is no such module or name, or the import failed.
    """
    module, colon, path = spec.partition(":")
    names = [*module.split("."), *path.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        what = "function" if option == "--handler" else "name"
        raise click.UsageError(f"{option} must be package.module:{what}, not {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = _import(module)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise NoHandler(f"{spec!r}: there is no {name!r} in {found!r:.80}") from None
    return found


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        # SystemExit too: the module may be a script without a main guard.
        if isinstance(e, ModuleNotFoundError) and f"{module}.".startswith(f"{e.name}."):
            raise NoHandler(f"no module {e.name!r} in this directory or installed") from None
        trace = "".join(traceback.format_exception(e)).rstrip()
        raise NoHandler(f"the module {module!r} cannot be imported\n{trace}") from e
