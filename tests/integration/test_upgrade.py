"""
Two versions of the stored forms in one namespace: a rolling deploy, a rollback, and the upgrade.

The later version is a copy of the package that calls itself version 3. It writes a flag into each
lease that version 2 does not know: version 2 would not see the lease, and would start the event a
second time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from scripts import Script
from servers import eventually
from soundness import assert_sound

import dtimer
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.namespace import PREVIOUS, SCHEMA
from dtimer.store.store import Store

NEXT = str(int(SCHEMA) + 1)

#: The changes that make the copy the next version: file, text, and what stands in its place.
CHANGES = [
    ("store/namespace.py", f'SCHEMA = "{SCHEMA}"', f'SCHEMA = "{NEXT}"'),
    ("store/namespace.py", f'PREVIOUS = "{PREVIOUS}"', f'PREVIOUS = "{SCHEMA}"'),
    (
        "store/lua/parts/prelude.lua",
        f"local SCHEMA, PREVIOUS = '{SCHEMA}', '{PREVIOUS}'",
        f"local SCHEMA, PREVIOUS = '{NEXT}', '{SCHEMA}'",
    ),
    (
        "store/lua/parts/format.lua",
        "return head .. flags .. ',' .. node, head",
        f"return head .. flags .. (VERSION == '{NEXT}' and 'x' or '') .. ',' .. node, head",
    ),
    ("store/lua/parts/format.lua", "([cs]*)", "([csx]*)"),
]

#: A node that reports what it does, and posts when it is told. An event can hold its handler.
NODE = """
dt = timer("node", poll_interval=200, lease=2_000, backoff=0)
go_on = threading.Event()

@dt.on("event")
def handle(events):
    say("handled", events[0]["n"], events[0].attempt)
    if events[0].get("hold") == dtimer_version:
        go_on.wait(PATIENCE)

dt.on("error", lambda e: say("error", type(e).__name__, e))
"""

#: Obeys: ``join``, ``post``, and the end of the input, which means to leave.
ORDERS = """
for order in sys.stdin:
    what, *words = order.split()
    try:
        if what == "join":
            dt.join()
        elif what == "post":
            dt.post_many([({"n": int(n)}, 0) for n in words])
        else:
            dt.post({"n": int(words[0]), "hold": what})
        say("done", what)
    except Exception as e:
        say("refused", type(e).__name__, e)
dt.leave()
"""


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """The folder of a copy of the package that calls itself the next version."""
    root = tmp_path_factory.mktemp("later")
    package = root / "dtimer"
    shutil.copytree(
        Path(dtimer.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for file, text, other in CHANGES:
        path = package / file
        before = path.read_text("utf-8")
        assert before.count(text) == 1, f"{file}: {text}"
        path.write_text(before.replace(text, other), "utf-8")
    return root


@pytest.fixture
def store(server, namespace, client):
    """The store of the test's namespace, in this version."""
    store = Store(source(server.url, 1.0), namespace, timeout=10.0)
    store.namespace.open()
    yield store
    store.release()


@pytest.fixture
def run(server, namespace):
    """A function: run a program in the given version of the package."""
    programs = []

    def start(text, root=None):
        programs.append(Script(server, namespace, text, root=root))
        return programs[-1]

    yield start
    for program in programs:
        program.__exit__()


@pytest.fixture
def node(run):
    """A function: start a node in the given version, and return it when it has joined."""

    def start(root=None, *, join=True):
        version = NEXT if root else SCHEMA
        program = run(f"dtimer_version = {version!r}\n{NODE}{ORDERS}", root)
        if join:
            tell(program, "join")
        return program

    return start


def tell(program, order):
    """Give an order, and wait until it is done. Return what the node has said meanwhile."""
    program.tell(order)
    said = []
    while not (line := program.hear()).startswith(("done", "refused")):
        said.append(line)
    assert line.startswith("done"), line
    return said


