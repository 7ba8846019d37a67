"""A real ``insulad`` in folders of its own, for tests and benchmarks.

The process is the product's; only its folders are ours. Leaving the context stops every qube it started and checks
that no process is left.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from insula.admin.client import AdminClient, DaemonUnavailable
from insula.daemon.autostart import is_running
from insula.daemon.paths import Paths

READY_TIMEOUT_S = 120.0
DOWN_TIMEOUT_S = 120.0


class Leftover(AssertionError):
    """Processes of a daemon's qubes outlived it."""


class DaemonProcess:
    """``async with DaemonProcess() as daemon``: a daemon that serves ``daemon.client``."""

    def __init__(self, folder: Path | None = None, **more: str) -> None:
        """``folder``: for its data; by default one that is removed at the end. Socket paths are short either way.

        ``more``: of its environment.
        """
        self.more = more
        self._own = Path(tempfile.mkdtemp(prefix="insula-t-"))
        self.paths = Paths(folder or self._own / "data", self._own / "run")
        self.client = AdminClient(self.paths.admin_socket)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For commands that should talk to this daemon."""
        return {
            **os.environ,
            # Questions of a test are not shown to whoever runs it.
            "INSULA_PROMPT": "off",
            **self.more,
            "INSULA_DATA_DIR": str(self.paths.data),
            "INSULA_RUNTIME_DIR": str(self.paths.runtime),
        }

    @property
    def log_file(self) -> Path:
        return self.paths.logs / "insulad.log"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            shutil.rmtree(self._own, ignore_errors=True)
            raise
        return self

    async def start(self) -> None:
        """Start the process and wait until it answers. :raise AssertionError: it did not, with its log."""
        self.paths.make()
        self.process = self._spawn()
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not is_running(self.paths):
                if self.process.poll() is not None:
                    raise AssertionError(f"insulad ended with {self.process.returncode}:\n{self.log()}")
                await asyncio.sleep(0.02)

    def command(self) -> list[str]:
        """What is run; the process that it becomes is the daemon."""
        return [sys.executable, "-m", "insula.daemon.insulad", "--verbose"]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def kill(self) -> None:
        """``kill -9`` of the daemon alone; its machines stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.process is not None and self.process.poll() is not None:
                # A test killed it: a new one adopts what runs and ends it.
                await self.start()
            await self._down()
            left = processes_under(self.paths.runtime)
            if left and error is None:
                raise Leftover(f"still there: {left}\n{self.log()}")
        finally:
            if error is not None:
                print(f"--- log of insulad ---\n{self.log()}", file=sys.stderr)
                for console in sorted(self.paths.logs.glob("*.console.log")):
                    print(f"--- {console.name} ---\n{console.read_bytes()[-4000:]!r}", file=sys.stderr)
            shutil.rmtree(self._own, ignore_errors=True)

    async def _down(self) -> None:
        assert self.process is not None
        try:
            async with asyncio.timeout(DOWN_TIMEOUT_S):
                await self.client.call("insula.Shutdown")
        except (DaemonUnavailable, TimeoutError):
            self.process.kill()
            raise
        await asyncio.to_thread(self.process.wait, 10)


def processes_under(folder: Path) -> list[str]:
    """Command lines of processes that have a file of the folder open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and any(link.startswith(str(folder)) for link in open_files(entry).values()):
            with suppress(FileNotFoundError, ProcessLookupError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"{entry.name}: {command[:200]!r}")
    return found


def open_files(process: Path) -> dict[int, str]:
    """Descriptors of a process (its folder in ``/proc``) and what they lead to; those it closes meanwhile are left out.

    Empty if it is gone or may not be looked at.
    """
    links: dict[int, str] = {}
    with suppress(OSError):
        for path in (process / "fd").iterdir():
            with suppress(FileNotFoundError):
                links[int(path.name)] = str(path.readlink())
    return links
