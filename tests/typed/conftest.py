"""Collect the checks of the types only where both type checkers are installed (`.ci/run lint`)."""

from importlib.util import find_spec

TOOLS = ("mypy", "basedpyright")

collect_ignore_glob = [] if all(find_spec(tool) for tool in TOOLS) else ["test_*.py"]
