"""Nodes in processes that exit, receive signals, and fork."""

from __future__ import annotations

import functools
import signal
import textwrap

import pytest
from proxy import Proxy
from scripts import Script
from servers import eventually
from soundness import assert_sound

from dtimer import OptionError, State
from dtimer.store.keys import Keys
from dtimer.testing import Catch

# The beginning of every program of this file.
HELPERS = """
import signal

def leaving(dt):
    return dt._node and dt._node.leaving

# Make a timer whose handler reports its start, waits for input or hangs, and then waits until the
# node leaves. If it returned earlier, the node would claim the next event.
def gated(hang=False, exit_timeout=8_000):
    dt = timer(exit_timeout=exit_timeout)
    dt.begun = threading.Event()

    @dt.on("event")
    def handle(events):
        say("begun", events[0].id, events[0].attempt)
        dt.begun.set()
        if hang:
            threading.Event().wait()
        heard()
        while not leaving(dt):
            threading.Event().wait(0.005)
        say("done")

    return dt

def exit_status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

# Run a function in a forked child, and report the child's exit status.
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
    say("child", exit_status(child))
"""

#: The flags of Python's development mode, with warnings as errors.
DEVELOPMENT = ("-X", "dev", "-W", "error")


@pytest.fixture
def script(server, namespace, client):
    """A function: run a program in the test's namespace. The keys must agree afterwards."""
    programs = []

    def run(text, at=server, **options):
        programs.append(Script(at, namespace, HELPERS + textwrap.dedent(text), **options))
        return programs[-1]

    yield run
    for program in programs:
        program.__exit__()
    assert_sound(client, Keys.of(namespace))


@pytest.fixture
def registered(client, namespace):
    """A function: return the registered nodes of the test's namespace."""
    return lambda: client.hvals(Keys.of(namespace).nodes)


def assert_prints(program, *lines):
    """Assert that the next lines of the program's output are *lines*, in this order."""
    assert list(lines) == [program.hear() for _ in lines]


def assert_ends(program, *lines):
    """Assert that the program prints *lines*, and ends with status 0 and no error output."""
    assert_prints(program, *lines)
    assert "" == program.end(0)


