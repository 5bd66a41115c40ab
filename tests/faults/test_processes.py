"""The catalogue, F59 to F73: what processes and their threads do to a node, and it to them."""

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
from servers import PATIENCE, eventually

from dtimer import DTimer, UsageError
from dtimer.engine.service import Service
from dtimer.faultpoints import arm

pytestmark = pytest.mark.chaos

# Joins, and says what its handler is given and what it is told.
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
def script(watch, own):
    """Runs a program in the namespace of the watch, and has it forgotten in the end."""
    running = []

    def run(text, **options):
        program = Script(own, watch.ns, text, **options)
        running.append(program)
        return program

    yield run
    for program in running:
        program.__exit__()
    for incarnation, who in watch.client.hgetall(watch.keys.nodes).items():
        if b'"script"' in who:
            # It was killed. After a minute of silence it would have been forgotten.
            watch.client.hdel(watch.keys.nodes, incarnation)
            for key in (watch.keys.alive, watch.keys.roster, watch.keys.promise):
                watch.client.zrem(key, incarnation)


@pytest.mark.fault("F59")
@pytest.mark.parametrize(
    "end",
    ["os._exit(0)", "os.kill(os.getpid(), signal.SIGSEGV)", "os.kill(os.getpid(), signal.SIGKILL)"],
    ids=["exit", "segfault", "kill"],
)
def test_a_handler_that_ends_its_process(watch, script, end):
    """
    The event of a handler in which the process ends, whatever the way, is handed out again
    when its lease is over; the attempt counts.
    """
    # A signal takes its time, which the thread that sends it must not use.
    dying = script(
        _NODE.replace("do()", f"{end}; threading.Event().wait()")
        + "dt.join(); say('joined'); heard()"
    )
    assert "joined" == dying.hear()
    id = watch.post()
    assert "begun 1" == dying.hear()
    watch.node()
    watch.wait_handled(id)
    (handled,) = watch.handled
    assert 2 == handled.attempt


@pytest.mark.fault("F61")
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_post_that_is_interrupted(watch, own, error):
    """
    What interrupts a post between the command and its reply reaches the caller as it is. The
    connection is dropped with the reply on it: the next call reads its own.
    """
    watch.node()
    caller = DTimer("caller", own.url, ns=watch.ns)
    watch.post(timer=caller)
    # So that the server knows the script, and does what it is told.
    watch.post(timer=caller, id="whole")
    here = threading.current_thread()
    watch.perhaps.add("cut")

    def interrupt():
        if threading.current_thread() is here:
            raise error

    with arm("reply.reading", interrupt), pytest.raises(error):
        caller.post({}, id="cut")
    assert caller.peek("nothing") is None
    assert isinstance(watch.post(timer=caller), str)
    watch.wait_handled("cut")
    caller.leave()


