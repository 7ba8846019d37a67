"""Starting ``insula-gui`` for a qube: forked from a preloaded parent of its own kind, in a sandbox.

What the process can reach when it begins to listen to the guest: three descriptors, a pipe for its last words, and its
connection to the display server. Until then it sees, read-only, what Qt loads (:func:`view`). On X11 the connection
alone is much: a program there can read the screen and all keys. On Wayland it is its own windows.

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
from insula.preload.messages import Fork, View
from insula.rpc.spawn import session_uid

GUI_PROGRAM = "insula.gui.process"
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


async def spawn_gui(
    parent: PreloadedParent,
    qid: int,
    configure: Configure,
    descriptors: tuple[int, int, int],
    environment: Mapping[str, str] = os.environ,
) -> tuple[ForkedProcess, socket.socket]:
    """Start the process for a qube; return it, and the daemon's end of its control socket, both the caller's.

    ``descriptors``: where its last words go, the channel to the guest's agent, the qube's frame memory; they stay the
    caller's.

    :raise NoDesktop: nowhere to show windows.
    :raise OSError: it could not be started, or not in its sandbox.
    """
    request = Fork(
        0, GUI_PROGRAM, session_uid(qid), GUI_FILES, GUI_ADDRESS_SPACE, view=view(environment)
    )  # fmt: skip
    words, channel, memory = descriptors
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with theirs:
            process = await parent.fork(request, [words, channel, memory, theirs.fileno()])
        try:
            ours.send(control.encode(configure))
        except BaseException:
            process.kill()
            await process.wait()
            raise
    except BaseException:
        ours.close()
        raise
    return process, ours
