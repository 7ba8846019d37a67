"""Starting a session process in its sandbox.

What the process can reach: ``/usr``, the Python installation and the packages it imports, read-only; the three
sockets it is given. Own user, pid, net, ipc, uts (and, where there is one, cgroup) namespaces; no ``/etc``, ``/home``,
``/tmp``, ``/proc``, ``/dev``; an empty environment; no capabilities. It dies with the daemon.

Started by a root daemon it runs as host user 0x70000000 + qid, one a qube. bubblewrap then begins as root, because the
Python installation may lie where that user may not look; it makes the namespaces but the user one, which would map
the inner user to root. ``setpriv`` changes the user and gives up everything, ``unshare`` adds the user namespace.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import insula
import insula_proto
from insula.rpc import control
from insula.rpc.control import FromSession, ToSession
from insula_proto import limits

SESSION_UID_BASE = 0x70000000
"""Host user of a qube's processes under a root daemon, plus its qid; far above what any distribution hands out."""
MAX_INFO = 4096
"""Bytes of bubblewrap's report, one short JSON object."""
MAX_STDERR = 65536
"""Bytes of a session's last words that are kept for the log."""

_RUN_SESSION = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from insula.rpc.session import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class SessionSpec:
    """Which qube a session is for, and what it starts with."""

    name: str
    qid: int
    default_user: str
    keys: Mapping[str, bytes] = field(default_factory=dict)
    """What the guest is told (QubesDB paths)."""


def session_uid() -> bool:
    """Whether sessions get a user of their own: only root can give them one."""
    return os.geteuid() == 0


def _package_folders() -> list[Path]:
    """The folders of the packages a session imports."""
    modules = (insula, insula_proto, msgspec)
    return [Path(module.__file__ or "").resolve().parent for module in modules]


PACKAGES = "/insula"
"""Where a session finds the packages it imports; where they lie on the host is nothing it needs to see."""


def _python_folders() -> list[Path]:
    """The Python installation: where the interpreter and its library really are."""
    return [Path(sys.base_prefix).resolve(), Path(os.__file__).resolve().parent]


def _bind(folder: Path) -> Iterator[str]:
    """Show a folder inside, with parents anybody may pass (bubblewrap would make them for the owner only)."""
    for parent in reversed(folder.parents):
        if parent != Path("/"):
            yield from ("--perms", "0755", "--dir", str(parent))
    yield from ("--ro-bind", str(folder), str(folder))


def _files() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        link = Path("/", name)
        if link.is_symlink():
            yield from ("--symlink", str(link.readlink()), str(link))
        elif link.is_dir():
            yield from ("--ro-bind", str(link), str(link))
    shown = [Path("/usr")]
    for folder in _package_folders():
        yield from ("--perms", "0755", "--dir", PACKAGES, "--ro-bind", str(folder), f"{PACKAGES}/{folder.name}")
    for folder in _python_folders():
        if not any(folder.is_relative_to(parent) for parent in shown):
            shown.append(folder)
            yield from _bind(folder)


def sandbox_command(command: list[str], uid: int | None, info: int | None = None) -> list[str]:
    """Return the command line that runs ``command`` inside; pure but for looking at the file system's layout.

    ``uid`` is the host user to become; None: stay who we are. ``info`` is a descriptor that gets a JSON object with
    ``child-pid``, the sandbox's first process.
    """
    wrap = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    wrap += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "session", "--chdir", "/"]
    if info is not None:
        wrap += ["--info-fd", str(info)]
    wrap += _files()
    if uid is None:
        wrap += ["--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--remount-ro", "/", "--"]
        return wrap + command
    drop = ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
    drop += ["--bounding-set=-all", "--inh-caps=-all", "--"]
    # unshare writes its id map through /proc.
    wrap += ["--proc", "/proc", "--remount-ro", "/", "--"]
    return [*wrap, *drop, "/usr/bin/unshare", "--user", "--map-current-user", "--", *command]


def session_command(channel: int, listener: int, daemon: int) -> list[str]:
    """Return the command line of the session itself: isolated from everything but the folders it names."""
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
    descriptors = [str(number) for number in (channel, listener, daemon)]
    return [str(python), "-I", "-S", "-B", "-c", _RUN_SESSION, PACKAGES, *descriptors]


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor when the context is left."""
    try:
        yield fd
    finally:
        os.close(fd)


async def _readable(*fds: int) -> None:
    """Return when there is something to read on one of them, or its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    for fd in fds:
        loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        for fd in fds:
            loop.remove_reader(fd)


