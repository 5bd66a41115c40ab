from fakeredis import FakeRedis

from dtimer import DTimer
from dtimer.testing import Catch, Clock

clock = Clock(1_800_000_000_000)  # Friday, 15 January 2027, 8:00 UTC
dt = DTimer("test", FakeRedis(), now=clock)
dt.every(60_000, {"do": "sweep"}, id="sweep")
dt.cron("30 9 * * MON-FRI", {"do": "report"}, id="report", tz="Europe/Berlin")

caught = Catch(dt, "event")
with dt:
    clock.tick(5 * 60_000)
    (sweep,) = caught.next()
    print(sweep.schedule, sweep.nominal, sweep.missed)
    clock.tick(25 * 60_000)
    print(sorted(caught.next()[0].schedule for _ in range(2)))
