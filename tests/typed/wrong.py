"""
Mistakes that a type checker finds before the program runs: one on each marked line.

This file is checked, and never run.
"""

import redis

from dtimer import DeadLetter, DTimer, Event, Reason, Router, RunAt, SkipRetry
from dtimer.contrib.aio import AsyncioBridge

timer = DTimer("node-1", redis.Redis())
queue = RunAt("reminders")
router = Router()


def handle(events: list[Event]) -> None: ...
def handle_one(event: Event) -> None: ...
def no_argument() -> None: ...
def take_text(text: str) -> None: ...
def take_number(number: int) -> None: ...


# Options
DTimer("node-1", leese=30_000)  # wrong: the name of an option
DTimer("node-1", lease="30s")  # wrong: a text instead of a duration
DTimer("node-1", backoff=take_text)  # wrong: a function that takes no attempt
DTimer(redis.Redis(), "node-1")  # wrong: the order of the arguments
DTimer("node-1", 6379)  # wrong: a port instead of a client
RunAt("reminders", max_events=5)  # wrong: an option that a stream sets itself
RunAt("reminders", redis={"host": "localhost", "prot": 1})  # wrong: the name of the port

# Posting
timer.post({"tea": "green"}, "5s")  # wrong: a text instead of a delay
timer.post({"tea": "green"}, at="tomorrow")  # wrong: a text instead of a moment
timer.post({"tea": "green"}, id="tea", if_exists="overwrite")  # wrong: a policy of no such name
timer.post({"tea": "green"}, pipe=redis.Redis())  # wrong: a client instead of a pipeline
timer.post_many([{"ev": {"tea": "green"}, "delya": 5}])  # wrong: the name of an argument
timer.cancel(5)  # wrong: a number instead of an id

# Schedules
timer.every(60_000, {"tea": "green"})  # wrong: without an id
timer.every(60_000, {"tea": "green"}, id="tea", misfire="ignore")  # wrong: the mode
timer.cron("@daily", {"tea": "green"}, id="tea", overlap="parallel")  # wrong: the mode

# Listeners
timer.on("evnt", handle)  # wrong: the name of an event
timer.on("event", handle_one)  # wrong: handlers get a list
timer.on("lease_lost", handle)  # wrong: this listener gets one event
timer.once("ready", handle_one)  # wrong: this listener gets no argument
timer.add_listener("error", take_text)  # wrong: this listener gets an exception
timer.middleware(handle)  # wrong: returns no context manager
AsyncioBridge(timer).handler(handle)  # wrong: no coroutine function
router.route("tea")(handle)  # wrong: this route gets one event
router.route("tea", batch=True)(handle_one)  # wrong: this route gets a list
router.route("tea", backoff=lambda attempt: 1)  # wrong: a backoff of a kind takes two arguments
router.route("tea")(handle_one).post(timer, {}, retries=3)  # wrong: the name of an argument
queue.on("event", handle)  # wrong: a stream emits 'data'
queue.once("data", take_number)  # wrong: keys are texts


@timer.on("dead")  # wrong: this listener gets a dead letter
def bury(events: list[Event]) -> None: ...


@timer.listens_to("connected")  # wrong: this listener gets no argument
def connect(error: Exception) -> None: ...


# Events
def settle(event: Event) -> None:
    event.snooze("5s")  # wrong: a text instead of a duration
    event.bury(ValueError("no"))  # wrong: an exception instead of a text
    raise SkipRetry("no", [event])  # wrong: a list instead of the events


# Streams
queue.write({"key": "tea", "runat": 0})  # wrong: the name is runAt
queue.read("1s")  # wrong: a text instead of a duration
queue.pipe(take_number)  # wrong: a target that takes no keys


# Results
def see(letter: DeadLetter) -> None:
    letter.reason = Reason.FAILED  # wrong: a record cannot be changed
    print(letter.reason == Reason.FAILD)  # wrong: the name of a reason
    print(letter.event["tea"])  # wrong: the payload may be unreadable
    for event in timer.upcoming():
        event.confirm()  # wrong: a record is not an event


# Internals
timer.deliver([])  # wrong: not a part of the interface
queue.wanted()  # wrong: not a part of the interface