def refusal(program, order):
    """Give an order that the node must refuse; return what it says."""
    program.tell(order)
    while not (line := program.hear()).startswith(("done", "refused")):
        pass
    return line


@pytest.fixture
def upgrade(run, later):
    """A function: upgrade as the next version, some seconds from now; return the result."""
    text = """
    import time
    from dtimer.store.admin import AdminStore
    from dtimer.store.connection.sources import source
    from dtimer.store.store import Store

    now = int((time.time() + float(heard())) * 1e6)
    store = Store(source(sys.argv[1], 10.0), sys.argv[2], timeout=10.0, now=lambda: now)
    say(*AdminStore(store).upgrade())
    store.release()
    """

    def run_it(seconds=0.0):
        program = run(text, later)
        program.tell(str(seconds))
        result = tuple(program.hear().split())
        program.end(0)
        return result

    return run_it


def confirmed(store, count):
    """Wait until as many events are confirmed. None may be lost, started twice or dead."""
    eventually(lambda: store.stats().totals["confirmed"] == count)
    stats = store.stats()
    assert (count, 0, 0) == (stats.totals["posted"], stats.dead, stats.scheduled)


def numbers(first, last):
    return f"post {' '.join(map(str, range(first, last)))}"


def test_a_rolling_deploy_and_its_rollback_lose_nothing(store, node, later, upgrade, client):
    """Until the upgrade, both versions write the older forms, so either can read the other's."""
    old = node()
    tell(old, numbers(0, 20))
    new = node(later)
    tell(new, numbers(20, 40))
    tell(old, numbers(40, 60))
    confirmed(store, 60)
    assert (SCHEMA, "1") == upgrade(), "a node of the older version is there"
    old.end(0)
    tell(new, numbers(60, 80))
    confirmed(store, 80)
    assert (SCHEMA, "1") == upgrade(), "the older version was heard of a moment ago"
    # A node of the later version dies with an event in flight, and is replaced by an older one.
    tell(new, f"{NEXT} 80")
    eventually(lambda: client.hvals(store.keys.lease))
    assert b"x" not in b"".join(client.hvals(store.keys.lease)).split(b",")[3]
    new.kill()
    old = node()
    tell(old, numbers(81, 100))
    confirmed(store, 100)
    old.end(0)
    assert store.stats().totals["started"] == 101, "the event of the node that died starts twice"
    assert_sound(client, store.keys)


def test_an_upgrade_excludes_the_older_version(store, node, later, upgrade, client):
    """Its processes are refused with words, and those that still run do no harm."""
    keys = Keys.of(store.ns)
    poster = node(join=False)
    tell(poster, "post 1")
    new = node(later)
    confirmed(store, 1)
    assert (SCHEMA, "0") == upgrade(61)
    assert (NEXT, "0") == upgrade()
    words = f"the namespace has the schema version {NEXT}, and this dtimer knows version {SCHEMA}"
    assert words in refusal(poster, "post 2")
    assert words in refusal(poster, "join")
    tell(new, f"{NEXT} 3")
    eventually(lambda: client.hvals(keys.lease))
    (lease,) = client.hvals(keys.lease)
    assert b"x" == lease.split(b",")[3]
    assert {NEXT.encode()} == {client.hget(key, "v") for key in (keys.sys, keys.memo_a)}
    new.kill()


def test_an_older_node_that_still_runs_settles_and_claims_nothing(store, node, later, upgrade):
    """Such a node was stopped for a minute, for example. It must not misread a lease."""
    old = node()
    tell(old, f"{SCHEMA} 1")
    assert "handled 1 1" == old.hear()
    assert (SCHEMA, "0") == upgrade(61)
    assert f"schema version {NEXT}" in old.hear()
    old.kill()


def test_a_namespace_of_the_latest_version_needs_no_upgrade(store):
    """The command says so, and changes nothing."""
    assert (SCHEMA, 0) == AdminStore(store).upgrade()