class TestSignals:
    """Signals to run(), which is the body of a worker script."""

    @pytest.mark.fault("F60")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_signal_lets_running_handlers_finish(self, script, make, registered, number):
        """The running handler is confirmed, no event is claimed, and the status is 0."""
        program = script("""
            dt = gated()
            say("run")
            dt.run()
            say("over")
        """)
        poster = make("poster")
        assert_prints(program, "run")
        first = poster.post({})
        assert_prints(program, f"begun {first} 1")
        second = poster.post({})
        program.signal(number)
        program.tell()
        assert_ends(program, "done", "over")
        assert poster.peek(first) is None
        assert (State.SCHEDULED, 0) == (poster.peek(second).state, poster.peek(second).attempt)
        assert [] == registered()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_the_wait_for_handlers(self, script, make, registered, number):
        """
        A second signal has the running handler's event retried at once, and then acts as it did
        before run(). The node has left by then, so other nodes need not wait for a lease.
        """
        program = script("""
            dt = gated(hang=True)

            def watch():
                while not leaving(dt):
                    threading.Event().wait(0.005)
                say("leaving")

            threading.Thread(target=watch, daemon=True).start()
            dt.run()
        """)
        other_node = make("other")
        caught = Catch(other_node, "event")
        id = other_node.post({})
        assert_prints(program, f"begun {id} 1")
        program.signal(number)
        assert_prints(program, "leaving")
        program.signal(number)
        complaint = program.end(-number)
        assert ("KeyboardInterrupt" in complaint) == (number == signal.SIGINT)
        assert [] == registered()
        with other_node:
            (ev,) = caught.next()
            assert (id, 2) == (ev.id, ev.attempt)

    def test_the_drain_ends_the_wait_for_handlers(self, script, make, registered):
        """A supervisor kills the process soon after SIGTERM. The node must have left by then."""
        program = script("""
            dt = gated(hang=True)
            dt.run(drain=0)
            say("over", dt.joined)
        """)
        poster = make("poster")
        id = poster.post({})
        assert_prints(program, f"begun {id} 1")
        program.signal(signal.SIGTERM)
        assert_ends(program, "over False")
        assert (State.SCHEDULED, 1) == (poster.peek(id).state, poster.peek(id).attempt)
        assert [] == registered()

    def test_a_wrong_drain_is_refused_before_the_node_joins(self, make):
        """Otherwise the mistake would show weeks later, when the process is stopped."""
        timer = make()
        with pytest.raises(OptionError, match="drain"):
            timer.run(drain="soon")
        assert not timer.joined

    def test_an_ignored_interrupt_stays_ignored(self, script, make):
        """A shell ignores SIGINT for a background job, because Ctrl-C is not meant for the job."""
        program = script("""
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            dt = timer()
            dt.on("ready", lambda: say("ready", signal.getsignal(signal.SIGINT) is signal.SIG_IGN))
            dt.on("event", lambda events: say("handled"))
            dt.run()
        """)
        assert_prints(program, "ready True")
        program.signal(signal.SIGINT)
        make("poster").post({})
        assert_prints(program, "handled")
        program.signal(signal.SIGTERM)
        assert_ends(program)

    def test_run_restores_the_signal_handlers(self, script):
        """run() must restore even a handler that was not set in Python, which it cannot read."""
        program = script("""
            handler = lambda *_: None
            signal.signal(signal.SIGTERM, handler)
            getter, setter = signal.getsignal, signal.signal

            # As in a program that embeds Python and has installed its own handler of SIGINT.
            def set_handler(number, handler):
                previous = setter(number, handler)
                return None if number == signal.SIGINT else previous

            signal.signal = set_handler
            dt = timer()
            dt.on("ready", lambda: os.kill(os.getpid(), signal.SIGTERM))
            dt.run()
            say(getter(signal.SIGTERM) is handler, getter(signal.SIGINT) is signal.SIG_DFL)
        """)
        assert_ends(program, "True True")

    def test_a_signal_during_join_is_not_lost(self, script, registered):
        """If a signal arrives while run() joins, the node leaves as soon as it has joined."""
        program = script("""
            from dtimer.timer.node import Node
            start = Node.start

            def start_with_a_signal(node, **options):
                os.kill(os.getpid(), signal.SIGTERM)
                start(node, **options)
                say("joined")

            Node.start = start_with_a_signal
            timer().run()
            say("over")
        """)
        assert_ends(program, "joined", "over")
        assert [] == registered()

    @pytest.mark.fault("F61")
    def test_sys_exit_in_a_handler_ends_run(self, script, make):
        """The event is retried, and the program goes on after run()."""
        program = script("""
            dt = timer(backoff=0)
            dt.on("error", lambda e: say(repr(e.__cause__)))
            dt.on("event", lambda events: sys.exit(3))
            dt.post({}, id="tea")
            dt.run()
            say("over")
        """)
        assert_ends(program, "SystemExit(3)", "over")
        assert 1 == make().peek("tea").attempt


