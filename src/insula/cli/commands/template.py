"""``insula template``: build, list and remove the systems that qubes start from.

A build runs in this process, because it downloads packages and the daemon has no network code; the daemon then
takes in the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.batch import Words, run_on
from insula.cli.commands import seed
from insula.cli.commands.remove import ask_before_removing
from insula.cli.connection import with_daemon, with_daemon_and_board
from insula.cli.failures import DEFAULT_TEMPLATE, CliError, did_you_mean
from insula.cli.options import Json, Yes
from insula.cli.progress import Board
from insula.cli.qubes import find_qube
from insula.cli.step import Step
from insula.cli.table import Cell, Column
from insula.cli.text import visible
from insula.daemon.paths import Paths
from insula.model.errors import QubesFeatureNotFoundError, QubesVMNotFoundError
from insula.model.klass import Klass
from insula.model.names import parse_qube_name
from insula.model.state import PowerState
from insula.templates import build as builder
from insula.templates.build import BuildProgress, BuiltTemplate
from insula.templates.distribution import known_distributions
from insula.templates.errors import BuildFailed
from insula.templates.foreign import ForeignSystem, digest_of

CONTENT_KEY_FEATURE = "template-content-key"
"""Where the daemon notes which build a template's root is."""
NOTHING = "-"

app = typer.Typer(add_completion=False, help="Systems that qubes start from.")
app.add_typer(seed.app, name="seed")


def recipes(incomplete: str) -> list[str]:
    """Names for completion."""
    return [name for name in known_distributions() if name.startswith(incomplete)]


@dataclass(frozen=True)
class Line:
    name: str
    state: PowerState
    distribution: str
    release: str
    content_key: str
    users: int
    """Qubes based on it."""


@app.command("ls")
def ls(
    available: Annotated[bool, typer.Option("--available", help="What could be built instead.")] = False,
    as_json: Json = False,
) -> None:
    """List templates."""
    if available:
        names = list(known_distributions())
        if as_json:
            output.print_json(names)
        else:
            for name in names:
                output.print_line(name)
        return
    lines = with_daemon(describe)
    if as_json:
        output.print_json([as_object(line) for line in lines])
        return
    columns = [Column("TEMPLATE"), Column("STATE"), Column("SYSTEM"), Column("BUILD"), Column("QUBES", right=True)]
    output.print_table(
        columns,
        [
            [
                Cell(line.name, "bold"),
                output.state_cell(line.state.value),
                f"{line.distribution} {line.release}".strip() or NOTHING,
                line.content_key[:12] or NOTHING,
                str(line.users),
            ]
            for line in lines
        ],
    )


@app.command("build")
def build(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"Like {DEFAULT_TEMPLATE}.", autocompletion=recipes)
    ] = DEFAULT_TEMPLATE,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="From nothing, even if nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Build a template, or bring it up to date. Interrupted builds go on where they stopped."""
    if name not in known_distributions():
        known = list(known_distributions())
        hint = did_you_mean(name, known) or f"there are: {', '.join(known)}"
        raise CliError(f"there is no recipe for a template {name!a}", hint=hint)
    began = time.monotonic()
    built, is_changed = with_daemon_and_board(
        lambda client, board: build_and_install(client, board, name, rebuild=rebuild)
    )
    if as_json:
        output.print_json(
            {
                "name": name,
                "content_key": built.content_key,
                "changed": is_changed,
                "seconds": round(time.monotonic() - began, 3),
            }
        )
    elif not is_changed:
        output.say(f"{name} is up to date")


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Disk image (raw, qcow2, vmdk) or an archive with one (.ova, .libvirt.xz).",
            exists=True,
            dir_okay=False,
            readable=True,
            resolve_path=True,
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the template.")],
    disk: Annotated[str, typer.Option("--disk", help="Part of the disk's name, if an archive has several.")] = "",
    as_json: Json = False,
) -> None:
    """Make a template of a system that somebody else put on a disk. Check the file's signature before."""
    parse_qube_name(name)
    if name in known_distributions():
        raise CliError(f"{name} is the name of a template that is built", hint=f"insula template build {name}")
    built = with_daemon_and_board(lambda client, board: import_and_install(client, board, file, name, disk))
    if as_json:
        output.print_json({"name": name, "content_key": built.content_key, "distribution": built.distribution})


async def import_and_install(client: AdminClient, board: Board, file: Path, name: str, word: str) -> BuiltTemplate:
    """:raise CliError, QubesException: there is no new template, or the one before."""
    await require_halted(client, name)
    folder = build_folder(name)
    with board.step(name, "looking") as step:
        digest = await asyncio.to_thread(digest_of, file)
        # Nothing of an earlier file is of use.
        await builder.clean(folder / "work")
        system = ForeignSystem(name, file, word, digest)
        with _failures_shown(f"insula template import {file} {name}"):
            built = await builder.build_distribution(system, folder / "work", folder / "built", shown_by(step))
        await builder.clean(folder / "work")
    with board.step(name, "installing", "installed"):
        await client.install_template(name, as_image(built))
    return built


