"""Volumes of qubes. What they hold is the business of the pools, behind the engine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator

from insula.admin.arguments import ascii_text, exactly, parse_flag, parse_revisions_to_keep, volume_of
from insula.admin.call import Call, Context
from insula.lifecycle.create import KERNEL_VOLUME
from insula.model.block import VolumeSpec
from insula.model.errors import (
    ProtocolError,
    QubesException,
    QubesValueError,
    QubesVMNotFoundError,
    QubesVMNotHaltedError,
    QubesVolumeCopyTokenNotFoundError,
    QubesVolumeRevisionNotFoundError,
    StoragePoolException,
)
from insula.model.volumes import parse_volume_size

MAX_SIZE_LINE = 20
"""Bytes of the size line before the data of ``ImportWithSize``: 19 digits and a newline."""
MAX_FAILURE_MESSAGE = 1024
"""Characters of the message of a failed import that are passed on."""

_REVISION = re.compile(r"[A-Za-z0-9:_.-]{1,64}")


async def list_volumes(context: Context, call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.volumes)


async def info(context: Context, call: Call) -> str:
    volume = volume_of(call)
    # The kernel is a version, not a disk: it takes nothing of the pool.
    usage = 0 if volume.name == KERNEL_VOLUME else await context.engine.volume_usage(call.dest.name, volume.name)
    values: dict[str, object] = {
        "pool": volume.pool,
        "vid": volume.vid,
        "size": volume.size,
        "usage": usage,
        "rw": volume.rw,
        "source": volume.source or "",
        # Host paths are nobody's business; the key is required, its value may be empty.
        "path": "",
        "save_on_stop": volume.save_on_stop,
        "snap_on_start": volume.snap_on_start,
        "revisions_to_keep": volume.revisions_to_keep,
        "ephemeral": volume.ephemeral,
    }
    if volume.snap_on_start:
        values["is_outdated"] = await context.engine.volume_is_outdated(call.dest.name, volume.name)
    return "".join(f"{key}={value}\n" for key, value in values.items())


async def list_snapshots(context: Context, call: Call) -> str:
    return "".join(f"{revision}\n" for revision in await _revisions(context, call, volume_of(call)))


async def _revisions(context: Context, call: Call, volume: VolumeSpec) -> list[str]:
    """Oldest first; volumes that keep nothing have none."""
    if not volume.save_on_stop:
        return []
    return [revision.id for revision in await context.engine.volume_revisions(call.dest.name, volume.name)]


async def revert(context: Context, call: Call) -> str:
    volume = volume_of(call)
    untrusted_revision = ascii_text(call.untrusted_payload, "A revision")
    if not _REVISION.fullmatch(untrusted_revision):
        raise QubesVolumeRevisionNotFoundError(f"Not the name of a revision: {untrusted_revision[:64]!a}")
    if untrusted_revision not in await _revisions(context, call, volume):
        raise QubesVolumeRevisionNotFoundError(
            f"Volume {volume.name} of {call.dest.name} has no revision {untrusted_revision}"
        )
    await context.engine.volume_revert(call.dest.name, volume.name, untrusted_revision)
    return ""


async def clone_from(context: Context, call: Call) -> str:
    """A token with which a copy of this volume may be made, once."""
    return context.tokens.give(call.dest.uuid, volume_of(call).name)


async def clone_to(context: Context, call: Call) -> str:
    volume = volume_of(call)
    uuid, source_volume = context.tokens.take(call.untrusted_payload.decode("ascii", "replace"))
    try:
        source = context.store.system.by_uuid(uuid)
    except QubesVMNotFoundError as error:
        raise QubesVolumeCopyTokenNotFoundError("The volume that the token was for is gone") from error
    _check_replaceable(context, call, volume)
    await context.engine.volume_clone((source.name, source_volume), (call.dest.name, volume.name))
    return ""


async def resize(context: Context, call: Call) -> str:
    volume = volume_of(call)
    size = parse_volume_size(ascii_text(call.untrusted_payload, "A volume's size"))
    await context.engine.volume_resize(call.dest.name, volume.name, size)
    return ""


async def clear(context: Context, call: Call) -> str:
    volume = volume_of(call)
    _check_replaceable(context, call, volume)
    await context.engine.volume_clear(call.dest.name, volume.name)
    return ""


async def set_revisions_to_keep(context: Context, call: Call) -> str:
    volume = volume_of(call)
    await context.engine.volume_set(
        call.dest.name, volume.name, "revisions_to_keep", parse_revisions_to_keep(call.untrusted_payload)
    )
    return ""


async def set_rw(context: Context, call: Call) -> str:
    volume = volume_of(call)
    value = parse_flag(call.untrusted_payload, "rw")
    _check_halted(context, call)
    await context.engine.volume_set(call.dest.name, volume.name, "rw", value)
    return ""


async def set_ephemeral(context: Context, call: Call) -> str:
    volume = volume_of(call)
    value = parse_flag(call.untrusted_payload, "ephemeral")
    if value and (not volume.rw or volume.snap_on_start or volume.save_on_stop):
        raise QubesValueError(
            f"Volume {volume.name} of {call.dest.name} cannot be ephemeral: only writable volumes"
            " that neither start from a snapshot nor are kept can"
        )
    _check_halted(context, call)
    await context.engine.volume_set(call.dest.name, volume.name, "ephemeral", value)
    return ""


# import: the data come in one stream, or through a file between Begin and End


async def import_data(context: Context, call: Call, untrusted_data: AsyncIterator[bytes]) -> str:
    """``admin.vm.volume.Import``: exactly as many bytes as the volume has."""
    volume = volume_of(call)
    await _import(context, call, volume, untrusted_data, volume.size)
    return ""


async def import_with_size(context: Context, call: Call, untrusted_data: AsyncIterator[bytes]) -> str:
    """``admin.vm.volume.ImportWithSize``: ``SIZE\\n``, then as many bytes; the volume gets that size."""
    volume = volume_of(call)
    untrusted_start = b""
    while b"\n" not in untrusted_start:
        if len(untrusted_start) >= MAX_SIZE_LINE:
            raise ProtocolError("The data do not begin with a line that says their size")
        try:
            untrusted_start += await anext(untrusted_data)
        except StopAsyncIteration:
            raise ProtocolError("The data end before the line that says their size") from None
    untrusted_size, _, untrusted_rest = untrusted_start.partition(b"\n")
    size = parse_volume_size(ascii_text(untrusted_size[:MAX_SIZE_LINE], "A volume's size"))

    async def content() -> AsyncIterator[bytes]:
        if untrusted_rest:
            yield untrusted_rest
        async for untrusted_chunk in untrusted_data:
            yield untrusted_chunk

    await _import(context, call, volume, content(), size)
    return ""


async def import_begin(context: Context, call: Call) -> str:
    """``internal.vm.volume.ImportBegin``: payload a size or nothing; answers ``SIZE PATH``."""
    volume = volume_of(call)
    size = volume.size
    if call.untrusted_payload:
        size = parse_volume_size(ascii_text(call.untrusted_payload, "A volume's size"))
    _check_replaceable(context, call, volume)
    data = context.uploads.begin(call.dest.name, volume.name, size)
    context.publish(call.dest.name, "domain-volume-import-begin", volume=volume.name, size=size)
    return f"{size} {data.path}"


async def import_end(context: Context, call: Call) -> str:
    """``internal.vm.volume.ImportEnd``: payload ``ok``, or ``fail`` and a message in the next line."""
    volume = volume_of(call)
    untrusted_verdict, _, untrusted_message = call.untrusted_payload.decode("utf-8", "replace").partition("\n")
    data = context.uploads.end(call.dest.name, volume.name)
    with _import_reported(context, call, volume):
        try:
            if untrusted_verdict != "ok":
                reason = "".join(c if c.isprintable() else "_" for c in untrusted_message[:MAX_FAILURE_MESSAGE])
                raise QubesException(f"Import of volume {volume.name} failed: {reason or 'no reason was given'}")
            await context.engine.volume_import(call.dest.name, volume.name, data.chunks(), data.size)
        finally:
            context.uploads.discard(call.dest.name, volume.name)
    return ""


async def _import(
    context: Context, call: Call, volume: VolumeSpec, untrusted_data: AsyncIterator[bytes], size: int
) -> None:
    _check_replaceable(context, call, volume)
    context.publish(call.dest.name, "domain-volume-import-begin", volume=volume.name, size=size)
    with _import_reported(context, call, volume):
        await context.engine.volume_import(call.dest.name, volume.name, exactly(untrusted_data, size), size)


@contextlib.contextmanager
def _import_reported(context: Context, call: Call, volume: VolumeSpec) -> Iterator[None]:
    """Publish how the import ended, whatever way."""
    success = False
    try:
        yield
        success = True
    finally:
        context.publish(call.dest.name, "domain-volume-import-end", volume=volume.name, success=success)


def _check_halted(context: Context, call: Call) -> None:
    if context.engine.power_state(call.dest.name).is_on:
        raise QubesVMNotHaltedError(f"{call.dest.name} must be halted for this")


def _check_replaceable(context: Context, call: Call, volume: VolumeSpec) -> None:
    """:raise QubesVMNotHaltedError, StoragePoolException: nothing in it would be kept."""
    _check_halted(context, call)
    if not volume.save_on_stop:
        raise StoragePoolException(f"Volume {volume.name} of {call.dest.name} keeps nothing of what is written to it")
