"""A start and first commands played through by a machine that is nobody's yet, and undone by their end.

Under software emulation code is slow when it runs for the first time: it is translated then. A machine that waits to
become somebody (docs/decisions/015) therefore goes once through all that a start will ask of it. Told so by the host
with the key ``/insula-rehearsal``, the agent makes two processes and waits for them::

    agent ─► stage ──── socket pair ──── actor
             own namespaces,             process 1 of a pid namespace: an agent as any other; becomes the sample that
             plays the host              the keys describe, says HELLO, runs the commands

Nothing of it is left. Host name and mounts are the namespaces'; ``/run``, ``/tmp`` and the files that have a name or
an id in them lie in memory; the root is read-only; what a command leaves running ends with the actor. The private disk
is a placeholder, which the host takes away afterwards.
"""

from __future__ import annotations

import errno
import os
import select
import time

from insula_agent import files, persistence, syscalls
from insula_proto import limits, qrexec, qubesdb
from insula_proto.mux import HOST, Mux
from insula_proto.mux_events import DataReceived, FinReceived, StreamOpened, StreamReset
from insula_proto.qrexec_channel import CallerEnd, DaemonControl

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]  # isort: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

KEY = "/insula-rehearsal"
START = b"start"
WITH_WINDOW = b"window"
"""A start, and a first window after it."""
LIMIT = 20
"""Seconds for all of it: two on an idle machine."""
RELEASE_LIMIT = 2.0
"""Seconds for the kernel to let go of the private disk, after the last process that had it mounted."""
COMMANDS = ("{0}:true", "{0}:QUBESRPC qubes.VMExec+true dom0")
"""First commands in both forms; twice, because the second time is what is to become quick."""
ROUNDS = 2
IN_MEMORY = ("/run", "/tmp", "/dev/shm")  # noqa: S108 - hidden, not used
NAMED_FILES = ("/etc/hostname", "/etc/hosts", "/etc/machine-id")
STAGE = "/run/insula"
OMITTED_KEYS = (KEY, "/insula-seed", "/qubes-timezone")
"""Not the sample's: the zone is a link, which is replaced where it is, in the read-only root."""
OUTPUT_LIMIT = 4096
SIGKILL = 9

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000
_MS_REC = 16384
_MS_PRIVATE = 1 << 18


class RehearsalFailed(Exception):
    """It broke off; the machine is as before, and will be slower the first time."""


def is_wanted(keys: Mapping[str, bytes]) -> bool:
    return keys.get(KEY) in (START, WITH_WINDOW)


def has_window(keys: Mapping[str, bytes]) -> bool:
    """Whether a first window belongs to it."""
    return keys.get(KEY) == WITH_WINDOW


def run(keys: Mapping[str, bytes], act: Callable[[int], None]) -> None:
    """Play a start with these keys; returns when all is undone.

    :param act: is an agent on a descriptor; called in the actor.
    :raise RehearsalFailed: says why.
    """
    output = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    try:
        pid = os.fork()
        if not pid:
            _in_child(lambda: _stage(dict(keys), act), output)
        _, status = os.waitpid(pid, 0)
        _await_release()
        if status:
            words = os.pread(output, OUTPUT_LIMIT, 0).decode("utf-8", "replace")
            raise RehearsalFailed(f"wait status {status}: {words}")
    finally:
        os.close(output)


def _in_child(work: Callable[[], None], output: int) -> None:
    """Do it and end, whatever happens; what is said meanwhile is kept from the journal."""
    code = 1
    try:
        os.dup2(output, 2)
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the agent may run on in the child
        os.write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _await_release() -> None:
    """Return once no mount holds the private disk any more. :raise RehearsalFailed:"""
    device = persistence.find_disk(persistence.PRIVATE)
    deadline = time.monotonic() + RELEASE_LIMIT
    while device is not None:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise RehearsalFailed(f"{device}: {error}") from error
            time.sleep(0.01)
        else:
            return


def _stage(keys: dict[str, bytes], act: Callable[[int], None]) -> None:
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.alarm(LIMIT)
    set_up(IN_MEMORY)
    # So that the actor does what a fork does; it is a file, and nobody waits there.
    files.touch(f"{STAGE}/gate")
    own, actors = _socket_pair()
    pid = os.fork()
    if not pid:
        os.close(own)
        _in_child(lambda: act(actors), 2)
    os.close(actors)
    try:
        Player(own, {path: value for path, value in keys.items() if path not in OMITTED_KEYS}).run()
    finally:
        # Process 1 of its namespace: all that it started ends with it.
        os.kill(pid, SIGKILL)
        os.waitpid(pid, 0)


