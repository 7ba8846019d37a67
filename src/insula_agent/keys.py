"""The keys the host tells this qube (QubesDB): read once at boot, kept up to date, shown to local programs as files.

A key ``/a/b`` is the file ``a%2Fb`` in the folder: a key may also be the beginning of another's name, which folders
could not express.
"""

from __future__ import annotations

import errno
import os

from insula_agent.log import log
from insula_agent.streams import RESET_FAILED, StreamHandler, Streams, StreamWriter
from insula_proto import qubesdb
from insula_proto.errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_FOLDER = "/run/insula/keys"
SEED_KEY = "/qubes-random-seed"
"""Used once by the identity step, then forgotten on both sides (agent-services §11)."""
CLOCK_KEY = "/insula-clock"
"""Over as soon as it is told; a file of it would be written when a machine goes on, before its first command."""
NOT_SHOWN = frozenset((SEED_KEY, CLOCK_KEY))


def file_name(path: str) -> str:
    """Return the file that shows a key; never starts with a dot, has no slash."""
    name = path[1:].replace("%", "%25").replace("/", "%2F")
    return "%2E" + name[1:] if name.startswith(".") else name


def make_file(folder: str, name: str, value: bytes, mode: int = 0o644) -> None:
    """Make a file that is not there. :raise FileExistsError: it is."""
    fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def write_file(folder: str, name: str, value: bytes, mode: int = 0o644) -> None:
    """Replace a file at once, so that no reader sees half of it."""
    temporary = os.path.join(folder, f".{name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)
    os.replace(temporary, os.path.join(folder, name))


class Keys(StreamHandler):
    """``on_complete`` is called with all keys each time they have been read over a new connection, ``on_written`` with
    a key and its value each time the host has set one since, ``on_removed`` with one that is gone."""

    def __init__(
        self,
        link: Streams,
        folder: str,
        on_complete: Callable[[dict[str, bytes]], None],
        on_written: Callable[[str, bytes], None],
        on_removed: Callable[[str], None],
    ) -> None:
        self._link = link
        self._folder = folder
        self._on_complete = on_complete
        self._on_written = on_written
        self._on_removed = on_removed
        self._client = qubesdb.KeyClient()
        self._stream = 0
        self._writer: StreamWriter | None = None

    def start(self) -> None:
        """Ask for everything, over a new stream."""
        self._client = qubesdb.KeyClient()
        self._stream = self._link.open(qubesdb.PORT, self)
        self._writer = StreamWriter(self._link, self._stream)
        self._writer.write(self._client.read_all())

    def forget_seed(self) -> None:
        """Have the host drop the random seed, so that no program of this qube can read it again."""
        if self._client.keys.pop(SEED_KEY, None) is not None and self._writer is not None:
            self._writer.write(self._client.remove(SEED_KEY))

    # --- for programs of this qube --------------------------------------------------------------------------------

    @property
    def known(self) -> dict[str, bytes]:
        """All keys there are now."""
        return self._client.keys

    def may_tell(self, path: str, value: bytes) -> bool:
        """Whether the host can be told of a key."""
        del path, value
        return self._writer is not None

    def tell(self, path: str, value: bytes) -> None:
        """Tell the host of a key that this qube has set."""
        self._client.keys[path] = value
        if self._writer is not None:
            self._writer.write(self._client.write(path, value))
        self._show(path, value)

    def take_back(self, path: str) -> None:
        """Tell the host that this qube has removed a key."""
        self._client.keys.pop(path, None)
        if self._writer is not None:
            self._writer.write(self._client.remove(path))
        self._hide(file_name(path))

    # --- the host -------------------------------------------------------------------------------------------------

    def data(self, stream: int, data: bytes) -> None:
        try:
            events = self._client.receive(data)
        except RemoteProtocolError as error:
            log(f"keys: {error}")
            self._link.reset(stream, RESET_FAILED)
            return
        self._link.consumed(stream, len(data))
        answers = self._client.take_output()
        if answers and self._writer is not None:
            self._writer.write(answers)
        for event in events:
            if isinstance(event, qubesdb.AllKeysRead):
                self._on_complete(dict(self._client.keys))
                self._show_all()
            elif isinstance(event, qubesdb.KeyWritten):
                self._on_written(event.path, event.value)
                self._show(event.path, event.value)
            else:
                self._on_removed(event.path)
                self._hide(file_name(event.path))

    def writable(self, stream: int) -> None:
        del stream
        if self._writer is not None:
            self._writer.flush()

    def closed(self, stream: int, code: int) -> None:
        del stream, code
        self._writer = None

    # --- files ---------------------------------------------------------------------------------------------------

    def _show_all(self) -> None:
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            shown = set(os.listdir(self._folder))
        except OSError as error:
            log(f"keys: {error}")
            return
        for path, value in self._client.keys.items():
            self._show(path, value, is_new=file_name(path) not in shown)
        for name in shown.difference([file_name(path) for path in self._client.keys]):
            self._hide(name)

    def _show(self, path: str, value: bytes, *, is_new: bool = False) -> None:
        if not qubesdb.is_valid_path(path) or path in NOT_SHOWN:
            return
        try:
            if is_new:
                # Nobody looks for it yet, so nobody sees half of it.
                make_file(self._folder, file_name(path), value)
            else:
                write_file(self._folder, file_name(path), value)
        except OSError as error:
            log(f"keys: {error}")

    def _hide(self, name: str) -> None:
        try:
            os.unlink(os.path.join(self._folder, name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                log(f"keys: {error}")
