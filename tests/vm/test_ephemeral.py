"""What a disposable writes cannot be found on the disk, while it runs and afterwards (decision 010)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from insula.storage import files
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import create_app_qube, sh

from .conftest import discard

WRITE = """
swapoff -a
for i in $(seq 256); do echo -n "$MARKER"; done > /tmp/marker
cp /tmp/marker /in-root
cp /tmp/marker /rw/in-private
dd if=/tmp/marker of=$(readlink -f /dev/disk/by-id/virtio-volatile) bs=16384 seek=1000 conv=notrunc,fsync
sync
"""

PIECE = 1 << 20


def stored(folder: Path) -> Iterator[str]:
    """Files of ``folder``, and those that were in it and are still open somewhere, as paths that can be opened."""
    yield from (str(path) for path in folder.rglob("*") if path.is_file())
    for process in Path("/proc").iterdir():
        # Processes that end meanwhile, and others' that nobody may look into.
        with suppress(FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError):
            for link in (process / "fd").iterdir():
                with suppress(FileNotFoundError):
                    if str(link.readlink()).startswith(f"{folder}/"):
                        yield str(link)


def count(folder: Path, marker: bytes) -> int:
    """How many files of the daemon hold the marker."""
    return sum(_holds(path, marker) for path in set(stored(folder)))


def _holds(path: str, marker: bytes) -> bool:
    with suppress(FileNotFoundError), open(path, "rb") as file:  # noqa: PTH123 - a link of /proc is no path
        for start, end in files.data_extents(file.fileno(), os.fstat(file.fileno()).st_size):
            # Pieces overlap, so that none cuts the marker in two.
            for position in range(start, end, PIECE):
                if marker in os.pread(file.fileno(), min(PIECE + len(marker), end - position), position):
                    return True
    return False


async def write(daemon: DaemonProcess, qube: str) -> bytes:
    marker = secrets.token_hex(32)
    await sh(daemon, qube, f"MARKER={marker}{WRITE}", user="root")
    return marker.encode()


async def test_disposable_writes_cannot_be_found_on_the_disk_those_of_others_can(daemon: DaemonProcess) -> None:
    base = "test-ephemeral"
    await create_app_qube(daemon.client, base)
    await daemon.client.set_property("template_for_dispvms", "True", base)
    await daemon.client.start(base)
    marker = await write(daemon, base)
    assert count(daemon.paths.data, marker) >= 3, "root, private and volatile of an ordinary qube"
    await daemon.client.kill(base)
    assert count(daemon.paths.data, marker) == 1, "the private volume is kept"

    disposable = await daemon.client.create_disposable(base)
    await daemon.client.start(disposable)
    assert await sh(daemon, disposable, "head -c 64 /rw/in-private", user="root") == marker.decode()
    secret = await write(daemon, disposable)
    assert (
        await sh(daemon, disposable, "head -c 64 /in-root; head -c 64 /rw/in-private", user="root")
        == 2 * secret.decode()
    )
    assert count(daemon.paths.data, secret) == 0
    await daemon.client.kill(disposable)
    assert count(daemon.paths.data, secret) == 0
    await discard(daemon, base)
