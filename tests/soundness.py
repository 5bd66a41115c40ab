"""Check, after each test of the store, that every event is in exactly one state."""

from __future__ import annotations

from typing import Any

from dtimer.store.format import read_schedule_state
from dtimer.store.keys import Keys


def assert_sound(client: Any, keys: Keys) -> None:
    """Assert that no key of the namespace contradicts another."""
    due = {m for m, _ in client.zrange(keys.due, 0, -1, withscores=True)}
    body = set(client.hkeys(keys.body))
    lease = set(client.hkeys(keys.lease))
    tries = set(client.hkeys(keys.tries))
    dead = set(client.hkeys(keys.dead))
    graves = set(client.zrange(keys.graves, 0, -1))
    assert due == body, f"due without body or the reverse: {due ^ body}"
    assert dead == graves, f"dead without grave or the reverse: {dead ^ graves}"
    assert not due & dead, f"both pending and dead: {due & dead}"
    assert lease <= due, f"leases of events that are gone: {lease - due}"
    assert tries <= due, f"tries of events that are gone: {tries - due}"
    assert not lease & tries, f"both leased and waiting for a retry: {lease & tries}"
    roster = set(client.zrange(keys.roster, 0, -1))
    promise = set(client.zrange(keys.promise, 0, -1))
    alive = set(client.zrange(keys.alive, 0, -1))
    assert promise <= roster, f"promises of nodes that are not on the roster: {promise - roster}"
    assert roster <= alive, f"nodes on the roster without a session: {roster - alive}"
    assert_recurring(client, keys, due)
    token = int(client.hget(keys.sys, "token") or 0)
    for value in client.hvals(keys.lease):
        assert int(value.split(b",")[0]) <= token, "a lease with a token from the future"


def assert_recurring(client: Any, keys: Keys, due: set[bytes]) -> None:
    """Assert that each schedule that is neither paused nor finished has one pending event."""
    beats = client.hgetall(keys.beats)
    assert set(beats) == set(client.hkeys(keys.defs)) == set(client.hkeys(keys.plans))
    leased = set(client.hkeys(keys.lease)) | set(client.hkeys(keys.tries))
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
            assert pending not in leased, f"a next event that has started: {pending!r}"
