"""``insula run``: a command in a qube, with the caller's streams and the command's exit code.

With ``--gui`` its windows are shown on the desktop of whoever runs this; the program is started once the qube's session
is there.

With ``--dispvm`` the qube is a disposable made for this command alone. It belongs to the connection of this process
(:mod:`insula.client.lease`): whatever ends the process ends the disposable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from insula.admin.client import DOM0, AdminClient
from insula.cli import completion, output, streams
from insula.cli.connection import with_daemon_and_board
from insula.cli.failures import READER_GONE, REFUSED, USAGE, CliError
from insula.cli.options import Json
from insula.cli.progress import Board
from insula.cli.qubes import find_qube
from insula.cli.text import seconds_text
from insula.client.command import command_line as exec_line
from insula.client.lease import lease
from insula.model.desktop import desktop_of
from insula.model.klass import Klass
from insula.model.state import PowerState
from insula.rpc import client as rpc
from insula_proto.errors import LocalProtocolError

CALL_PROBLEM = 125
"""The call itself failed, as qrexec has it (qrexec §2); 1 would look like the command's own."""
NOT_FOUND = 127
TIMED_OUT = 124
"""As timeout(1)."""
MAX_COLLECTED = 64 * 1024 * 1024
"""Bytes of output that --json keeps."""
STDIN, STDOUT, STDERR = range(3)
DISPVM = "--dispvm"
GUI = "--gui"
IN_SESSION = "qubes.VMExecGUI"
"""As VMExec, once the user's session is up (agent-services §1)."""

_SERVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(\+[A-Za-z0-9_.+-]*)?")

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Options:
    user: str
    may_start: bool
    timeout: float | None
    stdin: bool
    raw: bool


class RunCommand(TyperCommand):
    """``--dispvm`` takes its value after ``=`` only: the word after it is the command, or another option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.with_value(args))

    def with_value(self, args: Sequence[str]) -> list[str]:
        """The arguments with ``--dispvm`` alone written as ``--dispvm=``; those of the command stay as they are."""
        takes_value = {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}
        changed = list(args)
        position = 0
        while position < len(changed) and changed[position].startswith("-") and changed[position] != "--":
            if changed[position] == DISPVM:
                changed[position] = f"{DISPVM}="
            elif changed[position] in takes_value:
                position += 1
            position += 1
        return changed


@app.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
def run(  # noqa: PLR0913, PLR0917 - one for each option
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUBE] [COMMAND…]",
            help="Name of the qube (none with --dispvm), then program and arguments, passed unchanged; nothing more"
            " with --service.",
            autocompletion=completion.qubes,
        ),
    ] = None,
    dispvm: Annotated[
        str | None,
        typer.Option(
            DISPVM,
            metavar="[=TEMPLATE]",
            help="In a new disposable, removed afterwards; of TEMPLATE, without: of default_dispvm, else of the default"
            " template.",
            autocompletion=completion.qubes,
        ),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option("--service", "-s", metavar="NAME[+ARGUMENT]", help="Call a service of the qube, as dom0."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Without: the qube's default_user.")] = None,
    gui: Annotated[
        bool,
        typer.Option(GUI, help="A program with windows, shown on your desktop; it gets no input. May follow QUBE."),
    ] = False,
    root: Annotated[bool, typer.Option("--root", help="As root.")] = False,
    shell: Annotated[bool, typer.Option("--shell", "-c", help="COMMAND is a line for the shell in the qube.")] = False,
    no_start: Annotated[bool, typer.Option("--no-start", help="Fail if the qube is off.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Give it no input.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Let its output steer the terminal. Only for qubes you trust.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="End it after this time; exit code 124.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a command in a qube. Its streams and its exit code are yours; the qube is started if it is off.

    Options come before QUBE: what follows it belongs to the command.
    """
    if root and user is not None:
        raise CliError("--root and --user exclude each other", exit_code=USAGE)
    if dispvm is not None and no_start:
        raise CliError("--no-start and --dispvm exclude each other", exit_code=USAGE)
    words = words or []
    if dispvm is None and not words:
        raise CliError("Missing argument QUBE", hint="insula run --help", exit_code=USAGE)
    qube, words = ("", words) if dispvm is not None else (words[0], words[1:])
    if words and words[0] == GUI:
        gui, words = True, words[1:]
    words = words[1:] if words and words[0] == "--" else words
    if service is not None:
        line = service_line(service, words, shell=shell)
    elif gui:
        line = command_line(["sh", "-c", " ".join(words)] if shell and words else words, IN_SESSION)
    else:
        line = shell_line(words) if shell else command_line(words)
    options = Options(
        user="root" if root else user or "DEFAULT",
        may_start=not no_start,
        timeout=timeout,
        stdin=not no_stdin and not gui,
        raw=raw,
    )

    async def call_in(client: AdminClient, qube: str, socket_path: Path) -> int:
        if gui:
            await client.show_windows(qube, desktop_of(os.environ))
        if as_json:
            return await call_for_json(socket_path, qube, line, options)
        return await call(socket_path, line, options)

    async def work(client: AdminClient, board: Board) -> int:
        if dispvm is not None:
            return await in_disposable(client, board, dispvm or DOM0, call_in)
        return await call_in(client, qube, await ready_session(client, board, qube, may_start=options.may_start))

    try:
        code = with_daemon_and_board(work)
    except CliError as error:
        # A code of our own would be taken for the command's.
        own_code = CALL_PROBLEM if error.exit_code == REFUSED else error.exit_code
        raise CliError(str(error), hint=error.hint, exit_code=own_code) from error
    if code == NOT_FOUND and len(words) == 1 and not shell and " " in words[0]:
        output.say(f"hint: {words[0]!a} is one program name; for a shell line use --shell")
    raise typer.Exit(code)


