"""The hall: the only room that knows both wings, the store and the engine."""

from dtimer.timer.timer import DTimer

__all__ = ["DTimer"]
