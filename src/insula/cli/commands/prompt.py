"""``insula prompt``: the program that asks the user whether a call between qubes may go on. Also ``insula-prompt``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from insula.cli import output
from insula.cli.failures import CliError
from insula.daemon.paths import Paths
from insula.manager import display
from insula.manager.agent_server import AlreadyServed
from insula.manager.host_mark import HostMark, load_mark

app = typer.Typer(add_completion=False)


@app.command()
def prompt(
    is_terminal: Annotated[
        bool, typer.Option("--terminal", help="Ask on this terminal instead of in windows.")
    ] = False,
) -> None:
    """Ask the user where a rule says ask, until interrupted. Without it such calls are denied."""
    paths = Paths.from_environment()
    paths.make()
    mark = _mark(paths)
    try:
        _serve_windows(paths, mark)
    except AlreadyServed:
        output.say("insula: another program asks already")


def _serve_windows(paths: Paths, mark: HostMark) -> None:
    try:
        display.check()
    except display.NoDisplay as error:
        raise CliError(str(error), hint="insula prompt --terminal asks on a terminal") from None
    from insula.manager.qt_prompt import serve  # noqa: PLC0415 - Qt is large, and may be missing

    serve(paths, mark)


def _mark(paths: Paths) -> HostMark:
    try:
        return load_mark(paths.host_mark)
    except ValueError as error:
        raise CliError(str(error)) from error


def main() -> int:
    """``insula-prompt``."""
    from insula.cli.main import main as run  # noqa: PLC0415 - which loads this module

    return run(["prompt", *sys.argv[1:]])
