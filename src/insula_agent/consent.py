"""Asking the person at this qube whether another qube may do something here.

By a dialog where there is a screen and a program for dialogs; else by the terminal in which ``insula-consent`` runs;
else nobody can be asked, and the answer is no. What is asked is text of ours and checked names; it is given to the
dialog as plain text, as an argument.

A yes can be remembered for some time, for one kind of use by one qube: the age of a file in a folder of the user's own.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_LIMIT_S = 120
"""Seconds to answer; then it is a no, and the question goes away."""
NO_LASTS_S = 10
"""Seconds after a no in which the same is refused without being asked."""
MAX_QUESTION = 2048
"""Bytes."""
ALLOW = b"allow\n"
DENY = b"deny\n"
SOCKET = "consent.sock"
SHARED_FOLDER = "/tmp"  # noqa: S108 - what is made in it is checked to be ours
_SIGTERM = 15
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class NobodyToAsk(Exception):
    """No dialog can be shown and no terminal listens."""


def check_source(name: str) -> str:
    """A qube's name as it may be shown and be part of a file's name. :raise ValueError:"""
    if not name or not _NAME_LETTERS.issuperset(name) or name.startswith("."):
        raise ValueError(f"not a qube: {name!r}")
    return name


def private_folder(environment: Mapping[str, str]) -> str:
    """A folder that only this user can use, gone with the machine's run. :raise PermissionError: it is another's."""
    base = environment.get("XDG_RUNTIME_DIR", "")
    has_base = base.startswith("/") and os.path.isdir(base)
    folder = f"{base}/insula" if has_base else f"{SHARED_FOLDER}/insula-{os.geteuid()}"
    # (contextlib is a slow import.) What was made earlier, or just now by who asks at the same time, is checked below.
    try:  # noqa: SIM105
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not only this user's")
    return folder


def lock(path: str) -> int:
    """Wait to be the only process that has a lock file of a private folder; closing what this returns gives it back.

    :raise OSError:
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


# --- remembering -----------------------------------------------------------------------------------------------------


def is_remembered(folder: str, use: str, source: str, seconds: int, now: float) -> bool:
    """Whether this use was allowed to this qube less than so many seconds ago."""
    try:
        age = now - os.stat(f"{folder}/{use}.{source}").st_mtime
    except FileNotFoundError:
        return False
    return 0 <= age < seconds


def remember(folder: str, use: str, source: str) -> None:
    path = f"{folder}/{use}.{source}"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    os.utime(path)


# --- asking ----------------------------------------------------------------------------------------------------------


def _is_there(program: str, path: str) -> bool:
    return any([os.access(f"{folder}/{program}", os.X_OK) for folder in path.split(":") if folder])  # noqa: C419


def dialog(question: str, environment: Mapping[str, str]) -> list[str] | None:
    """The program that asks by a window: it ends with 0 for yes. None: there is none, or no screen."""
    if not environment.get("DISPLAY") and not environment.get("WAYLAND_DISPLAY"):
        return None
    path = environment.get("PATH", os.defpath)
    if _is_there("zenity", path):
        return ["zenity", "--question", "--no-markup", "--default-cancel", f"--text={question}"]
    if _is_there("kdialog", path):
        return ["kdialog", "--title", "Another qube asks", "--yesno", question]
    if _is_there("xmessage", path):
        return ["xmessage", "-buttons", "No:1,Yes:0", "-default", "No", question]
    return None


def _ask_by_dialog(argv: list[str]) -> bool:
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", 0, 0)])
    ended = os.pidfd_open(pid)
    try:
        if not select.select([ended], [], [], ANSWER_LIMIT_S)[0]:
            os.kill(pid, _SIGTERM)
    finally:
        os.close(ended)
    return os.waitpid(pid, 0)[1] == 0


def _ask_at_terminal(question: str, path: str) -> bool:
    import socket  # noqa: PLC0415 - costs more than all else where an answer is remembered

    terminal = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        terminal.connect(path)
        terminal.settimeout(ANSWER_LIMIT_S)
        terminal.sendall(question.encode("utf-8", "replace")[:MAX_QUESTION])
        terminal.shutdown(socket.SHUT_WR)
        return terminal.recv(len(ALLOW)) == ALLOW
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NobodyToAsk("no dialog can be shown, and insula-consent does not run in a terminal") from error
    except TimeoutError:
        return False
    finally:
        terminal.close()


def ask(question: str, environment: Mapping[str, str]) -> bool:
    """Ask now. :raise NobodyToAsk: :raise OSError:"""
    argv = dialog(question, environment)
    if argv is not None:
        return _ask_by_dialog(argv)
    return _ask_at_terminal(question, f"{private_folder(environment)}/{SOCKET}")


def ask_or_remember(use: str, source: str, question: str, seconds: int, environment: Mapping[str, str]) -> bool:
    """Ask unless a yes is remembered; remember a yes for so many seconds, a no for :data:`NO_LASTS_S`.

    One question of a use by a qube at a time: what comes meanwhile waits, and finds the answer remembered. So a qube
    that asks without end shows one question after another at most, and none for a while after a no.

    :raise NobodyToAsk, OSError:
    """
    folder = private_folder(environment)
    held = lock(f"{folder}/{use}.{source}.lock")
    try:
        if is_remembered(folder, use, source, seconds, time.time()):
            return True
        if is_remembered(folder, f"{use}-no", source, NO_LASTS_S, time.time()):
            return False
        is_allowed = ask(question, environment)
        if not is_allowed:
            remember(folder, f"{use}-no", source)
        elif seconds:
            remember(folder, use, source)
        return is_allowed
    finally:
        os.close(held)