class SessionProcess:
    """A running session; owns the process and the control socket."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, info: int) -> None:
        """Takes over ``info``, the descriptor bubblewrap says on which process it has put into the sandbox."""
        self._process = process
        self._connection = connection
        self._words = b""
        self._pidfds: list[int] = []
        """Of bubblewrap, and of the sandbox's first process once it is known; with that dies everything inside.

        (asyncio's own ``kill`` may reap the process under the eyes of its child watcher.)
        """
        with suppress(ProcessLookupError):
            self._pidfds.append(os.pidfd_open(process.pid))
        self._end = asyncio.create_task(self._wait_for_end(info), name=f"session {process.pid} end")
        self._reader = asyncio.create_task(self._read_stderr(), name=f"session {process.pid} stderr")

    @property
    def pid(self) -> int:
        """Process id of the sandbox (bubblewrap); killing it kills the session."""
        return self._process.pid

    async def send(self, message: ToSession) -> None:
        """:raise OSError: the session is gone."""
        await asyncio.get_running_loop().sock_sendall(self._connection, control.encode(message))

    async def receive(self) -> FromSession | None:
        """Return the next message, None when the session is gone.

        :raise RemoteProtocolError: it sent something else than messages; it is not to be trusted.
        """
        try:
            data = await asyncio.get_running_loop().sock_recv(self._connection, control.MAX_MESSAGE)
        except ConnectionError:
            return None
        return control.decode_from_session(data) if data else None

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            self._words = (self._words + data)[-MAX_STDERR:]

    def last_words(self) -> str:
        """What the session printed, guest text made printable by it; for the log."""
        return self._words.decode("ascii", "replace")

    def kill(self) -> None:
        """End it at once; idempotent."""
        for pidfd in self._pidfds:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Return the exit code once the process has ended, and nothing of it is left."""
        return await asyncio.shield(self._end)

    async def _wait_for_end(self, info: int) -> int:
        """Also where somebody else killed bubblewrap.

        It asks the kernel to end its child with it, but only some time after it made that child: one killed before
        leaves the child waiting for it (in the process group the two share until then), one killed a little later
        leaves a whole sandbox running. Both would keep our sockets open.
        """
        try:
            await self._watch(info)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self.kill()
            return await self._process.wait()
        finally:
            os.close(info)
            while self._pidfds:
                os.close(self._pidfds.pop())

    async def _watch(self, info: int) -> None:
        """Learn which process is inside; return when bubblewrap has ended."""
        if not self._pidfds:
            return
        outer = self._pidfds[0]
        report = b""
        with suppress(BlockingIOError):
            # It is written in several pieces; nothing to read means that bubblewrap ended before the next one.
            while not report.rstrip().endswith(b"}") and len(report) < MAX_INFO:
                await _readable(info, outer)
                report += os.read(info, MAX_INFO) or b"}"
        with suppress(ValueError, ProcessLookupError):
            self._pidfds.append(os.pidfd_open(int(json.loads(report)["child-pid"])))
        await _readable(outer)

    async def close(self) -> None:
        """End it and wait until nothing of it is left; idempotent."""
        self.kill()
        await self.wait()
        await self._reader
        self._connection.close()


async def spawn_session(spec: SessionSpec, channel: socket.socket, listener: socket.socket) -> SessionProcess:
    """Start a session and give it its configuration and keys; it greets the guest then.

    ``channel`` and ``listener`` are passed on as descriptors; the caller closes its own copies.

    :raise OSError: it could not be started.
    :raise LocalProtocolError: a key that cannot be told.
    """
    messages = [control.Configure(spec.name, spec.qid, spec.default_user)]
    if len(spec.keys) > limits.QUBESDB_MAX_KEYS:
        raise ValueError(f"{len(spec.keys)} keys")
    first: list[ToSession] = [*messages, *(control.SetKey(path, value) for path, value in spec.keys.items())]
    for message in first:
        control.encode(message)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    uid = SESSION_UID_BASE + spec.qid if session_uid() else None
    descriptors = [channel.fileno(), listener.fileno(), theirs.fileno()]
    info, info_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with theirs, closing_fd(info_writer):
            process = await asyncio.create_subprocess_exec(
                *sandbox_command(session_command(*descriptors), uid, info_writer),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[*descriptors, info_writer],
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        os.close(info)
        raise
    session = SessionProcess(process, ours, info)
    try:
        for message in (*first, control.Begin()):
            await session.send(message)
    except BaseException:
        await session.close()
        raise
    return session
