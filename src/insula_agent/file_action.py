"""``insula-file-action``: what the menus of file managers call, for people who see no terminal.

Copying and moving show their progress in a window, failures are told in one, where the qube has a program for windows
(zenity); otherwise on stderr. The work itself is that of ``qvm-copy``, ``qvm-open-in-vm`` and ``qvm-convert-pdf``.
"""

from __future__ import annotations

import os
import sys

from insula_agent.filecopy import command, removal, tree
from insula_agent.filecopy.tree import SendFailed
from insula_agent.opening import command as opening
from insula_agent.pixels import pdf_client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DIALOG = "zenity"
VERBS = ("copy", "move", "open", "open-in-disposable", "view-in-disposable", "convert")
USAGE = f"usage: insula-file-action {'|'.join(VERBS)} FILE...\n"
_SIGPIPE = 13


class WindowProgress:
    """A window with a bar; closing it ends nothing but the window."""

    def __init__(self, title: str, total: int) -> None:
        """:raise OSError: there is no program for windows."""
        self._total = max(total, 1)
        self._shown = -1
        theirs, self._pipe = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.posix_spawnp(
                DIALOG, [DIALOG, "--progress", "--auto-close", "--no-cancel", f"--title={title}", f"--text={title}"],
                os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0)], setsigdef=[_SIGPIPE],
            )  # fmt: skip
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(theirs)

    def report(self, sent: int) -> None:
        """100 closes the window: kept for the end, when the other qube has said that it has all."""
        percent = min(99, sent * 100 // self._total)
        if percent != self._shown and self._pipe >= 0:
            self._shown = percent
            self._write(b"%d\n" % percent)

    def finish(self) -> None:
        if self._pipe >= 0:
            self._write(b"100\n")
        if self._pipe >= 0:
            os.close(self._pipe)
        os.waitpid(self._pid, 0)

    def _write(self, line: bytes) -> None:
        try:
            os.write(self._pipe, line)
        except BrokenPipeError:
            # Closed by the person.
            os.close(self._pipe)
            self._pipe = -1


def tell(message: str) -> None:
    """Say that something failed. The text is plain: names in it are no markup."""
    sys.stderr.write(f"{message}\n")
    try:
        pid = os.posix_spawnp(DIALOG, [DIALOG, "--error", "--no-markup", f"--text={message}"], os.environ)
    except OSError:
        # Said on stderr; more this qube cannot do.
        return
    os.waitpid(pid, 0)


def send(paths: Sequence[bytes], *, is_move: bool) -> int:
    """Copy or move, to the qube that is chosen when asked."""
    progress: WindowProgress | None = None
    try:
        found = tree.survey(paths, ignore_symlinks=False)
        try:
            progress = WindowProgress("Moving to another qube" if is_move else "Copying to another qube", found.total)
        except OSError as error:
            sys.stderr.write(f"no window: {DIALOG}: {error.strerror}\n")
        report = command.show_nothing if progress is None else progress.report
        outgoing = command.transfer(command.ANY_TARGET, found, report, ignore_symlinks=False, remembers=is_move)
    except SendFailed as error:
        failure = str(error)
    else:
        kept = removal.remove(found.roots, outgoing.sent) if is_move else []
        failure = "\n".join([f"kept: {line}" for line in kept])
    finally:
        if progress is not None:
            progress.finish()
    if failure:
        tell(failure)
    return 1 if failure else 0


def open_one(path: bytes, verb: str) -> int:
    """Open one file; the qube is chosen when asked, or a new disposable."""
    target = command.ANY_TARGET if verb == "open" else opening.DISPOSABLE
    try:
        code = opening.open_file(target, path, is_view_only=verb == "view-in-disposable")
    except (opening.Failed, OSError) as error:
        tell(str(error))
        return 1
    if code:
        tell(f"it could not be opened there (exit code {code})")
    return code


def convert_one(path: bytes) -> int:
    """Make a PDF of the pixels of a document."""
    options = pdf_client.parse_options(["--", os.fsdecode(path)])
    assert options is not None
    try:
        sys.stdout.write(f"{pdf_client.convert(options.files[0], options)}\n")
    except (pdf_client.ConversionFailed, OSError) as error:
        tell(f"{os.fsdecode(path)}: {error}")
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in VERBS:
        sys.stderr.write(USAGE)
        return 1
    verb = arguments[0]
    paths = [os.fsencode(path) for path in arguments[1:]]
    if verb in ("copy", "move"):
        return send(paths, is_move=verb == "move")
    if verb == "convert":
        return max([convert_one(path) for path in paths])
    return max([open_one(path, verb) for path in paths])
