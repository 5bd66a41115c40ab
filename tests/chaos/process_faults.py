"""The faults of processes, their threads and their time: see `chaos.scene`."""

from __future__ import annotations

from chaos.mix import LEASE
from chaos.scene import Injection, Scene, injection


@injection("F52")
def freeze_a_node(scene: Scene) -> Injection:
    """A node stands still for longer than its leases last, and then goes on."""
    who = scene.node()
    yield who.name, scene.for_(1.5, 3) * LEASE / 1000
    who.freeze()
    yield
    who.thaw()
    yield True


@injection("F58")
def die_at_a_point(scene: Scene) -> Injection:
    """A node dies where it is worst: between what the server did and what it knows of it."""
    who = scene.mortal("handling")
    process = who.process
    assert process
    yield who.name, scene.for_(1, 2)
    who.tell(do="die", point=scene.rng.choice(DEATHS))
    yield
    yield process.poll() is not None


#: Points of `dtimer.faultpoints` at which a node may die, and that it reaches all the time.
DEATHS = [
    "claim.answered",
    "claim.handed",
    "handler.before",
    "handler.after",
    "settle.sending",
    "reply.reading",
]


@injection("F59")
def kill_somebody(scene: Scene) -> Injection:
    """Somebody dies, whatever he is doing."""
    who = scene.mortal()
    yield who.name, scene.for_(0.2, 0.5)
    who.kill()
    yield
    yield True


@injection("F66")
def fail_a_thread(scene: Scene) -> Injection:
    """A thread of a node gets no memory. That it came to that, the node records."""
    who = scene.node()
    loop = scene.rng.choice(["claimer", "claimer", "hand", "listener", "herald"])
    yield who.name, scene.for_(0.5, 1)
    who.tell(do="fail", point=f"loop.{loop}")
    yield
    yield True


@injection("F49", server=True)
def put_the_clock_on(scene: Scene) -> Injection:
    """The clock of the server is put on, and stays so."""
    yield "server", scene.for_(0.5, 1)
    scene.step(scene.for_(1, 4))
    yield
    yield True


@injection("F50", server=True)
def put_the_clock_back(scene: Scene) -> Injection:
    """The clock of the server is put back, and stays so."""
    yield "server", scene.for_(0.5, 1)
    scene.step(-scene.for_(1, 3))
    yield
    yield True