@pytest.mark.fault("F67")
class TestExit:
    """Programs that end without leave()."""

    @pytest.mark.parametrize(
        ("last_line", "status"),
        [("", 0), ("sys.exit(3)", 3), ("raise SystemExit", 0), ("1 / 0", 1)],
    )
    def test_a_program_that_ends_while_joined_finishes_its_handler(
        self, script, make, registered, last_line, status
    ):
        """
        If a program ends while its node is joined, the running handler finishes and is confirmed.
        Events that have not started stay for other nodes. The program keeps its exit status, and no
        thread reports an error.
        """
        # Wait until the handler has begun; an event that has not started would be released.
        program = script(f"""
            dt = gated()
            dt.post({{}}, id="first")
            dt.join()
            dt.post({{}}, id="second")
            dt.begun.wait()
            say("main is over")
            {last_line}
        """)
        assert_prints(program, "begun first 1", "main is over")
        other_node = make("other")
        program.tell()
        assert_prints(program, "done")
        complaint = program.end(status)
        assert "ZeroDivisionError" in complaint if status == 1 else complaint == ""
        assert other_node.peek("first") is None
        assert (State.SCHEDULED, 0) == (
            other_node.peek("second").state,
            other_node.peek("second").attempt,
        )
        assert [] == registered()

    def test_a_hanging_handler_is_given_up_at_exit(self, script, make, registered):
        """After exit_timeout the event is retried on another node, and the attempt is charged."""
        program = script("""
            dt = gated(hang=True, exit_timeout=100)
            dt.post({}, id="tea")
            dt.join()
            heard()
        """)
        other_node = make("other")
        caught = Catch(other_node, "event")
        assert_prints(program, "begun tea 1")
        program.tell()
        assert_ends(program)
        assert [] == registered()
        with other_node:
            assert 2 == caught.next()[0].attempt

    def test_all_nodes_of_a_program_leave_at_exit(self, script, registered):
        """A program may have several nodes, in one namespace or in many."""
        program = script("""
            timers = [timer(f"node-{n}") for n in range(5)]
            for dt in timers:
                dt.on("event", print)
                dt.join()
            say(len(timers[0].nodes()))
        """)
        assert_ends(program, "5")
        assert [] == registered()

    def test_a_node_causes_no_warnings_in_development_mode(self, script):
        """A node joins, receives and leaves twice without a warning, and no thread remains."""
        script = functools.partial(script, flags=DEVELOPMENT)
        program = script("""
            dt = timer()
            done = threading.Event()
            dt.on("event", lambda events: done.set())
            for _ in range(2):
                with dt:
                    dt.post({"msg": "hello"}, 20)
                    assert done.wait(PATIENCE)
                    done.clear()
            say(sorted(t.name for t in threading.enumerate()))
        """)
        assert_ends(program, "['MainThread']")


class TestJoining:
    """Processes that exit or fork while a node joins in the background."""

    @pytest.mark.fault("F67")
    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.blackhole, Proxy.heal])
    def test_a_program_that_ends_while_joining_leaves_no_registration(
        self, script, proxy, registered, fault
    ):
        """The exit waits neither for Redis nor for a pause, and no thread reports an error."""
        fault(proxy)
        program = script(
            """
            dt = timer()
            dt.on("error", lambda error: None)
            dt.join(wait=False)
            say("over")
            """,
            at=proxy,
        )
        assert_ends(program, "over")
        assert [] == registered()

    @pytest.mark.fault("F62")
    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.blackhole])
    def test_a_child_of_a_joining_process_has_not_joined(self, script, proxy, registered, fault):
        """
        A server may load the application, which joins, before it forks its workers. A worker does
        not join by itself, and may join. The parent's node joins too.
        """
        fault(proxy)
        program = script(
            """
            dt = timer(timeout=300, lease=600_000)
            dt.on("error", lambda error: None)
            dt.join(wait=False)
            while not dt.health().error:
                threading.Event().wait(0.005)

            def child():
                say(dt.joined, dt.health().joining, [t.name for t in threading.enumerate()])
                heard()
                dt.join()
                say("child", dt.joined)
                dt.leave()

            forked(child)
            while not dt.joined:
                threading.Event().wait(0.005)
            say("parent", len(dt.nodes()))
            dt.leave()
            """,
            at=proxy,
        )
        assert_prints(program, "False False ['MainThread']")
        proxy.heal()
        program.tell()
        assert_ends(program, "child True", "child 0", "parent 1")
        assert [] == registered()


