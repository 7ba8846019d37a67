"""Starting ``insula-gui``: forked from a preloaded parent of its own kind, in a sandbox, then handed a qube.

What the process can reach when it is handed one: a socket to the daemon, a pipe for its last words, its connection to
the display server; then the channel to the guest's agent and the qube's frame memory, too. Until it is in its sandbox
it sees, read-only, what Qt loads (:func:`view`). On X11 the connection alone is much: a program there can read the
screen and all keys. On Wayland it is its own windows.

A parent of its own, not that of the sessions: it has imported Qt, and a machine without windows needs none of that.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from insula.gui import control, x_authority
from insula.gui.control import Configure
from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.preload.last_words import LastWords
from insula.preload.messages import Fork, View
from insula.rpc.spawn import SESSION_UID_BASE

GUI_PROGRAM = "insula.gui.process"
GUI_UID_BASE = SESSION_UID_BASE + 0x10000
"""Host user of such a process under a root daemon, plus its number; above those of qubes and machines in waiting."""
MAX_PROCESSES = 4096
"""At a time; more than a desktop's clients can be."""
GUI_FILES = 256
"""RLIMIT_NOFILE: a display, a guest, a daemon; two for each window's buffer would be more than Qt takes."""
GUI_ADDRESS_SPACE = 2**32
"""RLIMIT_AS in bytes: Qt maps half a gigabyte of libraries and stacks, frame memory up to one, buffers of windows."""
GUI_FILE_SIZE = 2**29
"""RLIMIT_FSIZE in bytes: memory that is shared with the display server, at most the largest window's."""

_X_SOCKETS = "/tmp/.X11-unix"  # noqa: S108 - where X servers listen
_AUTHORITY = "/Xauthority"
_DISPLAY = re.compile(r"(?:unix)?:([0-9]{1,5})(?:\.[0-9]+)?")
_LOADED = ("/usr", "/lib", "/lib64", "/etc/fonts", "/etc/ld.so.cache", "/var/cache/fontconfig")
"""Libraries, plug-ins' dependencies, fonts, keyboard tables."""


class NoDesktop(OSError):
    """The environment names no display server, or one that is not there."""


def view(environment: Mapping[str, str]) -> View:
    """What Qt needs to connect to the desktop of that environment. :raise NoDesktop:"""
    variables: dict[str, str] = {}
    paths = [path for path in _LOADED if Path(path).exists()]
    found = importlib.util.find_spec("PySide6")
    if found is None or not found.submodule_search_locations:
        raise NoDesktop("windows need PySide6: install insula with its extra “gui”")
    paths += [str(Path(folder).resolve()) for folder in found.submodule_search_locations]
    runtime, wayland = environment.get("XDG_RUNTIME_DIR", ""), environment.get("WAYLAND_DISPLAY", "")
    wayland_socket = Path(runtime, wayland)
    if wayland and runtime and wayland_socket.is_socket() and environment.get("QT_QPA_PLATFORM") != "xcb":
        paths.append(str(wayland_socket))
        variables |= {"XDG_RUNTIME_DIR": runtime, "WAYLAND_DISPLAY": wayland, "QT_QPA_PLATFORM": "wayland"}
        return View(tuple(paths), (), tuple(variables.items()), GUI_FILE_SIZE)
    display = environment.get("DISPLAY", "")
    local = _DISPLAY.fullmatch(display)
    if local is None:
        raise NoDesktop(f"no desktop: DISPLAY is {display!r}, and there is no Wayland socket")
    x_socket = Path(_X_SOCKETS, f"X{local[1]}")
    if not x_socket.is_socket():
        raise NoDesktop(f"no X server listens at {x_socket}")
    paths.append(str(x_socket))
    variables |= {"DISPLAY": f"unix:{local[1]}", "QT_QPA_PLATFORM": "xcb"}
    files: list[tuple[str, bytes]] = []
    authority = Path(environment.get("XAUTHORITY") or Path.home() / ".Xauthority")
    if authority.is_file():
        # (The process may be of another user, who could not read it where it is.)
        files.append((_AUTHORITY, x_authority.of_display(authority.read_bytes(), local[1])))
        variables["XAUTHORITY"] = _AUTHORITY
    # Qt uses no shared memory at all if a System V segment cannot be tried, though it then takes the server's files.
    return View(tuple(paths), tuple(files), tuple(variables.items()), GUI_FILE_SIZE, keeps_ipc=True)


class GuiProcess:
    """A process in its sandbox, connected to the desktop: nobody's until it is handed a qube."""

    def __init__(self, process: ForkedProcess, daemon: socket.socket, words: LastWords) -> None:
        """Takes over all of these: they are whose it becomes."""
        self.process = process
        self.daemon = daemon
        """Our end of its control socket."""
        self.words = words

    @property
    def pid(self) -> int:
        """Process id on the host."""
        return self.process.pid

    def hand(self, configure: Configure, channel: socket.socket, memory: int) -> None:
        """Have it show a qube's windows: ``channel`` leads to the guest's agent, ``memory`` is the qube's frame memory;
        both stay the caller's. :raise OSError: it has ended."""
        socket.send_fds(self.daemon, [control.encode(configure)], [channel.fileno(), memory])

    async def close(self) -> None:
        """End it, if it is still nobody's."""
        self.process.kill()
        try:
            await self.process.wait()
        finally:
            self.words.close()
            self.daemon.close()


def gui_uid(number: int) -> int | None:
    """The host user of such a process, no qube's; None where they stay ours, because only root can give them one."""
    return GUI_UID_BASE + number if os.geteuid() == 0 else None


async def spawn_gui(parent: PreloadedParent, number: int, view: View) -> GuiProcess:
    """Make a process that is connected to the desktop which ``view`` shows it.

    :param number: below :data:`MAX_PROCESSES`, no other running one's.
    :raise OSError: it could not be started, or not in its sandbox.
    """
    request = Fork(0, GUI_PROGRAM, gui_uid(number), GUI_FILES, GUI_ADDRESS_SPACE, view=view)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(writer, True)
    words = LastWords(reader)
    try:
        with theirs:
            try:
                process = await parent.fork(request, [writer, theirs.fileno()])
            finally:
                os.close(writer)
    except BaseException:
        words.close()
        ours.close()
        raise
    return GuiProcess(process, ours, words)
