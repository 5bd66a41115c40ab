"""The faults of processes, threads and clocks: see `chaos.scene`."""

from __future__ import annotations

from chaos.mix import LEASE
from chaos.scene import Injection, Scene, injection


@injection("F52")
def freeze_a_node(scene: Scene) -> Injection:
    """Stop a node for longer than its leases last, and let it continue."""
    who = scene.node()
    yield who.name, scene.seconds(1.5, 3) * LEASE / 1000
    who.freeze()
    yield
    who.thaw()
    yield True


@injection("F58")
def die_at_a_point(scene: Scene) -> Injection:
    """Kill a node at a critical point: after the server acted, before the node knows it."""
    who = scene.killable("handling")
    process = who.process
    assert process
    yield who.name, scene.seconds(1, 2)
    who.tell(do="die", point=scene.rng.choice(DEATHS))
    yield
    yield process.poll() is not None


#: The points of `dtimer.faultpoints` at which a node may die. A node reaches them all the time.
DEATHS = [
    "claim.answered",
    "claim.handed",
    "handler.before",
    "handler.after",
    "settle.sending",
    "reply.reading",
]


@injection("F59")
def kill_a_process(scene: Scene) -> Injection:
    """Kill a process at any point."""
    who = scene.killable()
    yield who.name, scene.seconds(0.2, 0.5)
    who.kill()
    yield
    yield True


@injection("F66")
def fail_a_thread(scene: Scene) -> Injection:
    """Let a thread of a node fail for lack of memory. The node records the failure."""
    who = scene.node()
    loop = scene.rng.choice(["claimer", "claimer", "hand", "listener", "herald"])
    yield who.name, scene.seconds(0.5, 1)
    who.tell(do="fail", point=f"loop.{loop}")
    yield
    yield True


@injection("F49", server=True)
def set_the_clock_forward(scene: Scene) -> Injection:
    """Set the server's clock forward, permanently."""
    yield "server", scene.seconds(0.5, 1)
    scene.move_clock(scene.seconds(1, 4))
    yield
    yield True


@injection("F50", server=True)
def set_the_clock_back(scene: Scene) -> Injection:
    """Set the server's clock back, permanently."""
    yield "server", scene.seconds(0.5, 1)
    scene.move_clock(-scene.seconds(1, 3))
    yield
    yield True