class TestFork:
    """A forked child has no threads, new locks and connections, and has not joined."""

    @pytest.mark.fault("F62")
    def test_a_child_of_a_joined_process_has_not_joined(self, script):
        """The child may post, join as another node and receive. The parent is not affected."""
        program = script("""
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
        """)
        assert_prints(program, "False False ['MainThread']", "anybody by parent")
        program.tell()
        assert {"both by parent", "both by child"} == {program.hear() for _ in range(2)}
        program.tell()
        assert_prints(program, "child 0", "us by parent")
        program.tell()
        assert_ends(program)

    def test_a_fork_with_debug_logging_works(self, script):
        """A log handler at level DEBUG does not prevent the child's clean start."""
        program = script("""
            import logging
            logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
            dt = timer()
            dt.on("event", lambda events: say("handled"))
            dt.join()
            forked(lambda: say(dt.joined, dt._node))
            dt.leave()
        """)
        # The lines of parent and child are in any order, among the debug records of the parent.
        missing = {"was joined by the parent process", "False None", "child 0"}
        while missing:
            line = program.hear()
            missing -= {text for text in missing if text in line}
        assert_ends(program)

    def test_a_child_begins_while_a_lock_of_the_log_is_held(self, script):
        """
        A thread of the parent may hold a lock of a logging handler at the moment of the fork, such
        as that of a queue. The child has no such thread, and must not wait for the lock in the
        fork. It logs with its first call.
        """
        program = script("""
            import logging, threading

            class Queued(logging.Handler):
                lock_of_queue = threading.Lock()
                def emit(self, record):
                    with self.lock_of_queue:
                        say(record.getMessage().partition(">")[2] or record.getMessage())

            logger = logging.getLogger("dtimer")
            logger.setLevel(logging.INFO)
            dt = timer()
            dt.on("event", lambda events: None)
            dt.join()

            def act():
                say("the child begins")
                Queued.lock_of_queue.release()
                for _ in range(2):
                    say(dt.joined)

            logger.addHandler(Queued())
            with Queued.lock_of_queue:
                forked(act)
            logger.handlers.clear()
            dt.leave()
        """)
        assert_prints(program, "the child begins")
        record = "was joined by the parent process; join() in this one to receive"
        assert record == program.hear().strip()
        assert_ends(program, "False", "False", "child 0")

    def test_nothing_is_inherited(self, script):
        """The child's copies of pipes and sockets would outlive those that the parent closes."""
        program = script("""
            dt = timer()
            dt.join()
            node = dt._node
            inherited = [node.bell._pipe.reader, node.bell._pipe.writer,
                         node._listener._stop_bell._pipe.reader,
                         node._listener._stop_bell._pipe.writer,
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
        """)
        assert_ends(program, "child 0")

    def test_a_fork_without_hooks_is_noticed_at_the_first_call(self, script):
        """A server such as uWSGI forks without calling Python's hooks."""
        program = script("""
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
        """)
        assert_ends(program, "False None", "child 0", "True")

    def test_a_child_can_join_if_its_parent_has_left_and_the_fork_called_no_hook(self, script):
        """A join counts the leaves of a signal handler. A leave of its parent is not one."""
        program = script("""
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
        """)
        assert_ends(program, "True", "child 0")

    @pytest.mark.fault("F63")
    @pytest.mark.parametrize("joined", [False, True])
    def test_forking_while_other_threads_work_is_safe(self, script, make, joined):
        """
        While other threads post and handle events, forking in a loop blocks neither the parent nor
        the children, which post and leave. No event is lost or doubled.
        """
        program = script(f"""
            dt = timer(max_events=10, concurrency=2, timeout=20_000)
            dt.on("event", lambda events: None)
            # Make the first connection, whose library imports modules. A fork while another thread
            # imports would leave the child a locked module for ever, which Python does not repair.
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
        """)
        children = [program.hear() for _ in range(40)]
        assert ["child 0"] * 40 == children, program.end(None)
        total = int(program.hear())
        assert_ends(program)
        timer = make(max_events=100)
        timer.on("event", lambda events: None)
        with timer:
            eventually(lambda: timer.stats().totals.get("confirmed", 0) == total)
        assert total == timer.stats().totals["posted"]

    def test_a_multiprocessing_child_may_join(self, script):
        """A multiprocessing child (fork) may join, receive and leave like its parent."""
        program = script("""
            import multiprocessing
            dt = timer()
            received = threading.Semaphore(0)
            dt.on("event", lambda events: received.release())

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
                assert received.acquire(timeout=PATIENCE)
        """)
        assert_prints(program, "two")
        program.tell()
        assert_ends(program, "child 0 1")

    def test_a_child_that_a_listener_forks_on_a_thread_of_the_user_continues(self, script):
        """
        stop() calls the listeners of 'end' on the thread that stops. A child that one of them forks
        has that thread, and continues after stop(), as after any other fork.
        """
        program = script("""
            import dtimer

            main, children = os.getpid(), []
            queue = dtimer.RunAt(timer().ns, redis=os.environ.get("DTIMER_URL"))

            @queue.on("end")
            def fork():
                children.append(os.fork())

            queue.stop()
            if os.getpid() != main:
                os._exit(7)
            say(exit_status(children[0]))
        """)
        assert_ends(program, "7")

    def test_a_child_that_continues_in_a_handler_claims_nothing(self, script):
        """An unregistered process would hold the event that it claims for its parent's node."""
        program = script("""
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
                    pool._inbox.put(None)
                    return
                os.waitpid(child, 0)
                say(dt.peek("egg").state.value)
                done.set()

            with dt:
                pool = dt._node._dispatcher.pool
                dt.post({}, id="tea")
                assert done.wait(PATIENCE)
        """)
        assert_ends(program, "scheduled")


