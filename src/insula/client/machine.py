"""A qube in the hands of a program: commands, files, power."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from insula.admin.client import AdminClient
from insula.client import copying
from insula.client.command import command_line
from insula.client.errors import CallFailed, CommandFailed, CommandTimedOut, CopyFailed, OutputTooLong, QubeEnded
from insula.client.lease import UNKNOWN, Lease
from insula.client.result import Result
from insula.client.tar_stream import Limits
from insula.model.errors import QubesVMNotFoundError, QubesVMNotRunningError
from insula.model.state import PowerState
from insula.rpc import client as rpc
from insula_proto.qrexec import EXIT_CHANNEL_LOST

MIB = 1024 * 1024
DEFAULT_OUTPUT_LIMIT = 64 * MIB
"""Bytes of stdout and stderr together that :meth:`Qube.run` keeps, if not told otherwise."""
DEFAULT_COPY_LIMIT = 1024 * MIB
"""Bytes that :meth:`Qube.copy_out` takes, if not told otherwise."""
DEFAULT_COPY_ENTRIES = 100_000
"""Files and folders that :meth:`Qube.copy_out` takes, if not told otherwise."""
END_NEWS_S = 5.0
"""How long the daemon's word that a disposable has ended, and why, is waited for when it does not answer."""
PROBE_TIMEOUT_S = 10.0
"""For a command whose only use is that the qube answers."""

Word = str | bytes | os.PathLike[str]


