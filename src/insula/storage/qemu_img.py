"""The one place where image files are handed to ``qemu-img``, inside a sandbox.

Overlays were written by a monitor that a guest may have taken over, so reading their tables is left to a process
that can do nothing: bubblewrap with all namespaces new (no network, no other process in sight), no capability,
no further user namespace, the host's ``/usr`` read-only, and exactly the image files of the job, under
numbered names that are the only text of ours in its command line. It keeps the daemon's uid because the files
are mode 0600; without capabilities, and with nothing else mounted, that uid opens nothing else.

Chains are given whole, layer by layer with format (``json:`` file names); with an explicit ``backing`` QEMU does
not look at the name in a header, and a name that it did follow would not exist in the sandbox (MC-65).

Not solved: a daemon that is killed in the millisecond between starting bwrap and bwrap asking to die with it leaves
that one run to finish. QEMU's image locks then keep machines and other runs off the files it writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from insula.model.block import GIB, MIB, BlockLayer, LayerFormat
from insula.storage.pool import StorageError
from insula.storage.threads import finished

TIME_LIMIT_S = 3600.0
"""For one run: 100 GiB at 30 MiB/s. Beyond that something hangs."""
ADDRESS_SPACE = 2 * GIB
"""RLIMIT_AS of the tool: its tables for 16 TiB take 256 MiB, its buffers 16 MiB."""
FILE_SLACK = 64 * MIB
"""What an image may be larger than its virtual size plus a thousandth (tables of qcow2: 1/8192 for L2,
1/32768 for refcounts)."""
MESSAGE_MAX = 500
"""Bytes of the tool's error text that are kept: it may quote what a guest wrote."""
READ_SIZE = 4096

_SANDBOX = (
    *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
    *("--cap-drop", "ALL", "--clearenv", "--setenv", "LC_ALL", "C.UTF-8", "--hostname", "image"),
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64", "--dev", "/dev"),
)


@dataclass(frozen=True)
class _File:
    path: Path
    writable: bool

    def bind(self, number: int) -> tuple[str, str, str]:
        return ("--bind" if self.writable else "--ro-bind", str(self.path), f"/image/{number}")


def _descriptor(formats: Sequence[LayerFormat]) -> str:
    """``json:`` file name of a chain, base first; layer ``n`` is ``/image/n`` in the sandbox."""
    node: dict[str, object] | None = None
    for number, layer_format in enumerate(formats):
        below = node
        node = {
            "driver": layer_format.value,
            "file": {"driver": "file", "filename": f"/image/{number}"},
        }
        if layer_format is LayerFormat.QCOW2:
            node["backing"] = below
    return "json:" + msgspec.json.encode(node).decode("ascii")


async def merge(chain: Sequence[BlockLayer], size: int) -> None:
    """Write the data of the last layer of ``chain`` (base first) into the one below it, and sync that.

    If interrupted, the chain as a whole still shows what it showed.

    :param size: largest virtual size among the layers, in bytes.
    :raise StorageError: the tool refused or failed.
    """
    # -d: leave the upper layer as it is; without it the tool would empty it while the record still names it
    await _run(
        ["commit", "-q", "-d", _descriptor([layer.format for layer in chain])],
        [_File(layer.path, writable=number >= len(chain) - 2) for number, layer in enumerate(chain)],
        size,
    )


async def flatten(chain: Sequence[BlockLayer], target: Path, size: int) -> None:
    """Write the content of ``chain`` (base first) into the existing raw file ``target``, which is all zero.

    :param size: length of ``target`` in bytes, at least the chain's.
    :raise StorageError: the tool refused or failed.
    """
    source = _descriptor([layer.format for layer in chain])
    files = [_File(layer.path, writable=False) for layer in chain]
    number = len(files)
    files.append(_File(target, writable=True))
    output = f"driver=raw,file.driver=file,file.filename=/image/{number}"
    await _run(["convert", "-q", "-n", "--target-is-zero", "--target-image-opts", source, output], files, size)


async def copy_out(image: Path, image_format: str, target: Path, offset: int, size: int) -> None:
    """Write ``size`` bytes from ``offset`` of the disk in somebody else's image into ``target``.

    :param image_format: a driver of QEMU's for one file; nothing is guessed.
    :param target: existing raw file of ``size`` bytes, all zero.
    :raise StorageError: the tool refused or failed.
    """
    disk: dict[str, object] = {"driver": image_format, "file": {"driver": "file", "filename": "/image/0"}}
    if image_format != LayerFormat.RAW:
        # Said, so that a name in the header is not looked at.
        disk["backing"] = None
    part = msgspec.json.encode({"driver": "raw", "offset": offset, "size": size, "file": disk}).decode("ascii")
    output = "driver=raw,file.driver=file,file.filename=/image/1"
    await _run(
        ["convert", "-q", "-n", "--target-is-zero", "--target-image-opts", f"json:{part}", output],
        [_File(image, writable=False), _File(target, writable=True)],
        size,
    )


async def _run(arguments: Sequence[str], files: Sequence[_File], size: int) -> None:
    limits = ("prlimit", "--core=0", f"--as={ADDRESS_SPACE}", f"--fsize={size + size // 1000 + FILE_SLACK}")
    binds = [word for number, file in enumerate(files) for word in file.bind(number)]
    command = (*_SANDBOX, *binds, *limits, "qemu-img", *arguments)
    outcome = asyncio.ensure_future(_outcome(command, kill := asyncio.Event()))
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            status, message = await asyncio.shield(outcome)
    except TimeoutError as error:
        raise StorageError(f"qemu-img {arguments[0]} took longer than {TIME_LIMIT_S:.0f} s") from error
    finally:
        kill.set()
        await finished(outcome)
    if status != 0:
        raise StorageError(f"qemu-img {arguments[0]} failed ({status}): {message or 'no message'}")


async def _outcome(command: Sequence[str], kill: asyncio.Event) -> tuple[int, str]:
    """Exit status and message of a run. Never cancelled; ends early when ``kill`` is set.

    Returns only when no process of the sandbox is left: they hold the pipe, and its end is waited for. So an
    image has no writer any more.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise StorageError("bubblewrap (bwrap) is not installed") from error
    except OSError as error:
        raise StorageError(f"cannot start qemu-img: {error.strerror}") from error
    assert process.stderr is not None
    reader = asyncio.ensure_future(_read_message(process.stderr))
    killer = asyncio.ensure_future(kill.wait())
    await asyncio.wait([reader, killer], return_when=asyncio.FIRST_COMPLETED)
    killer.cancel()
    if not reader.done():
        with contextlib.suppress(ProcessLookupError):
            # The whole group: a bwrap killed while it sets up leaves a child that nothing else ends.
            os.killpg(process.pid, signal.SIGKILL)
    return await process.wait(), await reader


async def _read_message(untrusted_stream: asyncio.StreamReader) -> str:
    """Read to the end; keep the start, made printable."""
    kept = b""
    while data := await untrusted_stream.read(READ_SIZE):
        kept = (kept + data)[:MESSAGE_MAX]
    text = kept.decode("ascii", "replace")
    return "".join(character if character.isprintable() else " " for character in text).strip()
