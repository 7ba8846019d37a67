"""``insula clone``: a qube like another one, completely or not at all."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.connection import with_daemon_and_board
from insula.cli.options import Json, Qube
from insula.cli.progress import Board
from insula.cli.qubes import find_qube
from insula.cli.step import Step
from insula.cli.undo import removed_on_failure
from insula.model.errors import QubesNoSuchPropertyError
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME

NOT_COPIED_PROPERTIES = frozenset(
    {
        # what the new qube has of its own
        *("name", "qid", "uuid", "klass", "label", "template", "dispid"),
        # what is true of the old one only
        *("installed_by_rpm", "backup_timestamp"),
    }
)
NOT_COPIED_TAGS = ("created-by-", "disp-created-by-")
"""Beginnings of tags that say where the old qube came from."""
NOT_COPIED_FEATURES = ("preload-dispvm", "deferred-netvm-original")
"""Beginnings of features the daemon keeps itself (admin-api §2)."""

app = typer.Typer(add_completion=False)


@app.command()
def clone(
    qube: Qube,
    name: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new qube.")],
    label: Annotated[
        str | None, typer.Option("--label", "-l", help="Another colour.", autocompletion=completion.labels)
    ] = None,
    klass: Annotated[
        str | None,
        typer.Option("--class", "-C", metavar="CLASS", help="Another class.", autocompletion=completion.classes),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a qube: properties, tags, features, notes, volumes. If a part fails, the copy is removed again."""

    async def work(client: AdminClient, board: Board) -> dict[str, str]:
        with board.step(name, f"copying {qube}", f"copied from {qube}") as step:
            return await copy_qube(client, step, qube, name, label=label, klass=klass)

    made = with_daemon_and_board(work)
    if as_json:
        output.print_json(made)


async def copy_qube(
    client: AdminClient, step: Step, source: str, name: str, *, label: str | None, klass: str | None
) -> dict[str, str]:
    """Make ``name`` like ``source``; returns name, class and label of it. :raise InsulaError: nothing is left of it."""
    row = await find_qube(client, source)
    wanted_klass = klass or row.klass
    wanted_label = label or (await client.get_property("label", source)).value
    template = await template_of(client, source) if wanted_klass in (Klass.APPVM, Klass.DISPVM) else None
    await client.create_qube(wanted_klass, name, wanted_label, template=template)
    async with removed_on_failure(client, name):
        step.update("copying settings")
        await copy_properties(client, source, name)
        await copy_marks(client, source, name)
        await copy_volumes(client, step, source, name)
    return {"name": name, "class": wanted_klass, "label": wanted_label}


async def template_of(client: AdminClient, source: str) -> str | None:
    try:
        return (await client.get_property("template", source)).value or None
    except QubesNoSuchPropertyError:
        return None


async def copy_properties(client: AdminClient, source: str, name: str) -> None:
    """Copy what is set, as far as the new class knows it."""
    known = frozenset(await client.list_properties(name))
    for item in await client.get_properties(source):
        if not item.is_default and item.name in known and item.name not in NOT_COPIED_PROPERTIES:
            await client.set_property(item.name, item.value, name)


async def copy_marks(client: AdminClient, source: str, name: str) -> None:
    """Tags, features and notes."""
    has = frozenset(await client.list_tags(name))
    for tag in await client.list_tags(source):
        if tag not in has and not tag.startswith(NOT_COPIED_TAGS):
            await client.add_tag(name, tag)
    for feature, value in (await client.get_features(source)).items():
        if not feature.startswith(NOT_COPIED_FEATURES):
            await client.set_feature(name, feature, value)
    if source != ADMIN_NAME and (notes := await client.notes(source)):
        await client.set_notes(name, notes)


async def copy_volumes(client: AdminClient, step: Step, source: str, name: str) -> None:
    """Copy the volumes that both of them keep; the others come from a template or are empty anyway."""
    targets = await client.list_volumes(name)
    for volume in await client.list_volumes(source):
        if volume not in targets:
            continue
        infos = [await client.volume_info(qube, volume) for qube in (source, name)]
        if all(info.save_on_stop for info in infos):
            step.update(f"copying volume {volume}")
            await client.volume_clone((source, volume), (name, volume))
