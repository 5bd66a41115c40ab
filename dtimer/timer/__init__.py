"""The public timers. The only layer that imports both the store and the engine."""

from dtimer.timer.declaring import ScheduleBlock
from dtimer.timer.posting import PostItem
from dtimer.timer.timer import DTimer

__all__ = ["DTimer", "PostItem", "ScheduleBlock"]
