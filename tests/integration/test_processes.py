"""Nodes in processes that exit, receive signals, and fork."""

from __future__ import annotations

import signal

import pytest
from scripts import Script
from servers import eventually
from soundness import assert_sound

from dtimer import State
from dtimer.store.keys import Keys
from dtimer.testing import Catch


@pytest.fixture
def script(server, namespace, client):
    """
    Return a function that runs a program in the test's namespace. The keys must agree
    afterwards.
    """
    running = []

    def run(text, **options):
        program = Script(server, namespace, text, **options)
        running.append(program)
        return program

    yield run
    for program in running:
        program.__exit__()
    assert_sound(client, Keys.of(namespace))


# A handler that reports its start, waits for input, and then waits until the node leaves. If it
# returned earlier, the node would claim the next event.
GATED = """
dt = timer(exit_timeout=8_000)
begun = threading.Event()

@dt.on("event")
def handle(events):
    say("begun", events[0].id, events[0].attempt)
    begun.set()
    heard()
    while not (dt._node and dt._node.leaving):
        threading.Event().wait(0.005)
    say("done")
"""

# A handler that never returns.
HANGING = GATED.replace("heard()", "threading.Event().wait()")


def left_nothing(client, namespace):
    """Return True if no node is registered."""
    return not client.exists(Keys.of(namespace).nodes)


class TestSignals:
    """Signals to run(), which is the body of a worker script."""

    @pytest.mark.fault("F60")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_signal_lets_running_handlers_finish(
        self, script, make, client, namespace, number
    ):
        """
        After SIGTERM or SIGINT the running handler finishes and is confirmed, no event is claimed,
        and the program exits with status 0 and no output.
        """
        program = script(GATED + "say('run'); dt.run(); say('over')")
        poster = make("poster")
        assert "run" == program.hear()
        first = poster.post({})
        assert f"begun {first} 1" == program.hear()
        second = poster.post({})
        program.signal(number)
        program.tell()
        assert ["done", "over"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)
        assert poster.peek(first) is None
        assert (State.SCHEDULED, 0) == (poster.peek(second).state, poster.peek(second).attempt)
        assert left_nothing(client, namespace)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_the_wait_for_handlers(
        self, script, make, client, namespace, number
    ):
        """
        A second signal has the running handler's event retried at once, and then acts as it did
        before run(). The node has left by then, so other nodes need not wait for a lease.
        """
        program = script(
            HANGING
            + """
def watch():
    while not (dt._node and dt._node.leaving):
        threading.Event().wait(0.005)
    say("leaving")

threading.Thread(target=watch, daemon=True).start()
dt.run()
"""
        )
        other = make("other")
        caught = Catch(other, "event")
        id = other.post({})
        assert f"begun {id} 1" == program.hear()
        program.signal(number)
        assert "leaving" == program.hear()
        program.signal(number)
        complaint = program.end(-number)
        assert ("KeyboardInterrupt" in complaint) == (number == signal.SIGINT)
        assert left_nothing(client, namespace)
        with other:
            (ev,) = caught.next()
            assert (id, 2) == (ev.id, ev.attempt)

    def test_an_ignored_interrupt_stays_ignored(self, script, make):
        """
        run() does not handle a SIGINT that its parent process set to be ignored. A shell does so
        for a background job, which Ctrl-C is not meant for.
        """
        program = script(
            """
            import signal
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            dt = timer()
            dt.on("ready", lambda: say("ready", signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
            dt.on("event", lambda events: say("handled"))
            dt.run()
            """
        )
        assert "ready True" == program.hear()
        program.signal(signal.SIGINT)
        make("poster").post({})
        assert "handled" == program.hear()
        program.signal(signal.SIGTERM)
        assert "" == program.end(0)

    def test_run_restores_the_signal_handlers(self, script):
        """
        After run() the signal handlers are those from before, even a handler that was not set in
        Python.
        """
        program = script(
            """
            import signal
            mine = lambda *_: None
            signal.signal(signal.SIGTERM, mine)
            getter, note = signal.getsignal, signal.signal
            # As in a program that embeds Python and has installed its own handler.
            signal.signal = lambda n, h: None if n == signal.SIGINT and note(n, h) else note(n, h)
            dt = timer()
            dt.on("ready", lambda: os.kill(os.getpid(), signal.SIGTERM))
            dt.run()
            say(getter(signal.SIGTERM) is mine, getter(signal.SIGINT) is signal.SIG_DFL)
            """
        )
        assert "True True" == program.hear()
        assert "" == program.end(0)

    def test_a_signal_during_join_is_not_lost(self, script, client, namespace):
        """If a signal arrives while run() joins, the node leaves as soon as it has joined."""
        program = script(
            """
            import signal
            from dtimer.timer.node import Node
            start = Node.start

            def slow(life, **options):
                os.kill(os.getpid(), signal.SIGTERM)
                start(life, **options)
                say("joined")

            Node.start = slow
            timer().run()
            say("over")
            """
        )
        assert ["joined", "over"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)
        assert left_nothing(client, namespace)

    @pytest.mark.fault("F61")
    def test_sys_exit_in_a_handler_ends_run(self, script, make):
        """
        sys.exit() in a handler ends run(): the event is retried, and the program exits with status
        0.
        """
        program = script(
            """
            dt = timer(backoff=0)
            dt.on("error", lambda e: say(repr(e.__cause__)))
            dt.on("event", lambda events: sys.exit(3))
            dt.post({}, id="tea")
            dt.run()
            say("over")
            """
        )
        assert ["SystemExit(3)", "over"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)
        assert 1 == make().peek("tea").attempt


