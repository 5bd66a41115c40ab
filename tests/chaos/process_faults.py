"""The faults of processes, threads and clocks: see `chaos.injections`."""

from __future__ import annotations

from chaos.injections import FaultContext, Injection, injection
from chaos.workload import LEASE


@injection("F52")
def freeze_a_node(context: FaultContext) -> Injection:
    """Stop a node for longer than its leases last, and let it continue."""
    who = context.node()
    yield who.name, context.seconds(1.5, 3) * LEASE / 1000
    who.freeze()
    yield
    who.thaw()
    yield True


@injection("F58")
def die_at_a_point(context: FaultContext) -> Injection:
    """Kill a node at a critical point: after the server acted, before the node knows it."""
    who = context.killable("handling")
    process = who.process
    assert process
    yield who.name, context.seconds(1, 2)
    who.tell(do="die", point=context.rng.choice(DEATHS))
    yield
    yield process.poll() is not None


#: The points of `dtimer.faultpoints` at which a node may die. A node reaches them all the time.
DEATHS = [
    *("claim.answered", "claim.handed", "handler.before", "handler.after"),
    *("settle.sending", "reply.reading"),
]


@injection("F59")
def kill_a_process(context: FaultContext) -> Injection:
    """Kill a process at any point."""
    who = context.killable()
    yield who.name, context.seconds(0.2, 0.5)
    who.kill()
    yield
    yield True


@injection("F66")
def fail_a_thread(context: FaultContext) -> Injection:
    """Let a thread of a node fail for lack of memory. The node records the failure."""
    who = context.node()
    point = context.rng.choice(FAILURES)
    yield who.name, context.seconds(0.5, 1)
    who.tell(do="fail", point=point)
    yield
    yield True


#: The points at which a thread may fail. The claimer does most of the work, so it fails most often.
FAILURES = ["loop.claimer", "loop.claimer", "loop.handler", "loop.listener", "loop.callbacks"]


@injection("F49", server=True)
def set_the_clock_forward(context: FaultContext) -> Injection:
    """Set the server's clock forward, permanently."""
    yield "server", context.seconds(0.5, 1)
    context.move_clock(context.seconds(1, 4))
    yield
    yield True


@injection("F50", server=True)
def set_the_clock_back(context: FaultContext) -> Injection:
    """Set the server's clock back, permanently."""
    yield "server", context.seconds(0.5, 1)
    context.move_clock(-context.seconds(1, 3))
    yield
    yield True
