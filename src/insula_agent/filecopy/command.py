"""``qvm-copy``, ``qvm-move``, ``qvm-copy-to-vm``, ``qvm-move-to-vm``, and ``qfile-agent`` for programs that call that.

They look at everything first, call ``qubes.Filecopy`` (``+allow-all-names`` if names here need it), send, and believe
nothing but an answer of 0 with the right checksum. A move removes after that (:mod:`insula_agent.filecopy.removal`).
"""

from __future__ import annotations

import os
import sys

from insula_agent.client_call import EXIT_INTERRUPTED, EXIT_REFUSED, ClientCall
from insula_agent.filecopy import tree
from insula_agent.filecopy.outgoing import Outgoing
from insula_agent.filecopy.tree import SendFailed
from insula_proto.file_names import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SERVICE = "qubes.Filecopy"
ANY_TARGET = "@default"

_OPTIONS = """
  --without-progress   show no progress (--with-progress: show it, also where stderr is no terminal)
  --ignore-symlinks    leave symbolic links out (--no-ignore-symlinks: send them, the default)
  --help               show this

They arrive in ~/QubesIncoming/NAME OF THIS QUBE/ of the other qube; nothing there is replaced. Folders are sent whole.
"""


class Options:
    """What was asked for."""

    __slots__ = ("ignore_symlinks", "paths", "progress", "target")

    def __init__(self) -> None:
        self.ignore_symlinks = False
        self.progress: bool | None = None
        """None: if somebody may look at it."""
        self.target = ANY_TARGET
        self.paths: list[bytes] = []


def parse(arguments: Sequence[str], *, names_target: bool) -> Options | None:
    """None: not understood, or help was asked for."""
    options = Options()
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            break
        if option in ("--without-progress", "--with-progress"):
            options.progress = option == "--with-progress"
        elif option in ("--ignore-symlinks", "--no-ignore-symlinks"):
            options.ignore_symlinks = option == "--ignore-symlinks"
        else:
            return None
    if names_target and rest:
        options.target = rest.pop(0)
    options.paths = [os.fsencode(path) for path in rest]
    return options if options.paths and options.target else None


def show_nothing(sent: int) -> None:
    """No progress is shown."""
    del sent


class ConsoleProgress:
    """``sent 3/10 KB`` on one line of stderr."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = -1

    def report(self, sent: int) -> None:
        kilobytes = (sent + 1023) // 1024
        if kilobytes != self._shown:
            self._shown = kilobytes
            sys.stderr.write(f"sent {kilobytes}/{(self._total + 1023) // 1024} KB\r")
            sys.stderr.flush()

    def finish(self) -> None:
        sys.stderr.write("\n")


def main(name: str, arguments: Sequence[str]) -> int:
    """The exit code of ``qvm-copy`` and its kin."""
    is_move = name.startswith("qvm-move")
    names_target = name.endswith("-to-vm")
    options = parse(arguments, names_target=names_target)
    if options is None:
        sys.stderr.write(f"usage: {name} [OPTIONS] {'QUBE ' if names_target else ''}FILE...\n{_OPTIONS}")
        return 0 if "--help" in arguments or "-h" in arguments else 1
    try:
        found = tree.survey(options.paths, ignore_symlinks=options.ignore_symlinks)
        has_progress = options.progress if options.progress is not None else sys.stderr.isatty()
        progress = ConsoleProgress(found.total) if has_progress else None
        report = show_nothing if progress is None else progress.report
        try:
            outgoing = transfer(
                options.target, found, report, ignore_symlinks=options.ignore_symlinks, remembers=is_move
            )
        finally:
            if progress is not None:
                progress.finish()
    except SendFailed as error:
        sys.stderr.write(f"{name}: {error}\n")
        return EXIT_REFUSED if isinstance(error, CallRefused) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    for path in outgoing.left_out:
        sys.stderr.write(f"{name}: left out: {shown(path)} is neither file, folder nor link\n")
    if is_move:
        from insula_agent.filecopy import removal  # noqa: PLC0415 - most transfers are copies

        kept = removal.remove(found.roots, outgoing.sent)
        for line in kept:
            sys.stderr.write(f"{name}: kept: {line}\n")
        return 1 if kept else 0
    return 0


class CallRefused(SendFailed):
    """The call was not allowed."""


def transfer(
    target: str, found: tree.Survey, report: Callable[[int], None], *, ignore_symlinks: bool, remembers: bool
) -> Outgoing:
    """Call the other qube and send. :raise SendFailed:"""
    service = SERVICE + ("+allow-all-names" if found.has_odd_names else "")
    try:
        call = ClientCall(target, service, ["--filter-escape-chars-stderr"])
    except OSError as error:
        raise SendFailed(f"qrexec-client-vm: {error.strerror}") from error
    failure: SendFailed | None = None
    outgoing = Outgoing(call.stdin, call.stdout, report, ignore_symlinks=ignore_symlinks, remembers=remembers)
    try:
        outgoing.send(found.roots)
        call.close_stdin()
        outgoing.confirm()
    except SendFailed as error:
        failure = error
    finally:
        code = call.wait()
    if code == EXIT_REFUSED:
        raise CallRefused("the call was refused")
    if failure is not None:
        raise failure
    if code:
        raise SendFailed(f"the call ended with exit code {code}")
    return outgoing


def qfile_agent(arguments: Sequence[str]) -> int:
    """``qfile-agent [--ignore-symlinks] FILE...``: a program of ``qrexec-client-vm``, the channel on stdin and stdout.

    Published environment: PROGRESS_TYPE (console, gui), FILECOPY_TOTAL_BYTES, SAVED_FD_1.
    """
    options = parse(arguments, names_target=False)
    if options is None:
        sys.stderr.write("usage: qfile-agent [--ignore-symlinks] FILE...\n")
        return 1
    report: Callable[[int], None] = show_nothing
    total = os.environ.get("FILECOPY_TOTAL_BYTES", "")
    saved_stdout = os.environ.get("SAVED_FD_1", "")
    if os.environ.get("PROGRESS_TYPE") == "console" and total.isdigit():
        report = ConsoleProgress(int(total)).report
    elif os.environ.get("PROGRESS_TYPE") == "gui" and saved_stdout.isdigit():
        gui = int(saved_stdout)

        def report(sent: int) -> None:
            os.write(gui, b"%d\n" % sent)

    try:
        roots = [tree.Root(path) for path in options.paths]
        outgoing = Outgoing(1, 0, report, ignore_symlinks=options.ignore_symlinks)
        outgoing.send(roots)
        os.close(1)
        outgoing.confirm()
    except SendFailed as error:
        sys.stderr.write(f"qfile-agent: {error}\n")
        return 1
    return 0
