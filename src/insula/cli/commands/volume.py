"""``insula volume``: the disks of qubes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from insula.admin.client import AdminClient, VolumeInfo
from insula.cli import output
from insula.cli.connection import with_daemon, with_daemon_and_board
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json, Qube, SomeQubes, Volume
from insula.cli.progress import Board
from insula.cli.table import Cell, Column
from insula.cli.text import parse_size, size_text
from insula.model.errors import (
    PermissionDenied,
    QubesPropertyValueError,
    QubesVMNotFoundError,
    QubesVolumeNotFoundError,
)
from insula.model.property_parsing import flag

IMPORT_CHUNK = 1024 * 1024
"""Bytes read from a file at once."""
SETTINGS = ("revisions_to_keep", "rw", "ephemeral")

app = typer.Typer(add_completion=False, help="Disks of qubes.")


@app.command("ls")
def ls(qubes: SomeQubes = None, as_json: Json = False) -> None:
    """List volumes of all or some qubes."""

    async def work(client: AdminClient) -> list[tuple[str, str, VolumeInfo]]:
        found = []
        for qube in qubes or [row.name for row in await client.list_qubes()]:
            # Where all are meant: a disposable may end, and be gone, at any moment.
            with suppress(*() if qubes else (QubesVMNotFoundError,)):
                volumes = await client.list_volumes(qube)
                found += [(qube, volume, await client.volume_info(qube, volume)) for volume in volumes]
        return found

    found = with_daemon(work)
    if as_json:
        output.print_json([{"qube": qube, "volume": volume, **as_object(info)} for qube, volume, info in found])
        return
    columns = [Column("QUBE"), Column("VOLUME"), Column("POOL"), Column("SIZE", right=True)]
    output.print_table(
        [*columns, Column("USED", right=True), Column("KIND")],
        [
            [Cell(qube, "bold"), volume, info.pool, size_text(info.size), size_text(info.usage), kind(info)]
            for qube, volume, info in found
        ],
    )


@app.command("info")
def info(qube: Qube, volume: Volume, as_json: Json = False) -> None:
    """Everything about one volume."""
    found = with_daemon(lambda client: ask(client, qube, volume))
    if as_json:
        output.print_json(as_object(found))
        return
    rows = [[key, size_text(value) if key in ("size", "usage") else str(value)] for key, value in asdict(found).items()]
    output.print_table([Column("KEY"), Column("VALUE")], rows)


@app.command("revisions")
def revisions(qube: Qube, volume: Volume, as_json: Json = False) -> None:
    """List older revisions, oldest first."""

    async def work(client: AdminClient) -> list[str]:
        await ask(client, qube, volume)
        return await client.volume_revisions(qube, volume)

    found = with_daemon(work)
    if as_json:
        output.print_json(found)
    else:
        for revision in found:
            output.print_line(revision)


@app.command("revert")
def revert(
    qube: Qube,
    volume: Volume,
    revision: Annotated[str | None, typer.Argument(metavar="REVISION", help="Without: the newest older one.")] = None,
) -> None:
    """Bring back an older revision. The qube must be halted."""

    async def work(client: AdminClient) -> str:
        await ask(client, qube, volume)
        known = await client.volume_revisions(qube, volume)
        if not known:
            raise CliError(f"{qube}:{volume} has no older revision")
        if revision is not None and revision not in known:
            hint = did_you_mean(revision, known) or f"insula volume revisions {qube} {volume}"
            raise CliError(f"{qube}:{volume} has no revision {revision!a}", hint=hint)
        wanted = revision or known[-1]
        await client.volume_revert(qube, volume, wanted)
        return wanted

    output.say(f"{qube}:{volume} is what it was at revision {with_daemon(work)}")


@app.command("resize")
def resize(
    qube: Qube, volume: Volume, size: Annotated[str, typer.Argument(metavar="SIZE", help="Like 20GiB, or bytes.")]
) -> None:
    """Make a volume larger; it never shrinks."""
    wanted = size_argument(size)

    async def work(client: AdminClient) -> None:
        found = await ask(client, qube, volume)
        if wanted < found.size:
            raise CliError(f"{qube}:{volume} has {size_text(found.size)} and cannot shrink to {size_text(wanted)}")
        await client.volume_resize(qube, volume, wanted)

    with_daemon(work)


@app.command("import")
def import_volume(
    qube: Qube,
    volume: Volume,
    source: Annotated[str, typer.Argument(metavar="FILE", help="Raw image; - is standard input.")],
    size: Annotated[str | None, typer.Option(metavar="SIZE", help="Needed for standard input.")] = None,
) -> None:
    """Replace the content of a halted qube's volume by a raw image."""
    if source == "-" and size is None:
        raise CliError("how much standard input will give must be known", hint="--size", exit_code=USAGE)
    with sys.stdin.buffer if source == "-" else Path(source).open("rb") as stream:
        total = size_argument(size) if size is not None else stream.seek(0, os.SEEK_END)
        if source != "-":
            stream.seek(0)

        async def work(client: AdminClient, board: Board) -> None:
            await ask(client, qube, volume)
            with board.step(f"{qube}:{volume}", "importing", "imported") as step:
                sent = 0

                async def chunks() -> AsyncIterator[bytes]:
                    nonlocal sent
                    async for chunk in read_chunks(stream):
                        yield chunk
                        sent += len(chunk)
                        step.update(fraction=sent / total if total else None)

                await client.volume_import(qube, volume, chunks(), total)

        with_daemon_and_board(work)


