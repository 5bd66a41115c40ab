"""Check the arguments of ``every`` and ``cron`` before any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtimer.model.ids import check_id
from dtimer.model.options import MOST_RETRIES, Options, check_count
from dtimer.model.payload import encode
from dtimer.model.schedules import ScheduleSpec, make_spec


def prepare_schedule(
    options: Options, *, id: str, ev: Mapping[str, Any], max_retries: int | None, **rule: Any
) -> ScheduleSpec:
    """
    Return the schedule to declare. *rule* has the other arguments of ``every`` or ``cron``.

    Raises:
        OptionError: an argument is not valid.
        PayloadError: the payload is not valid.
    """
    retries = options.max_retries if max_retries is None else max_retries
    return make_spec(
        check_id(id),
        max_retries=check_count(retries, "max_retries", 0, MOST_RETRIES),
        payload=encode(ev, options.max_payload),
        stepped=options.now is not None,
        **rule,
    )
