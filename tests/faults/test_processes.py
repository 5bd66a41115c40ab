"""Faults F59 to F72: processes that die or starve, and threads that do not run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from chaos.settings import PATIENT
from leftovers import threads
from scripts import Script
from servers import LONGEST_CALL, PATIENCE, eventually

from dtimer import DTimer, UsageError
from dtimer.engine.service import Service
from dtimer.faultpoints import arm

pytestmark = pytest.mark.chaos

# A program for `Script` (tests/scripts.py), which defines ``timer``, ``say`` and ``heard`` for it.
# The program prints the attempts that its handler receives, and the errors that its node reports.
# Each test replaces ``do()`` with the work of its handler. The node has the options PATIENT, with a
# lease of 1 s. They are not related to PATIENCE, the seconds that a test waits for a signal.
_NODE = f"""
import ctypes, resource, signal
dt = timer("script", **{PATIENT!r})
dt.on("error", lambda e: say("error", type(e).__name__, type(e.__cause__).__name__))

@dt.on("event")
def handle(events):
    say("begun", events[0].attempt)
    do()
    say("ended", events[0].lease_lost)
"""


@pytest.fixture
def script(watch, own_server):
    """Return a function that runs a program as a node; remove the node at the end."""
    running = []

    def run(text, **options):
        program = Script(own_server, watch.ns, text, **options)
        running.append(program)
        return program

    yield run
    for program in running:
        program.__exit__()
    for incarnation, who in watch.client.hgetall(watch.keys.nodes).items():
        if b'"script"' in who:
            # A killed node would only be forgotten after a minute without a heartbeat.
            watch.client.hdel(watch.keys.nodes, incarnation)
            for key in (watch.keys.alive, watch.keys.roster, watch.keys.promise):
                watch.client.zrem(key, incarnation)


@pytest.mark.fault("F59")
@pytest.mark.parametrize(
    "end",
    ["os._exit(0)", "os.kill(os.getpid(), signal.SIGSEGV)", "os.kill(os.getpid(), signal.SIGKILL)"],
    ids=["exit", "segfault", "kill"],
)
def test_an_event_is_delivered_again_if_its_handler_ends_the_process(watch, script, end):
    """After an exit, a crash or a kill the event waits for the end of its lease."""
    # The signal arrives a moment later. The handler must not return before.
    dying = script(
        _NODE.replace("do()", f"{end}; threading.Event().wait()")
        + "dt.join(); say('joined'); heard()"
    )
    assert "joined" == dying.hear()
    id = watch.post()
    assert "begun 1" == dying.hear()
    watch.node()
    watch.wait_handled(id)
    assert [2] == [handled.attempt for handled in watch.handled]


@pytest.mark.fault("F61")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_post_does_not_mix_up_replies(watch, error):
    """The connection is closed, or the next call would read the reply to the post."""
    watch.node()
    caller = watch.caller()
    watch.post(timer=caller)
    # The server now knows the script, so the interrupted post will take effect.
    watch.post(timer=caller, id="whole")
    here = threading.current_thread()
    # The exception hides whether the post took effect.
    watch.perhaps.add("cut")

    def interrupt():
        if threading.current_thread() is here:
            raise error

    with arm("reply.reading", interrupt), pytest.raises(error):
        caller.post({}, id="cut")
    assert caller.peek("nothing") is None
    assert isinstance(watch.post(timer=caller), str)
    watch.wait_handled("cut")


def uwsgi(*, has_threads=1, **state):
    """Return a stand-in for uWSGI's module; all of *state* except ``numproc`` are functions."""
    functions = {k: v if k == "numproc" else (lambda v=v: v) for k, v in state.items()}
    return "uwsgi", SimpleNamespace(has_threads=has_threads, **functions)


def gevent(*patched):
    """Return a stand-in for gevent, which has patched these modules."""
    return "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: name in patched)


def eventlet(patched):
    """Return a stand-in for eventlet, which has patched this module."""
    return "eventlet.patcher", SimpleNamespace(is_monkey_patched=lambda name: name == patched)


#: The states of a process that will fork workers, and of such a worker.
MASTER, WORKER = {"worker_id": 0, "masterpid": 17}, {"worker_id": 2, "masterpid": 17}

