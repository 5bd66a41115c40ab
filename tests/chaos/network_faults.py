"""The faults of the network: see `chaos.scene`."""

from __future__ import annotations

from chaos.crew import Member
from chaos.mix import LEASE
from chaos.scene import Injection, Scene, injection


@injection("F01")
def lose_a_reply(scene: Scene) -> Injection:
    """Lose the reply to an executed command; close the connection, or leave it open."""
    who = scene.any_member()
    yield who.name, scene.seconds(1, 2)
    who.proxy.drop_reply_once(close=scene.rng.random() < 0.7)
    yield
    yield who.proxy.wait_dropped(0)


@injection("F02")
def close_within_a_reply(scene: Scene) -> Injection:
    """Close a connection within a reply, or right after it."""
    who = scene.any_member()
    yield who.name, scene.seconds(1, 2)
    if scene.rng.random() < 0.3:
        who.proxy.close_reply_once()
    else:
        who.proxy.truncate_reply_once(scene.rng.randint(0, 40))
    yield
    yield who.proxy.wait_dropped(0)


def _blackhole(
    scene: Scene, who: Member, seconds: float, *, ears: bool, commands: bool
) -> Injection:
    ways = [way for way, on in ((who.proxy, commands), (who.ears, ears)) if on and way]
    yield who.name, seconds
    for way in ways:
        way.blackhole()
    yield
    for way in ways:
        way.heal()
    yield True


@injection("F03")
def blackhole_commands(scene: Scene) -> Injection:
    """Let the commands of a process get neither a reply nor an error."""
    return _blackhole(scene, scene.any_member(), scene.seconds(0.3, 1.5), ears=False, commands=True)


@injection("F04")
def blackhole_ears(scene: Scene) -> Injection:
    """Lose all messages to a node's subscription, without an error."""
    return _blackhole(scene, scene.node(), scene.seconds(1, 2.5), ears=True, commands=False)


@injection("F05")
def reset(scene: Scene) -> Injection:
    """Reset, or half close, all connections of a process."""
    who = scene.any_member()
    ways = [way for way in (who.proxy, who.ears) if way]
    yield who.name, scene.seconds(0.3, 1)
    for way in ways:
        if scene.rng.random() < 0.5:
            way.cut()
        else:
            way.half_close()
    yield
    yield True


@injection("F07")
def delay(scene: Scene) -> Injection:
    """Delay all bytes of a process."""
    who = scene.any_member()
    yield who.name, scene.seconds(1.5, 3)
    who.proxy.delay(scene.rng.uniform(5, 30))
    yield
    who.proxy.heal()
    yield True


@injection("F08")
def narrow(scene: Scene) -> Injection:
    """Limit the bandwidth of a process."""
    who = scene.any_member()
    yield who.name, scene.seconds(1, 2)
    who.proxy.throttle(10_000)
    yield
    who.proxy.heal()
    yield True


@injection("F108")
def choke(scene: Scene) -> Injection:
    """Let only the beginning of each large reply reach a process, less than a large claim."""
    who = scene.any_member()
    yield who.name, scene.seconds(2, 4)
    who.proxy.choke(20_000)
    yield
    who.proxy.heal()
    yield True


@injection("F09")
def refuse(scene: Scene) -> Injection:
    """Refuse the connections of a process."""
    who = scene.any_member()
    ways = [way for way in (who.proxy, who.ears) if way]
    yield who.name, scene.seconds(0.5, 2)
    for way in ways:
        way.refuse()
        way.cut()
    yield
    for way in ways:
        way.heal()
    yield True


@injection("F12")
def cut_off(scene: Scene) -> Injection:
    """Cut a node off for longer than its leases last."""
    seconds = scene.seconds(2, 3.5) * LEASE / 1000
    return _blackhole(scene, scene.node(), seconds, ears=True, commands=True)
