"""The ``insula`` command in this process, against an Admin API served from another thread.

For tests of the command line::

    with served_cli(tmp_path) as cli:
        assert cli.run("ls", "--json").json[0]["name"] == "dom0"

The command makes its own event loop as it does in real life; that is why the server has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from insula.cli.main import main
from insula.daemon.paths import Paths
from insula.testing.admin_daemon import AdminDaemon, admin_daemon

T = TypeVar("T")

THREAD_TIMEOUT_S = 120.0
NOT_SHOWN_S = 3600.0
"""What a test does is quick, and shows no progress, however long a busy machine takes for it."""

PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from insula.cli.main import main
sys.exit(main())
"""
"""For ``python -c``: the command as a process. A test run started in the background of a shell ignores SIGINT, and so
would every process it starts."""


class _TerminalText(io.TextIOWrapper):
    """Standard output or input that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output. :raise ValueError: there is not exactly one."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Cli:
    """Runs commands with the folders of one installation."""

    def __init__(self, paths: Paths, daemon: AdminDaemon, loop: asyncio.AbstractEventLoop) -> None:
        self.paths = paths
        self.daemon = daemon
        self._loop = loop

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        terminal: bool = False,
        show_after_s: float = NOT_SHOWN_S,
        **environment: str,
    ) -> Ran:
        """Run one command. ``terminal``: all three streams claim to be one. ``show_after_s``: its progress."""
        return run_cli(self.paths, *arguments, stdin=stdin, terminal=terminal, show_after_s=show_after_s, **environment)

    def in_daemon(self, function: Callable[[], T]) -> T:
        """Call a function in the thread of the server, where its objects live."""

        async def call() -> T:
            return function()

        return self.await_in_daemon(call())

    def await_in_daemon(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop of the server and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(THREAD_TIMEOUT_S)


def run_cli(
    paths: Paths,
    *arguments: str,
    stdin: bytes = b"",
    terminal: bool = False,
    show_after_s: float = NOT_SHOWN_S,
    **environment: str,
) -> Ran:
    """Run one command with these folders, whether or not something serves them."""
    kind = _TerminalText if terminal else io.TextIOWrapper
    out, err = io.BytesIO(), io.BytesIO()
    variables = {
        "INSULA_DATA_DIR": str(paths.data),
        "INSULA_RUNTIME_DIR": str(paths.runtime),
        "TERM": "xterm-256color",
        "COLUMNS": "200",
        **environment,
    }
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch("insula.cli.progress.SHOW_AFTER_S", show_after_s),
        mock.patch("insula.cli.spinner_lines.SHOW_AFTER_S", show_after_s),
        mock.patch("sys.stdin", kind(io.BytesIO(stdin), encoding="utf-8")),
        mock.patch("sys.stdout", kind(out, encoding="utf-8", write_through=True)),
        mock.patch("sys.stderr", kind(err, encoding="utf-8", write_through=True)),
    ):
        try:
            code = main(arguments)
        except SystemExit as exit_:  # as the completion options leave
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        return Ran(code, out.getvalue().decode(), err.getvalue().decode())


@contextlib.contextmanager
def served_cli(folder: Path) -> Iterator[Cli]:
    """Serve the system of :func:`insula.testing.admin_daemon.admin_daemon` in ``folder`` while the block runs."""
    paths = Paths(folder / "data", folder / "run")
    paths.make()
    started: list[tuple[AdminDaemon, asyncio.AbstractEventLoop, asyncio.Event]] = []
    is_ready = threading.Event()

    async def serve() -> None:
        async with admin_daemon(folder) as daemon:
            stop = asyncio.Event()
            paths.admin_socket.symlink_to(daemon.socket)
            paths.internal_socket.symlink_to(daemon.internal_socket)
            started.append((daemon, asyncio.get_running_loop(), stop))
            is_ready.set()
            await stop.wait()
            paths.admin_socket.unlink(missing_ok=True)
            paths.internal_socket.unlink(missing_ok=True)
        # A connection that was just being accepted is served to its end, so that nothing is left open.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            is_ready.set()

    thread = threading.Thread(target=run, name="admin-daemon")
    thread.start()
    is_ready.wait(THREAD_TIMEOUT_S)
    assert started, "the server did not start"
    [(daemon, loop, stop)] = started
    try:
        yield Cli(paths, daemon, loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(THREAD_TIMEOUT_S)