@app.command("remove")
def remove(
    names: Annotated[
        list[str], typer.Argument(metavar="TEMPLATE…", help="Names.", autocompletion=completion.templates)
    ],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove templates that no qube uses."""
    if not yes:
        ask_before_removing(names)
    run_on(names, Words("removing", "removed"), remove_one, as_json=as_json)


async def remove_one(client: AdminClient, name: str, step: Step) -> None:
    row = await find_qube(client, name)
    if row.klass != Klass.TEMPLATEVM:
        raise CliError(f"{name} is an {row.klass}, not a template", hint=f"insula remove {name}")
    await client.remove(name)
    shutil.rmtree(build_folder(name), ignore_errors=True)


async def build_and_install(
    client: AdminClient, board: Board, name: str, *, rebuild: bool
) -> tuple[BuiltTemplate, bool]:
    """Build, then let the daemon take it in; whether anything changed. :raise CliError, QubesException:"""
    await require_halted(client, name)
    folder = build_folder(name)
    if rebuild:
        await builder.clean(folder / "work")
        shutil.rmtree(folder / "built", ignore_errors=True)
    with board.step(name, "looking") as step:
        built = await run_build(step, name, folder)
        if not rebuild and built.content_key == await installed_key(client, name):
            return built, False
    with board.step(name, "installing", "installed"):
        await client.install_template(name, as_image(built))
    return built, True


async def run_build(step: Step, name: str, folder: Path) -> BuiltTemplate:
    with _failures_shown(f"insula template build {name} goes on where it stopped"):
        return await builder.build(name, folder / "work", folder / "built", shown_by(step))


def shown_by(step: Step) -> Callable[[BuildProgress], None]:
    """What tells a step how far a build is."""

    def show(event: BuildProgress) -> None:
        step.update(event.text, event.fraction)

    return show


@contextlib.contextmanager
def _failures_shown(hint: str) -> Iterator[None]:
    """A step that fails is shown with the last it printed. :raise CliError:"""
    try:
        yield
    except BuildFailed as error:
        for line in error.tail.splitlines():
            output.say(f"    {visible(line)}")
        raise CliError(str(error), hint=hint) from error


async def require_halted(client: AdminClient, name: str) -> None:
    """Refuse before minutes of work what would be refused after them. :raise CliError:"""
    try:
        row = await find_qube(client, name)
    except QubesVMNotFoundError:
        return
    if row.klass != Klass.TEMPLATEVM:
        raise CliError(f"there is a qube {name} already and it is an {row.klass}", hint=f"insula remove {name}")
    if row.state.is_on:
        raise CliError(f"template {name} is running", hint=f"insula stop {name}")


async def installed_key(client: AdminClient, name: str) -> str | None:
    """Which build the template's root is; None: not known, or there is no such template."""
    try:
        return await client.get_feature(name, CONTENT_KEY_FEATURE)
    except (QubesVMNotFoundError, QubesFeatureNotFoundError):
        return None


def as_image(built: BuiltTemplate) -> dict[str, str]:
    """What ``insula.template.Install`` wants to know."""
    return {
        "root_image": str(built.root_image),
        "kernel": str(built.kernel),
        "initrd": str(built.initrd),
        "kernel_version": built.kernel_version,
        "cmdline": built.cmdline,
        "content_key": built.content_key,
        "distribution": built.os.distribution,
        "release": built.os.version,
        "applications": str(built.applications or ""),
    }


def build_folder(name: str) -> Path:
    """``work`` and ``built`` of one template."""
    return Paths.from_environment().templates / name


async def describe(client: AdminClient) -> list[Line]:
    rows = await client.list_qubes()
    bases = []
    for row in rows:
        if row.klass == Klass.APPVM:
            bases.append((await client.get_property("template", row.name)).value)
    lines = []
    for row in rows:
        if row.klass == Klass.TEMPLATEVM:
            features = await client.get_features(row.name)
            lines.append(
                Line(
                    name=row.name,
                    state=row.state,
                    distribution=features.get("os-distribution", ""),
                    release=features.get("os-version", ""),
                    content_key=features.get(CONTENT_KEY_FEATURE, ""),
                    users=bases.count(row.name),
                )
            )
    return lines


def as_object(line: Line) -> dict[str, object]:
    return {
        "name": line.name,
        "state": line.state.value,
        "distribution": line.distribution or None,
        "release": line.release or None,
        "content_key": line.content_key or None,
        "qubes": line.users,
    }