@app.command("clear")
def clear(qube: Qube, volume: Volume) -> None:
    """Make a volume empty; its size stays. The qube must be halted."""

    async def work(client: AdminClient) -> None:
        await ask(client, qube, volume)
        await client.volume_clear(qube, volume)

    with_daemon(work)


@app.command("config")
def config(
    qube: Qube,
    volume: Volume,
    key: Annotated[str, typer.Argument(metavar="KEY", help=", ".join(SETTINGS) + ".")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="A number, or on and off.")],
) -> None:
    """Set how a volume is kept."""
    if key not in SETTINGS:
        raise CliError(f"a volume has no setting {key!a}", hint=f"settings: {', '.join(SETTINGS)}", exit_code=USAGE)
    try:
        parsed = int(value) if key == "revisions_to_keep" else flag(value)
    except (ValueError, QubesPropertyValueError):
        wanted = "a number" if key == "revisions_to_keep" else "on or off"
        raise CliError(f"{key} is {wanted}, not {value!a}", exit_code=USAGE) from None

    async def work(client: AdminClient) -> None:
        await ask(client, qube, volume)
        await client.volume_set(qube, volume, key, parsed)

    with_daemon(work)


async def ask(client: AdminClient, qube: str, volume: str) -> VolumeInfo:
    """:raise CliError: no such volume; guesses which one was meant."""
    try:
        return await client.volume_info(qube, volume)
    except (PermissionDenied, QubesVolumeNotFoundError) as error:
        known = await client.list_volumes(qube)
        if volume in known:
            raise
        hint = did_you_mean(volume, known) or f"its volumes: {', '.join(known) or 'none'}"
        raise CliError(f"{qube} has no volume {volume!a}", hint=hint) from error


async def read_chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    """The rest of a file, read in a thread so that progress goes on."""
    while chunk := await asyncio.to_thread(stream.read, IMPORT_CHUNK):
        yield chunk


def size_argument(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise CliError(str(error), exit_code=USAGE) from error


def kind(info: VolumeInfo) -> str:
    """What becomes of what is written, in a word."""
    if info.snap_on_start and info.save_on_stop:
        return "snapshot, kept"
    if info.snap_on_start:
        return "snapshot, outdated" if info.is_outdated else "snapshot"
    if info.save_on_stop:
        return "kept"
    return "volatile" if info.rw else "read-only"


def as_object(info: VolumeInfo) -> dict[str, object]:
    return asdict(info)
