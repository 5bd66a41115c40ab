from fakeredis import FakeRedis

from dtimer import DTimer
from dtimer.testing import Catch, Clock

MONTH = 30 * 86_400_000


def test_reminder():
    """A reminder comes when its month is over."""
    clock = Clock()
    dt = DTimer("test", FakeRedis(), now=clock)
    events = Catch(dt, "event")
    with dt:
        dt.post({"remind": "me"}, MONTH)
        clock.tick(MONTH)
        assert {"remind": "me"} == events.next()[0]


test_reminder()
print("reminded")
