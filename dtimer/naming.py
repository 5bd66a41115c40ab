"""The names that public classes give of themselves: in pickles, tracebacks and reprs."""

from __future__ import annotations


def public(*kinds: type) -> None:
    """
    Let *kinds* say that they are defined in ``dtimer``, as users import them.

    A pickle names the module of a class. It can be read only as long as that module has the class,
    and the modules within the package may change.
    """
    for kind in kinds:
        kind.__module__ = "dtimer"