class TestForkedByAHandler:
    """A child that a handler forks continues on a library thread, without other threads."""

    @pytest.fixture
    def forking_script(self, script):
        """A function: run a program whose handler forks a child that executes one statement."""
        return lambda statement: script(f"""
            dt = timer(backoff=0)
            main = os.getpid()
            dt.on("error", lambda e: say("error", os.getpid() == main, repr(e)))

            @dt.on("event")
            def handle(events):
                child = os.fork()
                if not child:
                    {statement}
                    return
                say("child", exit_status(child))

            dt.on("event", lambda events: say("next", os.getpid() == main))
            dt.join()
            id = dt.post({{}})
            heard()
            dt.leave()
            say("left", dt.peek(id))
        """)

    @pytest.mark.parametrize(
        ("statement", "status", "complaint"),
        [
            ("pass", 0, ""),
            ("sys.exit()", 0, ""),
            ("sys.exit(3)", 3, ""),
            ("sys.exit('over')", 1, "over"),
            ("raise RuntimeError('in the child')", 1, "RuntimeError: in the child"),
            ("os._exit(4)", 4, ""),
        ],
    )
    def test_the_child_ends_when_the_handler_ends(
        self, forking_script, statement, status, complaint
    ):
        """
        The child ends with the handler, with the exit status of a program. A child that continued
        would block its parent for ever, with its lease renewed. It calls no other listener, and the
        parent confirms the event.
        """
        program = forking_script(statement)
        assert_prints(program, f"child {status}", "next True")
        program.tell()
        assert_prints(program, "left None")
        errors = program.end(0)
        assert complaint in errors if complaint else errors == ""

    def test_the_output_of_the_child_is_not_lost(self, forking_script):
        """Output that the child has printed is written when it ends."""
        program = forking_script("print('printed in the child')")
        lines = {program.hear() for _ in range(3)}
        assert {"child 0", "next True", "printed in the child"} == lines
        program.tell()
        assert_ends(program, "left None")


def test_a_child_closes_the_sockets_of_its_parent_at_once(script):
    """
    After a fork no socket of the parent is open in the child, not even a socket that another thread
    is using. Otherwise the server would keep a connection that the parent has closed as long as the
    child lives.
    """
    program = script("""
        import gc, stat
        from dtimer.faultpoints import arm
        gc.disable()

        def is_socket(name):
            try:
                return stat.S_ISSOCK(os.fstat(int(name)).st_mode)
            except OSError:
                return False

        def sockets():
            return {name for name in os.listdir("/proc/self/fd") if is_socket(name)}

        before = sockets()
        # No thread may be connecting at the fork, because the client library alone knows a socket
        # that is being connected. With a short deadline a slow machine could reconnect.
        dt = timer(timeout=30_000)
        handled = threading.Event()
        dt.on("event", lambda events: handled.set())
        dt.join()
        busy, go_on = threading.Event(), threading.Event()
        three_reading, have_met = threading.Barrier(3), set()

        def wait():
            thread = threading.current_thread()
            if thread.name == "busy":
                busy.set()
                go_on.wait()
            elif thread.name == "warm" and thread not in have_met:
                have_met.add(thread)
                three_reading.wait()

        def posting(name):
            thread = threading.Thread(target=dt.post, args=({}, 3_600_000), name=name)
            thread.start()
            return thread

        with arm("reply.reading", wait):
            # Open more connections than are in use at the fork. The claimer may open one, too: it
            # has done so when the event is handled.
            for thread in [posting("warm") for _ in range(3)]:
                thread.join()
            dt.post({})
            handled.wait()
            thread = posting("busy")
            busy.wait()
            child = os.fork()
            if not child:
                os._exit(len(sockets() - before))
            say("left open", exit_status(child))
            go_on.set()
            thread.join()
        dt.leave()
    """)
    assert_ends(program, "left open 0")
