"""As :mod:`insula.testing.sandbox_probe`, a program that is prepared while it has a view of the host.

What it saw then, and what a thread started then can do afterwards, is in the report's environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from insula.preload.messages import Fork, View
from insula.testing import sandbox_probe

PROGRAM = "insula.testing.view_probe"
FILE_SIZE = 4096


class _Thread:
    """Started in the preparation, asked when everything is closed."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._done = threading.Event()
        self._outcome = ""
        threading.Thread(target=self._run, args=(), daemon=True).start()

    def _run(self) -> None:
        self._go.wait()
        self._outcome = sandbox_probe.outcome(lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        self._done.set()

    def ask(self) -> str:
        self._go.set()
        self._done.wait()
        return self._outcome


class _Prepared:
    thread: _Thread | None = None


def _tree() -> str:
    return " ".join(sorted(str(path) for path in Path("/").iterdir()))


def prepare(variables: Mapping[str, str]) -> None:
    """Look around."""
    folder = Path(variables["FOLDER"])
    os.environ.update(variables)
    os.environ["SEEN"] = (folder / "seen").read_text()
    os.environ["ROOT"] = _tree()
    os.environ["GIVEN"] = f"{Path('/given').read_text()} {Path('/given').stat().st_mode & 0o777:o}"
    os.environ["WRITE"] = sandbox_probe.outcome(lambda: (folder / "made").write_text("x"))
    os.environ["WRITE_ROOT"] = sandbox_probe.outcome(lambda: Path("/made").mkdir())
    os.environ["CHANGE"] = sandbox_probe.outcome(lambda: (folder / "seen").chmod(0o777))
    os.environ["BESIDE"] = str((folder.parent / "beside").exists())
    os.environ["MOUNT"] = sandbox_probe.outcome(sandbox_probe.ATTEMPTS["kernel"]["mount"])
    _Prepared.thread = _Thread()


def main(descriptors: Sequence[int]) -> int:
    """Program of the preloaded parent."""
    assert _Prepared.thread is not None
    os.environ["THREAD"] = _Prepared.thread.ask()
    return sandbox_probe.main(descriptors)


def request(uid: int | None, folder: Path) -> Fork:
    """What to ask the parent for: a probe that sees a folder."""
    seen = View((str(folder),), (("/given", b"given"),), (("FOLDER", str(folder)),), FILE_SIZE)
    return Fork(0, PROGRAM, uid, sandbox_probe.FILES, 2**30, view=seen)