class Qube:
    """A qube by name; get one from :func:`insula.qube` or :func:`insula.disposable`. May be used by many tasks.

    Methods raise the errors of :mod:`insula.client.errors`, and :class:`insula.model.errors.InsulaError` for what the
    daemon refuses.
    """

    def __init__(self, name: str, connect: Callable[[], Awaitable[AdminClient]], lease: Lease | None = None) -> None:
        """``connect`` gives the daemon's client, starting the daemon if need be."""
        self.name = name
        self._connect = connect
        self._lease = lease

    def __repr__(self) -> str:
        return f"<Qube {self.name}>"

    # power

    async def start(self) -> None:
        """Start it and wait until commands can be run; nothing happens if it runs."""
        await (await self._connect()).start(self.name)

    async def stop(self, *, force: bool = False) -> None:
        """Have it shut down and wait for that; its property ``shutdown_timeout`` says how long.

        ``force``: though it is paused, or others use its network.
        """
        await (await self._connect()).shutdown(self.name, force=force, wait=True)

    async def kill(self) -> None:
        """End it at once, as if its power was cut."""
        await (await self._connect()).kill(self.name)

    async def is_running(self) -> bool:
        """False as well if there is no such qube (any more)."""
        try:
            state = await (await self._connect()).current_state(self.name)
        except QubesVMNotFoundError:
            return False
        return state.power_state is PowerState.RUNNING

    # commands

    async def run(
        self,
        command: Sequence[Word],
        *,
        input: bytes = b"",
        user: str | None = None,
        timeout: float | None = None,
        output_limit: int = DEFAULT_OUTPUT_LIMIT,
        check: bool = False,
    ) -> Result:
        """Run a program with these arguments (no shell between) and return its exit code and output.

        ``input``: what it reads. ``user``: whose rights it has; None is the property ``default_user``, "root" may do
        anything in the qube. ``timeout``: seconds, from now to the end of its output; what takes longer is ended.
        ``output_limit``: bytes of stdout and stderr together that are kept. Cancelling ends the program: it gets
        SIGHUP, and SIGKILL 2 seconds later; what it started and put into the background lives on until the qube ends.

        :raise CommandTimedOut, OutputTooLong: it was ended.
        :raise CommandFailed: ``check`` was asked for and the exit code is not 0.
        :raise CallFailed: it was not begun (the qube runs 256 commands already, its agent does not answer).
        :raise QubeEnded: the qube has ended meanwhile, by itself or by a limit.
        :raise QubesVMNotRunningError: the qube is off. :raise ValueError: no command, or too long; see ``input``.
        """
        line = command_line(command)
        socket_path = await self._rpc_socket()
        try:
            code, stdout, stderr = await rpc.run_collect(
                socket_path, line, user=user or "DEFAULT", stdin=input, timeout=timeout, limit=output_limit
            )
        except rpc.OutputTooLong as error:
            raise OutputTooLong(f"more than {output_limit} bytes of output; the command was ended") from error
        except TimeoutError as error:
            raise CommandTimedOut(_timed_out(timeout)) from error
        except rpc.QubeBusy as error:
            raise CallFailed(str(error)) from error
        except rpc.RpcError as error:
            await self._raise_if_ended(error)
            raise CallFailed(str(error)) from error
        if code == EXIT_CHANNEL_LOST:
            await self._require_answers()
        result = Result(code, stdout, stderr)
        if check and code:
            raise CommandFailed(result)
        return result

    async def _rpc_socket(self) -> Path:
        if self._lease is not None:
            return self._lease.rpc_socket
        return await (await self._connect()).rpc_socket(self.name)

    async def _require_answers(self) -> None:
        """For exit code 255, which is the command's own or says that the channel was lost. :raise QubeEnded:"""
        with contextlib.suppress(rpc.RpcError, TimeoutError, QubesVMNotFoundError, QubesVMNotRunningError):
            socket_path = await self._rpc_socket()
            if await rpc.run(socket_path, command_line(["true"]), timeout=PROBE_TIMEOUT_S) != EXIT_CHANNEL_LOST:
                return
        await self._raise_if_ended(None)

    async def _raise_if_ended(self, cause: Exception | None) -> None:
        """:raise QubeEnded: the qube does not run any more."""
        if self._lease is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_NEWS_S):
                    raise QubeEnded(self.name, await self._lease.wait_ended()) from cause
        elif not await self.is_running():
            raise QubeEnded(self.name, UNKNOWN) from cause

    # files

    async def copy_in(self, source: Path | str | bytes, target: str, *, timeout: float | None = None) -> None:
        """Copy a file or a folder of this machine, or bytes, into the qube, as its default user.

        ``source``: a path, or the content itself as bytes. ``target``: path in the qube of what is made (not of the
        folder around it); relative to the home folder. A file that is there is replaced, in one step; a folder that is
        there gets what ``source`` has in addition. Of modes, "executable" is kept for files. Symbolic links in a folder
        are copied as links.

        :raise CopyFailed: the qube could not write it. Of a folder a part may be there, of a file never.
        :raise OSError: ``source`` cannot be read. :raise CommandTimedOut: it took more than ``timeout`` seconds.
        """
        what = source if isinstance(source, bytes) else Path(source)
        async with _limit(timeout):
            await copying.copy_in(self._run_joined, what, target)

    async def copy_out(
        self,
        source: str,
        target: Path | str,
        *,
        limit: int = DEFAULT_COPY_LIMIT,
        max_entries: int = DEFAULT_COPY_ENTRIES,
        timeout: float | None = None,
    ) -> None:
        """Copy a file or a folder of the qube to this machine.

        ``source``: path in the qube. ``target``: path here, which must not exist; it appears whole or not at all. What
        the qube sends is taken for hostile: only plain files, folders and symbolic links that stay inside are made;
        nothing is followed or replaced, nothing lands outside of ``target``. ``limit``: bytes of all files together.

        :raise UnsafeStream, CopyTooLarge, CopyFailed, FileExistsError, OSError: nothing is left.
        :raise CommandTimedOut: it took more than ``timeout`` seconds; nothing is left.
        """
        async with _limit(timeout):
            await copying.copy_out(self._run_joined, source, Path(target), Limits(limit, max_entries))

    async def _run_joined(self, command: list[str], stdin: int | None, stdout: int | None, stderr: int | None) -> int:
        """:raise CopyFailed, QubeEnded:"""
        line = command_line(command)
        try:
            code = await rpc.run(await self._rpc_socket(), line, stdin=stdin, stdout=stdout, stderr=stderr)
        except rpc.RpcError as error:
            await self._raise_if_ended(error)
            raise CopyFailed(str(error)) from error
        if code == EXIT_CHANNEL_LOST:
            await self._require_answers()
        return code


@contextlib.asynccontextmanager
async def _limit(seconds: float | None) -> AsyncIterator[None]:
    """``asyncio.timeout`` whose error is ours."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise CommandTimedOut(_timed_out(seconds)) from error


def _timed_out(timeout: float | None) -> str:
    return "the qube's agent did not answer in time" if timeout is None else f"it took more than {timeout:g} s"