async def in_disposable(
    client: AdminClient, board: Board, template: str, call_in: Callable[[AdminClient, str, Path], Awaitable[int]]
) -> int:
    """Make a disposable, run the command in it, remove it whatever happens. :raise CliError, InsulaError:"""
    async with AsyncExitStack() as ends:
        with board.step("disposable", "starting"):
            held = await ends.enter_async_context(lease(client, template))
        return await call_in(client, held.name, held.rpc_socket)


def command_line(words: Sequence[str], service: str = "qubes.VMExec") -> str:
    """What the agent is asked for: a VMExec call that keeps every argument as it is. :raise CliError: usage."""
    if not words:
        raise CliError("there is no command to run", hint="insula run --help", exit_code=USAGE)
    try:
        return exec_line(words, service)
    except ValueError as error:
        raise CliError(f"this command cannot be passed on: {error}", exit_code=USAGE) from error


def shell_line(words: Sequence[str]) -> str:
    """What the agent is asked for: a line for the shell. :raise CliError: usage."""
    if not words:
        raise CliError("there is no command to run", hint="insula run --help", exit_code=USAGE)
    try:
        return os.fsencode(" ".join(words)).decode()
    except UnicodeDecodeError as error:
        raise CliError(f"this command cannot be passed on: {error}", exit_code=USAGE) from error


def service_line(service: str, words: Sequence[str], *, shell: bool) -> str:
    """What the agent is asked for: a service, by the host itself. :raise CliError: usage."""
    if words or shell:
        raise CliError("--service is all there is to run: no command, no --shell", exit_code=USAGE)
    if not _SERVICE.fullmatch(service):
        raise CliError(f"{service!a} is no service: NAME or NAME+ARGUMENT, of A-Z a-z 0-9 _ . + -", exit_code=USAGE)
    return f"QUBESRPC {service if '+' in service else service + '+'} {DOM0}"


async def ready_session(client: AdminClient, board: Board, qube: str, *, may_start: bool) -> Path:
    """Where commands are run; starts the qube if it is off. :raise CliError, InsulaError:"""
    row = await find_qube(client, qube)
    if row.klass == Klass.ADMINVM:
        raise CliError(f"{qube} is this machine; run the command yourself")
    if row.state is PowerState.PAUSED:
        raise CliError(f"{qube} is paused", hint=f"insula unpause {qube}")
    if row.state is not PowerState.RUNNING:
        if not may_start:
            raise CliError(f"{qube} is not running", hint=f"insula start {qube}")
        with board.step(qube, "starting", "started"):
            await client.start(qube)
    return await client.rpc_socket(qube)


async def call(socket_path: Path, line: str, options: Options) -> int:
    """Run it with this process's streams. :raise CliError:"""
    async with AsyncExitStack() as ends:
        outputs = [
            await ends.enter_async_context(streams.delivered(streams.writer_to(fd, streams.safe_for_terminal)))
            if os.isatty(fd) and not options.raw
            else fd
            for fd in (STDOUT, STDERR)
        ]
        code = await streams.while_read(outputs[:1], join(socket_path, line, options, outputs[0], outputs[1]))
    return READER_GONE if code is None else code


async def call_for_json(socket_path: Path, qube: str, line: str, options: Options) -> int:
    """Run it, keep its output and print both as one document. :raise CliError:"""
    out, err = streams.Collector(MAX_COLLECTED), streams.Collector(MAX_COLLECTED)
    try:
        async with streams.delivered(out) as out_fd, streams.delivered(err) as err_fd:
            code = await streams.while_read((out_fd, err_fd), join(socket_path, line, options, out_fd, err_fd))
    except streams.TooMuchOutput as error:
        raise CliError(str(error), hint="without --json it is not kept") from error
    output.print_json(
        {
            "qube": qube,
            "exit_code": code,
            "stdout": out.data.decode("utf-8", "backslashreplace"),
            "stderr": err.data.decode("utf-8", "backslashreplace"),
        }
    )
    assert code is not None, "an output that is read no more ends in TooMuchOutput"
    return code


async def join(socket_path: Path, line: str, options: Options, stdout: int, stderr: int) -> int:
    """:raise CliError: the call failed or took too long."""
    try:
        return await rpc.run(
            socket_path,
            line,
            user=options.user,
            stdin=STDIN if options.stdin and is_open(STDIN) else None,
            stdout=stdout,
            stderr=stderr,
            timeout=options.timeout,
        )
    except rpc.QubeBusy as error:
        raise CliError(str(error), hint="it runs as many commands as it may; try again") from error
    except rpc.RpcError as error:
        raise CliError(str(error), hint="insula ls shows its state, insula console what it wrote") from error
    except ValueError as error:
        raise CliError(str(error), exit_code=USAGE) from error
    except LocalProtocolError as error:
        raise CliError(f"this command cannot be passed on: {error}", exit_code=USAGE) from error
    except TimeoutError:
        took = f"it took longer than {seconds_text(options.timeout)}" if options.timeout else "no answer in time"
        raise CliError(f"{took} and was ended", exit_code=TIMED_OUT) from None


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
