"""The scripts: how they are loaded, and whether their headers are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dtimer import DTimer
from dtimer.store import acl, scripts
from dtimer.store.namespace import PREVIOUS, SCHEMA
from dtimer.store.scripts import header, load, texts, verb, verbs

VERBS = verbs()
FILES = sorted(texts())
PARTS = [name for name in FILES if re.fullmatch("parts/(?!prelude|format)\\w+", name)]
SECTIONS = [(name, section) for name in FILES for section in scripts.sections(name)]

#: Verbs of the kind ``reads`` with commands that write: ``open`` creates the namespace if it is
#: asked to, and ``permissions`` tries each command in a form that changes nothing.
WRITING_READS = {"open", "permissions"}

#: The commands of the scripts that change no data. A wake is a hint.
READ_ONLY = {
    *("hexists", "hget", "hkeys", "hlen", "hmget", "hrandfield", "hstrlen", "publish", "time"),
    *("type", "zcard", "zcount", "zmscore", "zrandmember", "zrange", "zrangebyscore", "zrank"),
    *("zrevrangebyscore", "zscore"),
}


def body_of(name):
    """Return the code of a file without its comments."""
    lines = texts()[name].splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


def opening_of(name):
    """Return the opening comment of a file: all lines before the first line of code."""
    return re.match(r"(?:--.*\n)*", texts()[name])[0]


def whole(name):
    """Return the code of a file with its sections, without comments, strings and fields."""
    code = "\n".join(map(body_of, [name, *scripts.sections(name)]))
    return re.sub(r"'(?:[^'\\]|\\.)*'|[.]\w+", "", code)


class TestLoading:
    """Loading the scripts from the package."""

    def test_reads_no_file_after_a_timer_was_made(self, monkeypatch):
        """
        A process without a free descriptor, or whose package was upgraded, continues with the
        scripts it has loaded.
        """
        shas = {name: load(name).sha for name in VERBS}
        texts.cache_clear()
        load.cache_clear()
        header.cache_clear()
        timer = DTimer("node", "redis://127.0.0.1:1")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", None)
            assert shas == {name: load(name).sha for name in VERBS}
        timer.leave()

    def test_sends_scripts_without_comments(self):
        """
        A post in a pipeline sends its script, a third of which is comments.

        Stripping works by line, so a comment must be a line of its own and no string may span
        lines.
        """
        for name, text in texts().items():
            for line in text.splitlines():
                assert "--" not in line or line.lstrip().startswith("--"), f"{name}: {line}"
                assert "[[" not in line, f"{name}: {line}"
        for name in VERBS:
            sent = load(name).source.decode().splitlines()
            assert [] == [line for line in sent if line.startswith((" ", "--")) or not line]

    def test_scripts_and_package_have_the_same_schema_version(self):
        """A script of another version would misread the stored data."""
        line = f"local SCHEMA, PREVIOUS = '{SCHEMA}', '{PREVIOUS}'\n"
        assert line in texts()["parts/prelude"]

    def test_a_caller_with_other_arguments_fails_when_its_module_loads(self, monkeypatch):
        """The caller passes by position, so a name that differs means a wrong argument."""
        with pytest.raises(TypeError, match=r"reschedule\.lua has the arguments"):
            verb("reschedule", "when", "id")
        assert ["1", "2"] == verb("reschedule", "id", "when").in_order(when="2", id="1")

    def test_arguments_become_locals_by_name(self):
        """The code of a script reads its arguments by name, numbers as numbers."""
        source = load("trim").source.decode()
        assert "local keep, age = tonumber(ARGV[3]), tonumber(ARGV[4])\n" in source
        assert "local policy, events = ARGV[3], 4\n" in load("post").source.decode()


class TestHeaders:
    """The header of a script is its contract, from which permissions and retries follow."""

    @pytest.mark.parametrize("name", VERBS)
    def test_the_header_states_the_kind_and_the_reply(self, name):
        """Callers read the header, not the code."""
        assert header(name).kind in {"reads", "idempotent", "once"}
        assert re.search(r"^-- Returns   \S", opening_of(name), re.MULTILINE)

    @pytest.mark.parametrize("name", FILES)
    def test_the_commands_are_those_of_the_code(self, name):
        """The permissions of the Redis user come from the headers."""
        found = set(re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", body_of(name)))
        assert {command.lower() for command in found} == header(name).commands

    @pytest.mark.parametrize("name", VERBS)
    def test_the_code_uses_each_argument_and_none_by_number(self, name):
        """An unused argument, or one hidden by a local, is a mistake in the header or the code."""
        body = "\n".join(map(body_of, [name, *scripts.sections(name)]))
        for argument in header(name).arguments:
            assert re.search(rf"\b{argument.name}\b", body), argument
            assert not re.search(rf"\blocal [\w, ]*\b{argument.name}\b[\w, ]*(=|$)", body), argument
        assert "" == "".join(a.name for a in header(name).arguments[:-1] if a.repeats)

    @pytest.mark.parametrize("name", [name for name in FILES if name != "parts/prelude"])
    def test_only_the_prelude_reads_arguments_by_number(self, name):
        """A number says nothing to a reader, and is wrong when an argument is added."""
        assert [] == re.findall(r"ARGV\[\d+\]", texts()[name])

    @pytest.mark.parametrize("name", VERBS)
    def test_the_kind_is_that_of_the_code(self, name):
        """
        The kind decides whether a lost reply leaves the outcome unknown, and whether a repetition
        must be recognised.
        """
        body, kind = body_of(name), header(name).kind
        assert ("recall()" in body) == ("remember(" in body) == (kind == "once")
        if kind == "reads" and name not in WRITING_READS:
            assert header(name).commands <= READ_ONLY
        if kind != "reads":
            assert not scripts.commands(name) <= READ_ONLY

    @pytest.mark.parametrize("name", VERBS)
    def test_the_parts_are_those_that_the_code_needs(self, name):
        """A missing part fails when its function is called; a superfluous one costs each call."""
        parts = [f"parts/{part}" for part in (*header(name).uses, *header(name).later)]
        code = {file: whole(file) for file in (name, *parts)}
        used = {file: set(re.findall(r"\w+", text)) for file, text in code.items()}
        # A local of the same name hides the function.
        used[name] -= locals_of(code[name], 0)
        used[name] |= {*header(name).later.values()}
        for part in PARTS:
            offers = locals_of(body_of(part), 0)
            needed = any(offers & used[file] for file in used if file != part)
            assert needed == (part in parts), part

    def test_the_self_test_tries_every_command(self):
        """The self-test tries every command that some script runs, so it can report each one."""
        tried = re.findall(r"^  \{'([A-Z]+)'", texts()["permissions"], re.MULTILINE)
        assert scripts.commands(*VERBS) == {command.lower() for command in tried}

    def test_a_node_may_run_what_a_claim_runs(self):
        """The claim is the widest script; a list without it would be empty or wrong."""
        assert scripts.commands("claim") - {"publish"} <= set(acl.NODE)


def locals_of(code, depth):
    """Return the names that *code* declares at *depth* spaces of indentation."""
    names = set()
    for found in re.finditer(rf"^ {{{depth}}}local (?:function )?([\w, ]+)", code, re.MULTILINE):
        names |= set(found[1].split(", "))
    return {name.strip() for name in names}


def words_in(code):
    """Return the names that *code* uses, without strings, fields and keys of tables."""
    code = re.sub(r"'(?:[^'\\]|\\.)*'", "''", code)
    return set(re.findall(r"(?<![.\w])[a-z_]\w*", code))


def assigned_in(code):
    """Return the names to which *code* assigns without declaring them on the same line."""
    start = r"(?:^|\bthen\b|\belse\b|\bdo\b)"
    targets = re.findall(rf"{start} *([a-z_][\w, ]*?) = ", code, re.MULTILINE)
    return {name for target in targets for name in target.split(", ") if " " not in name}


def listed(section, label):
    """Return the names that the header of *section* lists after *label*, on one or more lines."""
    lines = re.findall(rf"^-- {label} +(\S.*)$", opening_of(section), re.MULTILINE)
    return [name for line in lines for name in line.split()]


def names_before(name, section):
    """Return the locals that *section* shares with the function in which its file puts it."""
    before = texts()[name].partition(f"--- @section {section}\n")[0]
    shared = {a.name for a in header(name).arguments} | locals_of(before, 0) | locals_of(before, 2)
    for earlier in scripts.sections(name):
        if earlier == section:
            return shared
        shared |= locals_of(body_of(earlier), 0)
    raise AssertionError(section)


def words_after(name, section):
    """Return the names that the file and its sections use after *section*."""
    after = texts()[name].partition(f"--- @section {section}\n")[2]
    code = "\n".join(line for line in after.splitlines() if not line.lstrip().startswith("--"))
    later = scripts.sections(name)
    return words_in("\n".join([code, *map(body_of, later[later.index(section) + 1 :])]))


class TestSections:
    """A section of a long function says which of its locals it reads and sets."""

    @pytest.mark.parametrize(("name", "section"), SECTIONS)
    def test_the_header_names_the_locals_that_it_sets(self, name, section):
        """A reader of a later section looks here for the origin of a local."""
        body, shared = body_of(section), names_before(name, section)
        after = words_after(name, section)
        sets = {x for x in locals_of(body, 0) if x.islower() and x in after}
        assert sorted(sets | assigned_in(body) & shared) == listed(section, "Sets")

    @pytest.mark.parametrize(("name", "section"), SECTIONS)
    def test_the_header_names_the_locals_that_it_reads(self, name, section):
        """A section is read alone, so its header says what comes from elsewhere."""
        shared = {x for x in names_before(name, section) if x.islower()} - {"_"}
        assert sorted(words_in(body_of(section)) & shared) == listed(section, "Reads")

    def test_no_section_is_left_out(self):
        """A file that no script contains is dead."""
        placed = {section for _, section in SECTIONS}
        parts = {f"parts/{part}" for name in VERBS for part in header(name).uses}
        parts |= {f"parts/{part}" for name in VERBS for part in header(name).later}
        assert {*FILES} == {*VERBS} | placed | parts | {"parts/prelude", "parts/format"}
