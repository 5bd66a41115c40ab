"""Check, after each test of the store, that every event is in exactly one state."""

from __future__ import annotations

from typing import Any

from dtimer.store.format import read_schedule_state
from dtimer.store.keys import Keys


def assert_sound(client: Any, keys: Keys) -> None:
    """Assert that no key of the namespace contradicts another, as they are at one moment."""
    with client.pipeline(transaction=True) as pipe:
        for key in (keys.due, keys.graves, keys.roster, keys.promise, keys.alive):
            pipe.zrange(key, 0, -1)
        for key in (keys.body, keys.tries, keys.dead, keys.defs, keys.plans):
            pipe.hkeys(key)
        pipe.hgetall(keys.lease).hgetall(keys.beats).hget(keys.sys, "token")
        *found, leases, beats, token = pipe.execute()
    due, graves, roster, promise, alive, body, tries, dead, defs, plans = map(set, found)
    lease = set(leases)
    assert due == body, f"due without body or the reverse: {due ^ body}"
    assert dead == graves, f"dead without grave or the reverse: {dead ^ graves}"
    assert not due & dead, f"both pending and dead: {due & dead}"
    assert lease <= due, f"leases of events that are gone: {lease - due}"
    assert tries <= due, f"tries of events that are gone: {tries - due}"
    assert not lease & tries, f"both leased and waiting for a retry: {lease & tries}"
    assert promise <= roster, f"promises of nodes that are not on the roster: {promise - roster}"
    assert roster <= alive, f"nodes on the roster without a session: {roster - alive}"
    for value in leases.values():
        assert int(value.split(b",")[0]) <= int(token or 0), "a lease with a token from the future"
    assert set(beats) == defs == plans
    assert_recurring(beats, due, lease | tries)


def assert_recurring(beats: dict[bytes, bytes], due: set[bytes], started: set[bytes]) -> None:
    """Assert that each schedule that is neither paused nor finished has one pending event."""
    for name, text in beats.items():
        beat = read_schedule_state(text)
        pending = name + b"@" + beat["next"].encode()
        if not beat["next"]:
            finished = beat["left"] == "0" or (not beat["every"] and beat["final"] == "1")
            assert finished, f"a schedule that ended too early: {text!r}"
        elif beat["paused"] == "1":
            assert pending not in due, f"a pending event of a paused schedule: {pending!r}"
        else:
            assert pending in due, f"a schedule without its next event: {text!r}"
            assert pending not in started, f"a next event that has started: {pending!r}"