@pytest.mark.fault("F67")
class TestExit:
    """Programs that end without leave()."""

    @pytest.mark.parametrize(
        "end", [("", 0), ("sys.exit(3)", 3), ("raise SystemExit", 0), ("1 / 0", 1)]
    )
    def test_a_program_that_ends_while_joined_finishes_its_handler(
        self, script, make, client, namespace, end
    ):
        """
        If a program ends while its node is joined, the running handler finishes and is confirmed.
        Events that have not started stay for other nodes. The program keeps its exit status, and no
        thread reports an error.
        """
        ending, status = end
        # Wait until the handler has begun; an event that has not started would be released.
        program = script(
            GATED
            + "dt.post({}, id='first'); dt.join(); dt.post({}, id='second'); begun.wait()\n"
            + "say('main is over')\n"
            + ending
        )
        assert ["begun first 1", "main is over"] == [program.hear() for _ in range(2)]
        other = make("other")
        program.tell()
        assert "done" == program.hear()
        complaint = program.end(status)
        assert "ZeroDivisionError" in complaint if status == 1 else complaint == ""
        assert other.peek("first") is None
        assert (State.SCHEDULED, 0) == (other.peek("second").state, other.peek("second").attempt)
        assert left_nothing(client, namespace)

    def test_a_hanging_handler_is_given_up_at_exit(self, script, make, client, namespace):
        """
        A handler that does not finish within exit_timeout is given up. Its event is retried at
        once, on another node, and the attempt is charged.
        """
        program = script(
            HANGING.replace("8_000", "100") + "dt.post({}, id='tea'); dt.join(); heard()"
        )
        other = make("other")
        caught = Catch(other, "event")
        assert "begun tea 1" == program.hear()
        program.tell()
        assert "" == program.end(0)
        assert left_nothing(client, namespace)
        with other:
            assert 2 == caught.next()[0].attempt

    def test_all_nodes_of_a_program_leave_at_exit(self, script, client, namespace):
        """All nodes of a program leave when it ends."""
        program = script(
            """
            timers = [timer(f"node-{n}") for n in range(5)]
            for dt in timers:
                dt.on("event", print)
                dt.join()
            say(len(timers[0].nodes()))
            """
        )
        assert "5" == program.hear()
        assert "" == program.end(0)
        assert left_nothing(client, namespace)

    def test_a_node_causes_no_warnings_in_development_mode(self, script):
        """
        In Python's development mode, with warnings as errors, a node joins, receives and leaves
        without a warning.
        """
        program = script(
            """
            dt = timer()
            done = threading.Event()
            dt.on("event", lambda events: done.set())
            for _ in range(2):
                with dt:
                    dt.post({"msg": "hello"}, 20)
                    assert done.wait(PATIENCE)
                    done.clear()
            say(sorted(t.name for t in threading.enumerate()))
            """,
            flags=("-X", "dev", "-W", "error"),
        )
        assert "['MainThread']" == program.hear()
        assert "" == program.end(0)

    def test_a_node_that_never_leaves_causes_no_warnings(self, script):
        """A node without leave() ends with its program, in development mode too."""
        program = script(
            """
            dt = timer()
            dt.on("event", lambda events: say("handled"))
            dt.join()
            dt.post({})
            """,
            flags=("-X", "dev", "-W", "error"),
        )
        said = program.end(0)
        assert "" == said


