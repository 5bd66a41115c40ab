"""Nodes in processes that end, are ended, and fork."""

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
    """Runs a program in the namespace of the test; nothing contradictory is left by it."""
    running = []

    def run(text, **options):
        program = Script(server, namespace, text, **options)
        running.append(program)
        return program

    yield run
    for program in running:
        program.__exit__()
    assert_sound(client, Keys.of(namespace))


# A handler that says when it begins, and goes on when it is told and the node leaves: where
# it ended before, the next event would be claimed.
GATED = """
dt = timer(exit_timeout=8_000)
begun = threading.Event()

@dt.on("event")
def handle(events):
    say("begun", events[0].id, events[0].attempt)
    begun.set()
    heard()
    while not (dt._life and dt._life.leaving):
        threading.Event().wait(0.005)
    say("done")
"""

# One that never goes on.
HANGING = GATED.replace("heard()", "threading.Event().wait()")


def left_nothing(client, namespace):
    """True when no node is registered."""
    return not client.exists(Keys.of(namespace).nodes)


class TestSignals:
    """run(), the body of a worker script."""

    @pytest.mark.fault("F60")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_first_lets_handlers_end(self, script, make, client, namespace, number):
        """
        SIGTERM, or SIGINT, lets the running handler end and be confirmed, claims nothing
        more, and ends the program well, without a word.
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
        A second signal gives back at once what a running handler has, and then does what it did
        before run(). The node has left by then: a program that is stopped by an impatient person
        must not make others wait for a lease.
        """
        program = script(
            HANGING
            + """
def watch():
    while not (dt._life and dt._life.leaving):
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
        run() does not catch a SIGINT that its parent has set to be ignored: a shell does so for
        a job in the background, at which no Ctrl-C is aimed.
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

    def test_the_signals_are_put_back(self, script):
        """After run() the signals are handled as before it, also by one not of Python's."""
        program = script(
            """
            import signal
            mine = lambda *_: None
            signal.signal(signal.SIGTERM, mine)
            getter, note = signal.getsignal, signal.signal
            # As it is where a program that embeds Python has installed its own.
            signal.signal = lambda n, h: None if n == signal.SIGINT and note(n, h) else note(n, h)
            dt = timer()
            dt.on("ready", lambda: os.kill(os.getpid(), signal.SIGTERM))
            dt.run()
            say(getter(signal.SIGTERM) is mine, getter(signal.SIGINT) is signal.SIG_DFL)
            """
        )
        assert "True True" == program.hear()
        assert "" == program.end(0)

    def test_a_signal_while_it_joins(self, script, client, namespace):
        """A signal that comes while run() joins is not lost: it leaves as soon as it has."""
        program = script(
            """
            import signal
            from dtimer.timer.life import Life
            start = Life.start

            def slow(life):
                os.kill(os.getpid(), signal.SIGTERM)
                start(life)
                say("joined")

            Life.start = slow
            timer().run()
            say("over")
            """
        )
        assert ["joined", "over"] == [program.hear() for _ in range(2)]
        assert "" == program.end(0)
        assert left_nothing(client, namespace)

    @pytest.mark.fault("F61")
    def test_a_handler_that_exits(self, script, make):
        """sys.exit() in a handler ends run(): its event is retried, the program ends well."""
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
    """Programs that end without a leave()."""

    @pytest.mark.parametrize(
        "end", [("", 0), ("sys.exit(3)", 3), ("raise SystemExit", 0), ("1 / 0", 1)]
    )
    def test_while_joined(self, script, make, client, namespace, end):
        """
        A program that ends while its node is joined: the running handler ends first and is
        confirmed, what is not started stays for others, the exit status is the program's
        own, and no thread complains.
        """
        ending, status = end
        # Not before the handler has begun: what has not is given back, and nobody waits for it.
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

    def test_a_handler_that_hangs(self, script, make, client, namespace):
        """
        A handler that does not end within exit_timeout is not waited for: its event is
        given back, the attempt charged, and the next node has it at once.
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

    def test_several_nodes(self, script, client, namespace):
        """All nodes of a program leave at its end, whatever their number."""
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

    def test_a_sample_under_scrutiny(self, script):
        """
        In the interpreter's development mode, with every warning an error, a node that
        joins, receives and leaves has nothing to complain of.
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

    def test_forgotten_under_scrutiny(self, script):
        """A node that is never left ends with its program, in development mode as well."""
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


# Runs what is given in a forked child, and says how that ended.
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
    """A child has no threads, fresh locks and connections, and has not joined."""

    @pytest.mark.fault("F62")
    def test_after_join(self, script, make):
        """
        A child of a joined process has not joined; it may post, and may join and receive
        under an incarnation of its own. The parent goes on as if nothing had been.
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
    # One hand each, and neither lets go of its event before both have one.
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

    def test_with_a_log(self, script):
        """A log that takes everything does not keep a child from its fresh start."""
        program = script(
            FORK
            + """
import logging
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
dt = timer()
dt.on("event", lambda events: say("handled"))
dt.join()
forked(lambda: say(dt.joined, dt._life))
dt.leave()
"""
        )
        said = [program.hear() for _ in range(3)]
        assert any("was joined by the parent process" in line for line in said)
        assert "False None" in said
        assert "child 0" in said
        assert "" == program.end(0)

    def test_nothing_is_inherited(self, script):
        """
        A child closes its copies of the pipes and of the subscription of its parent's
        node: what the parent ends is ended.
        """
        program = script(
            FORK
            + """
dt = timer()
dt.join()
life = dt._life
inherited = [life.bell._pipe.reader, life.bell._pipe.writer,
             life._listener._stop_bell._pipe.reader, life._listener._stop_bell._pipe.writer,
             life._listener._opened._descriptor()]
del life

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

    def test_a_fork_that_no_hook_saw(self, script):
        """
        Where a server forks past Python (uWSGI), and no hook is called, the first call
        notices that it is a child's.
        """
        program = script(
            FORK
            + """
import weakref
from dtimer.timer import process
dt = timer()
dt.join()
# So the hook finds nobody to tell.
process._watched = weakref.WeakSet()

def child():
    assert dt._life is not None
    say(dt.joined, dt._life)
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

    @pytest.mark.fault("F63")
    @pytest.mark.parametrize("joined", [False, True])
    def test_while_threads_are_at_it(self, script, make, joined):
        """
        Forking in a loop, while other threads post and hands handle, blocks neither the
        children, which post and leave, nor the parent; no event is lost or doubled.
        """
        program = script(
            FORK
            + f"""
dt = timer(max_events=10, concurrency=2, timeout=20_000)
dt.on("event", lambda events: None)
# The first connection, whose library imports as it is made: whoever forks while another
# thread imports leaves the child a module locked for ever, and Python does not mend that.
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

crew = [threading.Thread(target=post) for _ in range(3)]
for thread in crew:
    thread.start()

def child():
    dt.post({{"child": True}})
    dt.leave()

for _ in range(40):
    forked(child)
ending.set()
for thread in crew:
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

    def test_multiprocessing(self, script):
        """A child of multiprocessing (fork) may join, receive and leave, as its parent does."""
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

    def test_in_a_handler(self, script):
        """A handler may fork; its child ends by itself, and the handler is confirmed."""
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

    def test_out_of_a_handler(self, script):
        """
        A child that goes on where a handler forked takes no turn in its parent's name: what is
        due is not claimed by a process that nobody knows of.
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
        # Its hand goes home after this.
        dispatcher._inbox.put(None)
        return
    os.waitpid(child, 0)
    say(dt.peek("egg").state.value)
    done.set()

with dt:
    dispatcher = dt._life._dispatcher
    dt.post({}, id="tea")
    assert done.wait(PATIENCE)
"""
        )
        assert "scheduled" == program.hear()
        assert "" == program.end(0)


# A handler that forks; what its child does, the test says. It tells how that ended.
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
    """A child that a handler forks: a thread of the library's goes on in it, and no other."""

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
    def test_it_ends_when_the_handler_ends(self, script, child, status, word):
        """
        The child ends with the handler, with the exit status that a program would have: a child
        that went on would be waited for by its parent for ever, its lease renewed. It calls no
        other listener, and in the parent the event is confirmed.
        """
        program = script(FORKING.format(child=child))
        assert [f"child {status}", "next True"] == [program.hear() for _ in range(2)]
        program.tell()
        assert "left None" == program.hear()
        complaint = program.end(0)
        assert word in complaint if word else complaint == ""

    def test_what_it_prints_is_not_lost(self, script):
        """What the child has printed is written when it ends."""
        program = script(FORKING.format(child="print('printed in the child')"))
        said = {program.hear() for _ in range(3)}
        assert {"child 0", "next True", "printed in the child"} == said
        program.tell()
        assert "left None" == program.hear()
        assert "" == program.end(0)


def test_a_child_closes_the_sockets_of_its_parent_at_once(script):
    """
    After a fork no socket of the parent is open in the child, one of a call that another thread
    has under way included: the server would otherwise see a connection that the parent has closed
    as open for as long as the child lives.
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
        dt = timer()
        dt.join()
        busy, go_on = threading.Event(), threading.Event()

        def wait():
            if threading.current_thread().name == "busy":
                busy.set()
                go_on.wait()

        with arm("reply.reading", wait):
            thread = threading.Thread(target=dt.post, args=({}, 3_600_000), name="busy")
            thread.start()
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
