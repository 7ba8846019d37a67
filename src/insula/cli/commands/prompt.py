"""``insula prompt``: the program that asks the user whether a call between qubes may go on. Also ``insula-prompt``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from insula.cli import output
from insula.cli.connection import run_async
from insula.cli.failures import USAGE, CliError
from insula.daemon.paths import Paths
from insula.manager import autostart, display, terminal
from insula.manager.agent_server import AlreadyServed
from insula.manager.host_mark import HostMark, load_mark

app = typer.Typer(add_completion=False)


@app.command()
def prompt(
    is_terminal: Annotated[
        bool, typer.Option("--terminal", help="Ask on this terminal instead of in windows.")
    ] = False,
    is_install: Annotated[
        bool, typer.Option("--install", help="Have it start with the desktop, from the next login on.")
    ] = False,
    is_uninstall: Annotated[bool, typer.Option("--uninstall", help="No longer start it with the desktop.")] = False,
) -> None:
    """Ask the user where a rule says ask, until interrupted. On a desktop insulad starts it by itself when needed."""
    if is_terminal + is_install + is_uninstall > 1:
        raise CliError("--terminal, --install and --uninstall exclude each other", exit_code=USAGE)
    if is_install or is_uninstall:
        for path in autostart.install() if is_install else autostart.remove():
            output.print_line(f"{'written' if is_install else 'removed'}: {path}")
        return
    paths = Paths.from_environment()
    paths.make()
    mark = _mark(paths)
    try:
        if is_terminal:
            _serve_terminal(paths, mark)
        else:
            _serve_windows(paths, mark)
    except AlreadyServed:
        # No failure: a desktop may well start it twice.
        output.say("insula: another program asks already")


def _serve_windows(paths: Paths, mark: HostMark) -> None:
    try:
        display.check()
    except display.NoDisplay as error:
        raise CliError(str(error), hint="insula prompt --terminal asks on a terminal") from None
    from insula.manager.qt_prompt import serve  # noqa: PLC0415 - Qt is large, and may be missing

    serve(paths, mark)


def _serve_terminal(paths: Paths, mark: HostMark) -> None:
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stdout)):
        raise CliError("this is no terminal: keys cannot be read one by one")
    run_async(terminal.serve(paths, mark, sys.stdin.fileno(), sys.stdout))


def _mark(paths: Paths) -> HostMark:
    try:
        return load_mark(paths.host_mark)
    except ValueError as error:
        raise CliError(str(error)) from error


def main() -> int:
    """``insula-prompt``."""
    from insula.cli.main import main as run  # noqa: PLC0415 - which loads this module

    return run(["prompt", *sys.argv[1:]])