class TestThreads:
    """A process in which no thread would run is told so."""

    @pytest.mark.fault("F64")
    def test_uwsgi_without_threads(self, own, monkeypatch):
        """join() under uWSGI without enable-threads says what to do; with it, it joins."""
        node = DTimer("node", own.url)
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=0))
        with pytest.raises(UsageError, match="enable-threads"):
            node.join()
        assert not node.joined
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=1))
        with node:
            assert node.joined

    @pytest.mark.fault("F64")
    def test_threads_that_do_not_run(self, watch, own, monkeypatch):
        """
        Where threads do not run for whatever reason join() says so in the end, instead of
        returning and receiving nothing for ever.
        """
        node = DTimer("node", own.url, ns=watch.ns, timeout=100)
        gate = threading.Event()
        run = Service._run
        monkeypatch.setattr(Service, "_run", lambda *args: gate.wait(PATIENCE) and run(*args))
        with pytest.raises(UsageError, match="threads are stuck or starved"):
            node.join()
        assert not node.joined
        gate.set()
        eventually(lambda: not threads())

    @pytest.mark.fault("F65")
    def test_eventlet(self, own, monkeypatch):
        """Where eventlet has replaced the threads a node can post, and says that it cannot join."""
        patcher = SimpleNamespace(is_monkey_patched=lambda what: what == "thread")
        monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
        node = DTimer("node", own.url)
        node.post({}, 1_000)
        with pytest.raises(UsageError, match="eventlet"):
            node.join()
        node.leave()

    @pytest.mark.fault("F64")
    @pytest.mark.parametrize(
        ("state", "refused"),
        [
            ({"worker_id": 0, "masterpid": 17, "numproc": 1}, True),
            ({"worker_id": 0, "masterpid": 0, "numproc": 4}, True),
            ({"worker_id": 0, "masterpid": 0, "numproc": 1}, False),
            ({"worker_id": 2, "masterpid": 17, "numproc": 4}, False),
            ({"worker_id": 0, "masterpid": 17, "numproc": 4, "mule_id": 1}, False),
            ({"worker_id": 0, "masterpid": 17, "numproc": 4, "i_am_the_spooler": True}, False),
        ],
    )
    def test_uwsgi_before_it_forks(self, own, monkeypatch, state, refused):
        """
        join() in a process of uWSGI that forks its workers later says where to join instead: in
        the workers the locks of its threads would be held by nobody, for ever.
        """
        told = {k: v if k == "numproc" else (lambda v=v: v) for k, v in state.items()}
        monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=1, **told))
        node = DTimer("node", own.url)
        if refused:
            with pytest.raises(UsageError, match=r"@postfork.* lazy-apps"):
                node.join()
        else:
            node.join()
        assert node.joined != refused
        node.leave()

    @pytest.mark.fault("F65")
    @pytest.mark.parametrize(
        ("patched", "refused"),
        [
            ({"socket", "select", "queue"}, True),
            ({"socket", "select", "queue", "threading"}, False),
            ({"signal"}, False),
        ],
    )
    def test_gevent_without_threads(self, own, monkeypatch, patched, refused):
        """
        Where gevent has replaced sockets and not threads join() says so: a thread that waits for
        the one would stop the others.
        """
        monkey = SimpleNamespace(is_module_patched=lambda name: name in patched)
        monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
        node = DTimer("node", own.url)
        if refused:
            with pytest.raises(UsageError, match="thread=False"):
                node.join()
        else:
            node.join()
        assert node.joined != refused
        node.leave()

    @pytest.mark.fault("F65")
    def test_gevent_without_threads_for_real(self, script):
        """patch_all(thread=False) of gevent is told from patch_all()."""
        program = script(
            "from gevent import monkey; monkey.patch_all(thread=False)\n"
            "from dtimer import UsageError\n"
            "try: timer().join()\n"
            "except UsageError as e: say('gevent' in str(e))\n"
        )
        assert "True" == program.hear()
        assert "" == program.end(0)

    def test_windows(self, own, monkeypatch):
        """On Windows join() says that it is not supported there, and a post works."""
        node = DTimer("node", own.url)
        monkeypatch.setattr(sys, "platform", "win32")
        with pytest.raises(UsageError, match="Windows"):
            node.join()
        node.post({}, 1_000)
        monkeypatch.undo()
        node.leave()

    @pytest.mark.fault("F65")
    def test_gevent(self, watch, script):
        """
        Under gevent's patches a node works: its heartbeats hold an event through a handler
        that waits for longer than the lease, wakes arrive, it costs nothing while idle, and it
        leaves with nothing left.
        """
        program = script(
            "from gevent import monkey; monkey.patch_all()\n"
            + _PREAMBLE_AGAIN
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


# What gevent patches has been imported by then, and has to be asked for again.
_PREAMBLE_AGAIN = """
import gevent, threading
hear = heard

def heard():
    # Standard input is not patched, and would keep all greenlets from running.
    return gevent.get_hub().threadpool.apply(hear)
"""


@pytest.mark.fault("F71")
def test_the_interpreter_is_held(watch, script):
    """
    A handler that keeps the interpreter to itself for longer than the lease, as C code can,
    starves the heartbeats: another node is handed the event. The first learns of it when it
    can, its confirm is void, and it goes on.
    """
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
    watch.excused.add(watch.post())
    assert ["begun 1", "ended False"] == [hog.hear() for _ in range(2)]
    hog.tell()
    assert "True" == hog.hear()
    assert "" == hog.end()


class TestStarved:
    """The machine has no memory or no time for the process."""

    @pytest.mark.fault("F72")
    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps to the limit there")
    def test_no_memory(self, watch, script):
        """
        A handler that runs into the limit of its memory has failed like any other: the event is
        retried, and the node serves on.
        """
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
        watch.excused.add(id)
        said = [program.hear() for _ in range(4)]
        assert ["begun 1", "error HandlerError MemoryError", "begun 2", "ended False"] == said
        program.tell()
        assert "True" == program.hear()
        assert "" == program.end()

    @pytest.mark.fault("F72")
    def test_no_time(self, watch, script):
        """
        A node that the machine has hardly any time for, others being busy, handles its events
        late and may lose leases; each is confirmed once all the same.
        """
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
