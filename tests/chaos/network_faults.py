"""The faults of the network: see `chaos.injections`."""

from __future__ import annotations

from chaos.injections import FaultContext, Injection, injection
from chaos.processes import Member
from chaos.workload import LEASE


@injection("F01")
def lose_a_reply(context: FaultContext) -> Injection:
    """Lose the reply to an executed command; close the connection, or leave it open."""
    who = context.any_member()
    yield who.name, context.seconds(1, 2)
    who.proxy.drop_reply_once(close=context.rng.random() < 0.7)
    yield
    yield who.proxy.wait_dropped(0)


@injection("F02")
def close_within_a_reply(context: FaultContext) -> Injection:
    """Close a connection within a reply, or right after it."""
    who = context.any_member()
    yield who.name, context.seconds(1, 2)
    if context.rng.random() < 0.3:
        who.proxy.close_reply_once()
    else:
        who.proxy.truncate_reply_once(context.rng.randint(0, 40))
    yield
    yield who.proxy.wait_dropped(0)


def _blackhole(
    context: FaultContext, who: Member, seconds: float, *, subscription: bool, commands: bool
) -> Injection:
    proxies = [
        proxy
        for proxy, on in ((who.proxy, commands), (who.subscription, subscription))
        if on and proxy
    ]
    yield who.name, seconds
    for proxy in proxies:
        proxy.blackhole()
    yield
    for proxy in proxies:
        proxy.heal()
    yield True


@injection("F03")
def blackhole_commands(context: FaultContext) -> Injection:
    """Let the commands of a process get neither a reply nor an error."""
    return _blackhole(
        context, context.any_member(), context.seconds(0.3, 1.5), subscription=False, commands=True
    )


@injection("F04")
def blackhole_subscription(context: FaultContext) -> Injection:
    """Lose all messages to a node's subscription, without an error."""
    return _blackhole(
        context, context.node(), context.seconds(1, 2.5), subscription=True, commands=False
    )


@injection("F05")
def reset(context: FaultContext) -> Injection:
    """Reset, or half close, all connections of a process."""
    who = context.any_member()
    proxies = [proxy for proxy in (who.proxy, who.subscription) if proxy]
    yield who.name, context.seconds(0.3, 1)
    for proxy in proxies:
        if context.rng.random() < 0.5:
            proxy.cut()
        else:
            proxy.half_close()
    yield
    yield True


@injection("F07")
def delay(context: FaultContext) -> Injection:
    """Delay all bytes of a process."""
    who = context.any_member()
    yield who.name, context.seconds(1.5, 3)
    who.proxy.delay(context.rng.uniform(5, 30))
    yield
    who.proxy.heal()
    yield True


@injection("F08")
def narrow(context: FaultContext) -> Injection:
    """Limit the bandwidth of a process."""
    who = context.any_member()
    yield who.name, context.seconds(1, 2)
    who.proxy.throttle(10_000)
    yield
    who.proxy.heal()
    yield True


@injection("F108")
def choke(context: FaultContext) -> Injection:
    """Let only the beginning of each large reply reach a process, less than a large claim."""
    who = context.any_member()
    yield who.name, context.seconds(2, 4)
    who.proxy.choke(20_000)
    yield
    who.proxy.heal()
    yield True


@injection("F09")
def refuse(context: FaultContext) -> Injection:
    """Refuse the connections of a process."""
    who = context.any_member()
    proxies = [proxy for proxy in (who.proxy, who.subscription) if proxy]
    yield who.name, context.seconds(0.5, 2)
    for proxy in proxies:
        proxy.refuse()
        proxy.cut()
    yield
    for proxy in proxies:
        proxy.heal()
    yield True


@injection("F12")
def cut_off(context: FaultContext) -> Injection:
    """Cut a node off for longer than its leases last."""
    seconds = context.seconds(2, 3.5) * LEASE / 1000
    return _blackhole(context, context.node(), seconds, subscription=True, commands=True)