#: Each environment of a node, and the words with which ``join()`` refuses it, or None.
ENVIRONMENTS = {
    "uwsgi without threads": (uwsgi(has_threads=0), "enable-threads"),
    "uwsgi with threads": (uwsgi(), None),
    "uwsgi master": (uwsgi(**MASTER, numproc=1), r"@postfork.* lazy-apps"),
    "uwsgi with processes": (uwsgi(worker_id=0, masterpid=0, numproc=4), r"@postfork.* lazy-apps"),
    "uwsgi alone": (uwsgi(worker_id=0, masterpid=0, numproc=1), None),
    "uwsgi worker": (uwsgi(**WORKER, numproc=4), None),
    "uwsgi mule": (uwsgi(**MASTER, numproc=4, mule_id=1), None),
    "uwsgi spooler": (uwsgi(**MASTER, numproc=4, i_am_the_spooler=True), None),
    "eventlet": (eventlet("thread"), "eventlet"),
    "gevent without threads": (gevent("socket", "select", "queue"), "thread=False"),
    "gevent": (gevent("socket", "select", "queue", "threading"), None),
    "gevent with signals only": (gevent("signal"), None),
}


class TestThreads:
    """``join()`` must say so if the threads of the node could not run."""

    @pytest.mark.fault("F64")
    @pytest.mark.fault("F65")
    @pytest.mark.parametrize(("module", "words"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
    def test_join_refuses_an_environment_in_which_threads_do_not_run(
        self, own_server, monkeypatch, module, words
    ):
        """
        Threads do not survive a fork, but may leave locks taken in the workers. An unpatched
        thread that waits for a socket blocks all greenlets. The error says what to do. A timer
        can post in each environment, because a post needs no threads.
        """
        monkeypatch.setitem(sys.modules, *module)
        node = DTimer("node", own_server.url)
        node.post({}, 1_000)
        if words:
            with pytest.raises(UsageError, match=words):
                node.join()
        else:
            node.join()
        assert node.joined == (words is None)
        node.leave()

    @pytest.mark.fault("F64")
    def test_join_fails_if_its_threads_do_not_run(self, watch, own_server, monkeypatch):
        """If ``join()`` returned, the node would never receive an event, without any error."""
        node = DTimer("node", own_server.url, ns=watch.ns, timeout=300)
        # Only the waits for the threads are short. The server may be slow.
        node._store._scripts.timeout = LONGEST_CALL / 1000
        gate = threading.Event()
        run = Service._run
        monkeypatch.setattr(Service, "_run", lambda *args: gate.wait(PATIENCE) and run(*args))
        with pytest.raises(UsageError, match="threads are stuck or starved"):
            node.join()
        assert not node.joined
        gate.set()
        eventually(lambda: not threads())

    @pytest.mark.fault("F65")
    def test_join_refuses_gevent_with_unpatched_threads_in_a_process(self, script):
        """``gevent.monkey.patch_all(thread=False)`` is recognised in a real process."""
        program = script(
            "from gevent import monkey; monkey.patch_all(thread=False)\n"
            "from dtimer import UsageError\n"
            "try: timer().join()\n"
            "except UsageError as e: say('gevent' in str(e))\n"
        )
        assert "True" == program.hear()
        assert "" == program.end(0)

    def test_a_timer_can_post_but_not_join_on_windows(self, own_server, monkeypatch):
        """The error names Windows, because a node is not supported there."""
        node = DTimer("node", own_server.url)
        monkeypatch.setattr(sys, "platform", "win32")
        with pytest.raises(UsageError, match="Windows"):
            node.join()
        node.post({}, 1_000)
        monkeypatch.undo()
        node.leave()

    @pytest.mark.fault("F65")
    def test_a_node_works_under_gevent(self, watch, script):
        """
        Heartbeats keep the lease of a handler that waits, wakes arrive, and an idle node uses
        hardly any CPU.
        """
        program = script(
            "from gevent import monkey; monkey.patch_all()\n"
            + _IMPORT_AGAIN
            + _NODE.replace("do()", "threading.Event().wait(events[0].get('wait', 0))")
            + """
import time
dt.join()
say("joined")
heard()
used = time.process_time()
heard()
say(time.process_time() - used < 1, dt.health().ok, threading.active_count())
dt.leave()
say([t.name for t in threading.enumerate()])
"""
        )
        assert "joined" == program.hear()
        # The program handles these events, so the watch sees no delivery of them.
        watch.excused |= {"long", "next"}
        watch.post(id="long", more={"wait": 2 * PATIENT["lease"] / 1000})
        assert ["begun 1", "ended False"] == [program.hear() for _ in range(2)]
        program.tell()
        watch.post(id="next")
        assert ["begun 1", "ended False"] == [program.hear() for _ in range(2)]
        program.tell()
        assert "True True 5" == program.hear()
        assert "['MainThread']" == program.hear()
        assert "" == program.end()
        assert 2 == watch._poster.stats().totals["started"]


# `Script` puts imports before the program, so gevent has not patched these modules.
_IMPORT_AGAIN = """
import gevent, threading
hear = heard

def heard():
    # gevent does not patch standard input. Reading it here would block all greenlets.
    return gevent.get_hub().threadpool.apply(hear)
"""


@pytest.mark.fault("F71")
def test_an_event_moves_on_while_a_handler_holds_the_interpreter_lock(watch, script):
    """C code can hold the lock for longer than a lease, so no heartbeat is sent."""
    hog = script(
        _NODE.replace("do()", "'hog' in events[0] and ctypes.PyDLL(None).usleep(1_500_000)")
        + "dt.join(); say('joined'); heard(); say(dt.health().ok); dt.leave()"
    )
    assert "joined" == hog.hear()
    id = watch.post(more={"hog": True})
    assert "begun 1" == hog.hear()
    watch.node()
    watch.wait_handled(id)
    assert [2] == [handled.attempt for handled in watch.handled]
    assert "ended True" == hog.hear()
    assert "error LeaseLost NoneType" == hog.hear()
    watch.nodes[0].timer.leave()
    # The program handles this event, so the watch sees no delivery of it.
    watch.excused.add(watch.post())
    assert ["begun 1", "ended False"] == [hog.hear() for _ in range(2)]
    hog.tell()
    assert "True" == hog.hear()
    assert "" == hog.end()


class TestStarved:
    """The machine has too little memory or CPU time for the process."""

    @pytest.mark.fault("F72")
    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")
    def test_a_handler_that_runs_out_of_memory_is_retried(self, watch, script):
        """A MemoryError fails the attempt like any other exception, and the node keeps working."""
        program = script(
            _NODE.replace("do()", "events[0].attempt == 1 and bytearray(1 << 30)")
            + "dt.join()\n"
            + "with open('/proc/self/statm') as statm: pages = int(statm.read().split()[0])\n"
            + "most = pages * resource.getpagesize() + (1 << 26)\n"
            + "resource.setrlimit(resource.RLIMIT_AS, (most, -1))\n"
            + "say('joined'); heard(); say(dt.health().ok); dt.leave()"
        )
        assert "joined" == program.hear()
        id = watch.post()
        # The program handles this event, so the watch sees no delivery of it.
        watch.excused.add(id)
        lines = [program.hear() for _ in range(4)]
        assert ["begun 1", "error HandlerError MemoryError", "begun 2", "ended False"] == lines
        program.tell()
        assert "True" == program.hear()
        assert "" == program.end()

    @pytest.mark.fault("F72")
    def test_a_starved_node_confirms_each_event_once(self, watch, script):
        """Its events are late and it may lose leases, but no event is lost."""
        program = script(
            "os.nice(19)\n"
            + _NODE.replace("do()", "pass")
            + "dt.join(); say('joined'); heard(); dt.leave()"
        )
        assert "joined" == program.hear()
        burners = [
            subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            for _ in range(2 * (os.cpu_count() or 1))
        ]
        try:
            ids = [watch.post() for _ in range(20)]
            # The program handles these events, so the watch sees no delivery of them.
            watch.excused |= set(ids)
            poster = watch._poster
            eventually(lambda: poster.stats().totals.get("confirmed") == 20, 3 * PATIENCE)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert 0 == poster.stats().dead
        program.tell()
        assert "" == program.end()
