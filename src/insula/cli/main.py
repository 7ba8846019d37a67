"""Entry point of the ``insula`` command: finds the command, loads only that, turns errors into lines and exit codes.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon, 130 interrupted; ``run`` returns the code of
the program in the qube. ``INSULA_DEBUG=1`` or ``--debug`` shows tracebacks and logs.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from insula import __version__
from insula.cli.catalogue import COMMANDS
from insula.cli.failures import INTERRUPTED, READER_GONE, REFUSED, Failure, describe, did_you_mean
from insula.cli.output import print_failure
from insula.daemon.paths import Paths

PROGRAM = "insula"
DEBUG_VARIABLE = "INSULA_DEBUG"
_UNKNOWN_COMMAND = re.compile(r"No such command '([^']*)'")


@dataclass
class Settings:
    """Global options; ``ctx.obj`` of every command."""

    debug: bool = False


class LazyGroup(TyperGroup):
    """The commands of :mod:`insula.cli.catalogue`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(cmd_name)
        command = self.commands[cmd_name]
        assert isinstance(command, TyperCommand | TyperGroup)
        return command


def load(name: str) -> TyperCommand | TyperGroup:
    """Import a command and prepare it."""
    module = importlib.import_module(f"insula.cli.commands.{name}")
    command = typer.main.get_command(module.app)
    assert isinstance(command, TyperCommand | TyperGroup)
    command.name = name
    command.rich_help_panel = COMMANDS[name]
    return command


app = typer.Typer(
    cls=LazyGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and logs.")] = False,
) -> None:
    """Security by isolation: every application in a virtual machine of its own."""
    if debug:
        assert isinstance(ctx.obj, Settings)
        ctx.obj.debug = True
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    code = _run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left goes nowhere, so that the interpreter does not complain about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return code


def _run(words: Sequence[str]) -> int:
    settings = Settings(debug=os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its number instead of a traceback.
            stream.reconfigure(errors="backslashreplace")
    command = typer.main.get_command(app)
    try:
        result = command.main(args=list(words), prog_name=PROGRAM, standalone_mode=False, obj=settings)
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:
        print_failure("stopped: nobody answered")
        return INTERRUPTED
    except typer.TyperException as error:
        print_failure(error.format_message().rstrip("."), _usage_hint(error))
        return error.exit_code
    except Exception as error:
        if settings.debug:
            raise
        failure = describe(error, paths=Paths.from_environment()) or _unforeseen(error)
        print_failure(failure.message, failure.hint)
        return failure.exit_code
    return result if isinstance(result, int) else 0


def _usage_hint(error: typer.TyperException) -> str:
    unknown = _UNKNOWN_COMMAND.match(error.format_message())
    guess = did_you_mean(unknown[1], list(COMMANDS)) if unknown else ""
    context = getattr(error, "ctx", None)
    return guess or (f"{context.command_path} --help" if context is not None else "")


def _unforeseen(error: Exception) -> Failure:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(
        f"a fault in insula: {text}", f"run it again with {PROGRAM} --debug and report what it prints", REFUSED
    )


if __name__ == "__main__":
    sys.exit(main())
