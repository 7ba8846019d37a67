"""``insula update``: templates updated by their own package managers, kept as a whole or not at all."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from insula.admin.client import AccessRefused, AdminClient, DaemonUnavailable, EventRecord, MalformedAnswer
from insula.cli import completion
from insula.cli.batch import Words, run_on
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, CliError
from insula.cli.options import Json
from insula.cli.step import Step
from insula.cli.text import seconds_text, visible
from insula.daemon.paths import Paths
from insula.model.errors import QubesVMShutdownTimeoutError
from insula.model.klass import Klass
from insula.rpc.client import RpcError, run
from insula_proto.qrexec import EXIT_CHANNEL_LOST

AT_ONCE = 2
"""Templates updated at the same time: each is a machine that unpacks and configures."""
COMMAND = "QUBESRPC insula.Update dom0"
NOTHING_TO_DO = 100
"""agent-services §7."""
NO_SPACE = 28
"""Of insula.Update, ours: package managers say of that what they like."""
PROBLEMS = {
    21: "its package lists could not be fetched, or their signatures are wrong",
    22: "packages could not be fetched or installed",
    25: "its package manager is not known",
    NO_SPACE: "no space is left on its disk",
    127: "its agent knows no insula.Update: build the template again",
}
MAX_LOG = 16 << 20
"""Bytes of output that are kept; the template decides how much it prints."""
PIECE = 65536
SHOWN = 60
"""Characters of the package manager's words beside the progress."""
COMPLAINTS = ("E: ", "Error: ", "error: ")
"""How apt, dnf and pacman begin what went wrong."""
SIGNATURE_COMPLAINT = "GPG error"
"""Of a repository that nobody known has signed apt only warns; the error it tells then is that something failed."""
MAX_COMPLAINT = 300
"""Characters of the complaint that is shown with a failure."""
LIMIT_S = 2 * 3600.0
END_S = 5.0
"""For the daemon to tell that a machine has ended whose call was lost."""
SHUTDOWNS = 5
"""How often a template is asked to shut down, each time for as long as its property ``shutdown_timeout`` says."""

app = typer.Typer(add_completion=False)