def set_up(in_memory: Iterable[str]) -> None:
    """Namespaces in which nothing is left of what is done; new processes are in a pid namespace, the first of them as
    its process 1. ``in_memory``: folders that are empty there, ``/run`` among them. :raise OSError:"""
    syscalls.call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID)
    syscalls.mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    for folder in in_memory:
        syscalls.mount("rehearsal", folder, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=4m")
    os.makedirs(STAGE)
    for path in NAMED_FILES:
        copy = f"{STAGE}/{os.path.basename(path)}"
        files.write(copy, files.read(path))
        # A template may lack one; every start makes it.
        files.touch(path)
        syscalls.bind(copy, path)
    syscalls.mount("none", "/", "none", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
    os.environ.pop("NOTIFY_SOCKET", None)


def _socket_pair() -> tuple[int, int]:
    import _socket  # noqa: PLC0415 - the public module costs an import of enum and selectors

    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return one.detach(), other.detach()


class Player:
    """The host's part, as much of it as a start and commands need. ``keys`` is changed by what the qube removes."""

    def __init__(self, channel: int, keys: dict[str, bytes]) -> None:
        user = keys.get("/default-user", b"root").decode("utf-8", "replace")
        self._channel = channel
        self._mux = Mux(HOST)
        self._keys = qubesdb.KeyServer(keys, lambda path, value: False)
        self._control = DaemonControl()
        self._control_stream = 0
        self._ports: dict[int, int] = {}
        self._pending = [command.format(user).encode() for command in COMMANDS * ROUNDS]
        self._caller = CallerEnd()
        self._call_stream = 0
        self.codes: list[int] = []
        """Exit codes of the commands so far."""

    def run(self) -> None:
        """Until all commands have ended. :raise RehearsalFailed: one could not be run, or the actor has gone."""
        os.set_blocking(self._channel, False)
        poll = select.poll()
        self._mux.start(pad=False)
        while len(self.codes) < len(COMMANDS) * ROUNDS:
            is_blocked = not self._write()
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if is_blocked else 0))
            poll.poll()
            self._read()
        if any(self.codes):
            raise RehearsalFailed(f"exit codes {self.codes}")

    def _write(self) -> bool:
        while buffers := self._mux.data_to_send():
            try:
                self._mux.sent(os.writev(self._channel, buffers))
            except BlockingIOError:
                return False
        return True

    def _read(self) -> None:
        try:
            data = os.read(self._channel, limits.MUX_MAX_DATA)
        except BlockingIOError:
            return
        if not data:
            raise RehearsalFailed("the actor has gone")
        for event in self._mux.receive(data):
            if isinstance(event, StreamOpened):
                self._ports[event.stream] = event.port
            elif isinstance(event, DataReceived):
                self._mux.consumed(event.stream, len(event.data))
                self._take(event.stream, bytes(event.data))
            elif isinstance(event, (FinReceived, StreamReset)) and event.stream == self._call_stream:
                self._next()

    def _take(self, stream: int, data: bytes) -> None:
        port = self._ports.get(stream)
        if port == qubesdb.PORT:
            self._keys.receive(data)
            self._mux.send(stream, self._keys.take_output())
        elif port == qrexec.CONTROL_PORT:
            for message in self._control.receive(data):
                if isinstance(message, qrexec.Hello):
                    self._control_stream = stream
                    self._mux.send(stream, self._control.answer())
                    self._next()
        elif stream == self._call_stream:
            self._caller.receive(data)
            if self._caller.exit_code is not None:
                self.codes.append(self._caller.exit_code)
                self._mux.finish(stream)

    def _next(self) -> None:
        """Have the next command run, as a session does."""
        if not self._pending:
            return
        port = limits.FIRST_DATA_PORT
        self._caller = CallerEnd()
        self._call_stream = self._mux.open(port)
        self._mux.send(self._call_stream, self._caller.hello())
        message = qrexec.ExecCmdline(0, port, self._pending.pop(0))
        self._mux.send(self._control_stream, self._control.execute(message))