# Run a function in a forked child and report its exit status.
FORK = """
def forked(act):
    child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        finally:
            if status:
                import traceback
                traceback.print_exc()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
"""


class TestFork:
    """A forked child has no threads, new locks and connections, and has not joined."""

    @pytest.mark.fault("F62")
    def test_a_child_of_a_joined_process_has_not_joined(self, script, make):
        """
        A child of a joined process may post, and may join under its own incarnation and receive.
        The parent is not affected.
        """
        program = script(
            FORK
            + """
dt = timer()
gate, opener = os.pipe()

@dt.on("event")
def handle(events):
    say(events[0]["to"], "by", "parent" if os.getpid() == parent else "child")
    os.read(gate, 1)

def nodes():
    return {n.incarnation for n in dt.nodes()}

parent = os.getpid()
dt.join()
before = nodes()

def child():
    say(dt.joined, dt.health().joined, [t.name for t in threading.enumerate()])
    dt.leave()
    dt.post({"to": "anybody"})
    heard()
    os.write(opener, b".")
    dt.join()
    assert len(nodes()) == 2 and before < nodes()
    # One handler thread each, and each keeps its event until both have one.
    dt.post_many([({"to": "both"}, 0)] * 2)
    heard()
    os.write(opener, b"..")
    dt.leave()
    assert not dt.joined
    assert nodes() == before

forked(child)
assert dt.joined and nodes() == before
os.write(opener, b".")
dt.post({"to": "us"})
heard()
dt.leave()
"""
        )
        assert "False False ['MainThread']" == program.hear()
        assert "anybody by parent" == program.hear()
        program.tell()
        assert {"both by parent", "both by child"} == {program.hear() for _ in range(2)}
        program.tell()
        assert "child 0" == program.hear()
        assert "us by parent" == program.hear()
        program.tell()
        assert "" == program.end(0)

    def test_a_fork_with_debug_logging_works(self, script):
        """A log handler at level DEBUG does not prevent the child's clean start."""
        program = script(
            FORK
            + """
import logging
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
dt = timer()
dt.on("event", lambda events: say("handled"))
dt.join()
forked(lambda: say(dt.joined, dt._node))
dt.leave()
"""
        )
        # The lines of parent and child are in any order, among the debug records of the parent.
        missing = {"was joined by the parent process", "False None", "child 0"}
        while missing:
            line = program.hear()
            missing -= {text for text in missing if text in line}
        assert "" == program.end(0)

    def test_nothing_is_inherited(self, script):
        """
        A child closes its copies of its parent's pipes and subscription. Otherwise they would stay
        open after the parent has closed them.
        """
        program = script(
            FORK
            + """
dt = timer()
dt.join()
node = dt._node
inherited = [node.bell._pipe.reader, node.bell._pipe.writer,
             node._listener._stop_bell._pipe.reader, node._listener._stop_bell._pipe.writer,
             node._listener._opened._descriptor()]
del node

def child():
    for descriptor in inherited:
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        raise AssertionError(descriptor)

forked(child)
dt.leave()
"""
        )
        assert "child 0" == program.hear()
        assert "" == program.end(0)

    def test_a_fork_without_hooks_is_noticed_at_the_first_call(self, script):
        """
        If a server such as uWSGI forks without calling Python's hooks, the child's first call
        notices the fork.
        """
        program = script(
            FORK
            + """
import weakref
from dtimer.timer import fork
dt = timer()
dt.join()
# With no instance watched, the hook has none to reset.
fork._watched = weakref.WeakSet()

def child():
    assert dt._node is not None
    say(dt.joined, dt._node)
    dt.post({})
    dt.join()
    dt.leave()

forked(child)
say(dt.joined)
dt.leave()
"""
        )
        assert ["False None", "child 0", "True"] == [program.hear() for _ in range(3)]
        assert "" == program.end(0)

    def test_a_child_can_join_if_its_parent_has_left_and_the_fork_called_no_hook(self, script):
        """A join counts the leaves of a signal handler. A leave of its parent is not one."""
        program = script(
            FORK
            + """
import weakref
from dtimer.timer import fork
dt = timer()
dt.join()
dt.leave()
fork._watched = weakref.WeakSet()

def child():
    dt.join()
    say(dt.joined)
    dt.leave()

forked(child)
"""
        )
        assert ["True", "child 0"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)

    @pytest.mark.fault("F63")
    @pytest.mark.parametrize("joined", [False, True])
    def test_forking_while_other_threads_work_is_safe(self, script, make, joined):
        """
        While other threads post and handle events, forking in a loop blocks neither the parent nor
        the children, which post and leave. No event is lost or doubled.
        """
        program = script(
            FORK
            + f"""
dt = timer(max_events=10, concurrency=2, timeout=20_000)
dt.on("event", lambda events: None)
# Make the first connection, whose library imports modules. A fork while another thread imports
# would leave the child a locked module for ever, which Python does not repair.
dt.post({{}})
if {joined}:
    dt.join()
ending = threading.Event()
posted = []

def post():
    n = 0
    while not ending.is_set():
        dt.post({{"n": n}})
        n += 1
    posted.append(n)

threads = [threading.Thread(target=post) for _ in range(3)]
for thread in threads:
    thread.start()

def child():
    dt.post({{"child": True}})
    dt.leave()

for _ in range(40):
    forked(child)
ending.set()
for thread in threads:
    thread.join()
dt.leave()
say(sum(posted) + 41)
"""
        )
        children = [program.hear() for _ in range(40)]
        assert ["child 0"] * 40 == children, program.end(None)
        total = int(program.hear())
        assert "" == program.end(0)
        timer = make(max_events=100)
        timer.on("event", lambda events: None)
        with timer:
            eventually(lambda: timer.stats().totals.get("confirmed", 0) == total)
        assert total == timer.stats().totals["posted"]

    def test_a_multiprocessing_child_may_join(self, script):
        """A multiprocessing child (fork) may join, receive and leave like its parent."""
        program = script(
            """
            import multiprocessing
            dt = timer()
            got = threading.Semaphore(0)
            dt.on("event", lambda events: got.release())

            def child():
                assert not dt.joined
                with dt:
                    assert len(dt.nodes()) == 2
                    say("two")
                    heard()

            with dt:
                process = multiprocessing.get_context("fork").Process(target=child)
                process.start()
                process.join()
                say("child", process.exitcode, len(dt.nodes()))
                dt.post({})
                assert got.acquire(timeout=PATIENCE)
            """
        )
        assert "two" == program.hear()
        program.tell()
        assert "child 0 1" == program.hear()
        assert "" == program.end(0)

    def test_a_handler_may_fork(self, script):
        """A handler may fork a child that ends by itself, and the event is confirmed."""
        program = script(
            FORK
            + """
dt = timer()
done = threading.Event()

@dt.on("event")
def handle(events):
    forked(lambda: dt.post({"by": "child"}, 60_000, id="egg"))
    done.set()

with dt:
    dt.post({}, id="tea")
    assert done.wait(PATIENCE)
say(dt.peek("tea"), dt.peek("egg").event)
"""
        )
        assert ["child 0", "None {'by': 'child'}"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)

    def test_a_child_that_a_listener_forks_on_a_thread_of_the_user_continues(self, script):
        """
        stop() calls the listeners of 'end' on the thread that stops. A child that one of them forks
        has that thread, and continues after stop(), as after any other fork.
        """
        program = script(
            FORK
            + """
import dtimer

main, children = os.getpid(), []
queue = dtimer.RunAt(timer().ns, redis=os.environ.get("DTIMER_URL"))

@queue.on("end")
def fork():
    children.append(os.fork())

queue.stop()
if os.getpid() != main:
    os._exit(7)
say(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""
        )
        assert "7" == program.hear()
        assert "" == program.end(0)

    def test_a_child_that_continues_in_a_handler_claims_nothing(self, script):
        """
        A child that continues in the handler's code must not claim for its parent's node: an
        unregistered process would hold the event.
        """
        program = script(
            FORK
            + """
dt = timer()
done = threading.Event()

@dt.on("event")
def handle(events):
    if events[0].id == "egg":
        return
    dt.post({}, id="egg")
    child = os.fork()
    if child == 0:
        # The child's handler thread ends after this.
        dispatcher._inbox.put(None)
        return
    os.waitpid(child, 0)
    say(dt.peek("egg").state.value)
    done.set()

with dt:
    dispatcher = dt._node._dispatcher
    dt.post({}, id="tea")
    assert done.wait(PATIENCE)
"""
        )
        assert "scheduled" == program.hear()
        assert "" == program.end(0)


# A handler that forks; the test supplies the child's code. The parent reports the child's status.
FORKING = """
dt = timer(backoff=0)
main = os.getpid()
dt.on("error", lambda e: say("error", os.getpid() == main, repr(e)))

@dt.on("event")
def handle(events):
    child = os.fork()
    if not child:
        {child}
        return
    say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

dt.on("event", lambda events: say("next", os.getpid() == main))
dt.join()
id = dt.post({{}})
heard()
dt.leave()
say("left", dt.peek(id))
"""


class TestForkedByAHandler:
    """A child that a handler forks continues on a library thread, without other threads."""

    @pytest.mark.parametrize(
        ("child", "status", "word"),
        [
            ("pass", 0, ""),
            ("sys.exit()", 0, ""),
            ("sys.exit(3)", 3, ""),
            ("sys.exit('over')", 1, "over"),
            ("raise RuntimeError('in the child')", 1, "RuntimeError: in the child"),
            ("os._exit(4)", 4, ""),
        ],
    )
    def test_the_child_ends_when_the_handler_ends(self, script, child, status, word):
        """
        The child ends with the handler, with the exit status of a program. A child that continued
        would block its parent for ever, with its lease renewed. It calls no other listener, and the
        parent confirms the event.
        """
        program = script(FORKING.format(child=child))
        assert [f"child {status}", "next True"] == [program.hear() for _ in range(2)]
        program.tell()
        assert "left None" == program.hear()
        complaint = program.end(0)
        assert word in complaint if word else complaint == ""

    def test_the_output_of_the_child_is_not_lost(self, script):
        """Output that the child has printed is written when it ends."""
        program = script(FORKING.format(child="print('printed in the child')"))
        said = {program.hear() for _ in range(3)}
        assert {"child 0", "next True", "printed in the child"} == said
        program.tell()
        assert "left None" == program.hear()
        assert "" == program.end(0)


def test_a_child_closes_the_sockets_of_its_parent_at_once(script):
    """
    After a fork no socket of the parent is open in the child, not even a socket that another thread
    is using. Otherwise the server would keep a connection that the parent has closed as long as the
    child lives.
    """
    program = script(
        """
        import gc, stat
        from dtimer.faultpoints import arm
        gc.disable()

        def sockets():
            found = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                        found.append(int(name))
                except OSError:
                    pass
            return found

        before = set(sockets())
        # With a short deadline, a thread of the node could be reconnecting at the fork on a slow
        # machine: the client library alone knows a socket that is being connected.
        dt = timer(timeout=30_000)
        dt.join()
        busy, go_on = threading.Event(), threading.Event()
        three, seen = threading.Barrier(3), set()

        def wait():
            thread = threading.current_thread()
            if thread.name == "busy":
                busy.set()
                go_on.wait()
            elif thread.name == "warm" and thread not in seen:
                seen.add(thread)
                three.wait()

        def posting(name):
            thread = threading.Thread(target=dt.post, args=({}, 3_600_000), name=name)
            thread.start()
            return thread

        with arm("reply.reading", wait):
            # Three connections at once, so that no thread opens another one at the fork.
            for thread in [posting("warm") for _ in range(3)]:
                thread.join()
            thread = posting("busy")
            busy.wait()
            child = os.fork()
            if not child:
                os._exit(len(set(sockets()) - before))
            say("left open", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            go_on.set()
            thread.join()
        dt.leave()
        """
    )
    assert "left open 0" == program.hear()
    assert "" == program.end(0)