@app.command()
def update(
    templates: Annotated[
        list[str] | None, typer.Argument(metavar="[TEMPLATE]...", autocompletion=completion.qubes, show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All templates.")] = False,
    as_json: Json = False,
) -> None:
    """Update templates through their net qube's proxy. What fails leaves the template as it was; a log is kept."""
    names = templates or []
    if every:
        names = with_daemon(_all_templates)
    if not names:
        raise CliError("no template was named", hint="name some, or use --all", exit_code=REFUSED)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(client: AdminClient, name: str, step: Step) -> None:
        async with slots:
            await update_one(client, name, step)

    run_on(names, Words("updating", "updated"), one, as_json=as_json)


async def _all_templates(client: AdminClient) -> list[str]:
    return [row.name for row in await client.list_qubes() if row.klass == Klass.TEMPLATEVM]


async def update_one(client: AdminClient, name: str, step: Step) -> None:
    """:raise CliError: the template is as before. :raise InsulaError: so it is."""
    log = Paths.from_environment().logs / f"update-{name}.log"
    step.update("starting")
    # As long as the stream is open, the update goes on; closed before its end, nothing of it is kept.
    async with aclosing(client.stream("insula.update.Open", name)) as stream:
        ready = await anext(stream, None)
        if ready is None or ready.name != "update-ready":
            raise MalformedAnswer("the daemon ended the connection before the template was up")
        words = Printed(step)
        ending = asyncio.ensure_future(anext(stream, None))
        running = asyncio.create_task(_run(Path(ready.kwargs["rpc_socket"]), log, words), name=f"update of {name}")
        try:
            await asyncio.wait((ending, running), return_when=asyncio.FIRST_COMPLETED)
            if running.done() and running.result() == EXIT_CHANNEL_LOST:
                # With the machine or with the daemon: the connection to that tells.
                await asyncio.wait((ending,), timeout=END_S)
            if ending.done():
                raise _ended(name, ending.result())
            code = running.result()
            if code not in (0, NOTHING_TO_DO):
                raise _failed(name, code, words.complaint, log)
            step.update("shutting down")
            try:
                await _shut_down(client, name)
            except (DaemonUnavailable, AccessRefused) as error:
                raise _ended(name, None) from error
            ended = await ending
            if ended is None or ended.kwargs.get("kept") != "True":
                raise _ended(name, ended)
        finally:
            for task in (running, ending):
                task.cancel()
            await asyncio.gather(running, ending, return_exceptions=True)
    if code == NOTHING_TO_DO:
        step.note = "has nothing to update"


async def _shut_down(client: AdminClient, name: str) -> None:
    """What was installed is lost with a template that does not end, so it gets more time than others.

    :raise QubesVMShutdownTimeoutError: it did not, however often it was asked.
    """
    for _ in range(SHUTDOWNS - 1):
        with suppress(QubesVMShutdownTimeoutError):
            await client.shutdown(name, wait=True)
            return
    await client.shutdown(name, wait=True)


def _failed(name: str, code: int, complaint: str, log: Path) -> CliError:
    """What is told of a package manager that failed."""
    why = PROBLEMS.get(code, f"insula.Update ended with {code}")
    hint = f"what was printed: {log}"
    if code == NO_SPACE:
        return CliError(f"{name} is as before: {why}", hint=f"insula volume resize {name} root SIZE; {hint}")
    return CliError(f"{name} is as before: {why}{': ' if complaint else ''}{complaint}", hint=hint)


def _ended(name: str, event: EventRecord | None) -> CliError:
    """What is told of a template that was not shut down when its update was done; None: the daemon has ended."""
    if event is None:
        return CliError(f"{name} is as before when insulad runs again: it ended while {name} was updated")
    why = event.kwargs.get("why") or "it did not shut down cleanly"
    return CliError(f"{name} is as before: {why}", hint=f"insula console {name}")


class Printed:
    """What the package manager says: its last line is shown while it works, its complaint if it failed."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.complaint = ""
        """The first about a signature, else the first; made harmless for a terminal; empty: it had none."""
        self._untrusted_rest = b""
        """A line that has begun."""

    def hear(self, untrusted_piece: bytes) -> None:
        *complete, rest = (self._untrusted_rest + untrusted_piece).split(b"\n")
        self._untrusted_rest = rest[:PIECE]
        for line in [line.decode("utf-8", "replace").strip() for line in complete]:
            # The first says what it was, the last that something was.
            is_first = line.startswith(COMPLAINTS) and not self.complaint
            if is_first or (SIGNATURE_COMPLAINT in line and SIGNATURE_COMPLAINT not in self.complaint):
                self.complaint = visible(line)[:MAX_COMPLAINT]
        shown = [line for line in (*complete, rest) if line.strip()]
        if shown:
            self._step.update(visible(shown[-1].decode("utf-8", "replace").strip())[:SHOWN])


async def _run(rpc_socket: Path, log: Path, words: Printed) -> int:
    """Run the package manager, its words going to the log; its exit code. :raise CliError: it could not be run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb", buffering=0) as source, _private(log) as target:
        keeping = asyncio.create_task(_keep(source, target, words), name="log of an update")
        try:
            return await run(rpc_socket, COMMAND, user="root", stdout=writer, stderr=writer, timeout=LIMIT_S)
        except RpcError as error:
            raise CliError(f"the package manager could not be run: {error}") from error
        except TimeoutError as error:
            raise CliError(f"the package manager was not done within {seconds_text(LIMIT_S)}") from error
        finally:
            os.close(writer)
            await keeping


def _private(log: Path) -> BinaryIO:
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb", buffering=0)


async def _keep(source: BinaryIO, target: BinaryIO, words: Printed) -> None:
    """Write what comes to the log, as much of it as a log may have, and hear it."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), source)
    left = MAX_LOG
    while untrusted_piece := await stream.read(PIECE):
        target.write(untrusted_piece[:left])
        left -= min(left, len(untrusted_piece))
        words.hear(untrusted_piece)
    transport.close()
