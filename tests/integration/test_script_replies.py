"""The replies of the scripts have the form that their headers state."""

from __future__ import annotations

import re

import pytest

from dtimer.store.namespace import SCHEMA
from dtimer.store.scripts import header, texts, verbs

LATER = "2000000000000000"
_BODY = ",3|{}"

#: Arguments for each verb, for calls that find something in the filled namespace.
CALLS = {
    "add_times": ["cron", "print", LATER, "", "0", "1"],
    "ahead": ["60000000", "60"],
    "alone": ["node", "60000000"],
    "audit": ["10"],
    "cancel": ["one", "nothing"],
    "claim": ["node", "4", "30000000", "hep", "", "0", "0", "0"],
    "clear": [],
    "dead": ["10", "", "", "", "", ""],
    "declare": ["", "", "hourly", "p", "{}", "3|{}", "3600000000", *"cq0", "", "", "+1", *[""] * 4],
    "drop": ["letter"],
    "extend": ["30000000", "three", "1"],
    "history": [],
    "holders": ["10"],
    "in_flight": ["10"],
    "join": ["node", "{}", "60000000"],
    "leave": ["node"],
    "nodes": ["60000000"],
    "open": [SCHEMA, "mark"],
    "pause": ["1"],
    "pause_schedule": ["hourly", "1"],
    "peek": ["two"],
    "permissions": [],
    "post": ["keep", "five", "+0", _BODY],
    "post_new": ["six", "+0", _BODY],
    "report": ["node", "{}", "1"],
    "reschedule": ["two", "+5"],
    "restore": ["letter", "1", "1,failed,4|boom,3|{}"],
    "revive": ["", "letter"],
    "run_now": ["hourly"],
    "schedule": ["hourly"],
    "schedules": [],
    "settle": ["1", "0", "three", "1"],
    "stats": ["60000000"],
    "trim": ["0", "-1"],
    "unschedule": ["hourly"],
    "upcoming": ["10", "-inf", "+inf", *[""] * 5],
    "update": ["two", '{"n":1}'],
    "upgrade": ["60000000"],
}

#: Calls that fill a namespace: a node, events, a schedule and a dead letter.
FILL = [
    ("open", CALLS["open"]),
    ("join", CALLS["join"]),
    ("post_new", ["three", "+0", _BODY]),
    ("claim", CALLS["claim"]),
    ("post", ["keep", "one", LATER, _BODY, "two", LATER, _BODY]),
    ("declare", CALLS["declare"]),
    ("restore", CALLS["restore"]),
]


@pytest.mark.parametrize("op", ["", "session:1"], ids=["unnamed", "named"])
@pytest.mark.parametrize("verb", [v for v in verbs() if header(v).kind != "reads"])
def test_a_script_writes_nothing_into_a_namespace_of_an_unknown_version(store, client, verb, op):
    """A script would misread the data of a later version, or store data that misleads it."""
    call, keys = store._scripts.call_once, store.keys
    for n, (name, words) in enumerate(FILL, 1):
        call(name, *words, op=f"fill:{n}")
    for key in (keys.sys, keys.memo_a):
        client.hset(key, "v", "9")

    def content():
        return {key: client.dump(key) for key in keys}

    before = content()
    with pytest.raises(Exception, match="DTSCHEMA the namespace has the schema version 9"):
        call(verb, *CALLS[verb], op=op)
    assert before == content()


def stated(verb):
    """Return the form of a reply that the header of *verb* states first."""
    return re.search(r"^-- Returns   (\{[^}]*\}|'[^']*')?", texts()[verb], re.MULTILINE)[1]


def has_form(reply, form):
    """Return True if *reply* has the *form* of a header: a list, a text with marks, or neither."""
    if form is None:
        return isinstance(reply, int | bytes)
    if form.startswith("'"):
        # Anything may stand for <words>, and for claims and texts that are not there.
        marks = re.split(r"(?:<[^>]*>|\.\.\.)+", form.strip("'"))
        return re.fullmatch(".*".join(map(re.escape, marks)).encode(), reply, re.DOTALL) is not None
    names = form.strip("{}").split(", ")
    if names[-1] == "...":
        return len(reply) % (len(names) - 1) == 0
    return len(reply) in {0, len(names)}


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("verb", verbs())
def test_a_reply_has_the_form_that_the_header_states(store, verb, filled):
    """The code in Python that reads a reply is written by the header."""
    call = store._scripts.call_once
    for n, (name, words) in enumerate(FILL if filled else [], 1):
        call(name, *words, op=f"fill:{n}")
    reply = call(verb, *CALLS[verb], op="session:1")
    form = stated(verb)
    assert has_form(reply, form), f"{form}: {reply}"
    if filled and form and form.startswith("{") and verb != "permissions":
        assert reply, "the call finds nothing, so it proves nothing"


def test_every_verb_has_a_call():
    """A new verb needs a line in the table above."""
    assert verbs() == list(CALLS)


@pytest.mark.parametrize(
    ("form", "reply", "good"),
    [
        ("{a, b}", [1, 2], True),
        ("{a, b}", [1, 2, 3], False),
        ("{a, b, ...}", [1, 2, 3], False),
        ("{a, b, ...}", [], True),
        ("'<a>;<b>'", b"1;2", True),
        ("'<a>;<b>'", b"1", False),
        (None, b"1", True),
        (None, [], False),
    ],
)
def test_a_wrong_form_is_noticed(form, reply, good):
    """The check above would otherwise pass on anything."""
    assert good == has_form(reply, form)
