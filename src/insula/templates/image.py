"""From a system's tar archive to a file system image, inside the namespace so that owners survive.

``mkfs.ext4 -d`` copies a folder into a new file system without mounting it, so no privilege on this machine is needed
and the host's kernel never parses a file system. The image is sparse: its size is what a qube may grow to.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from pathlib import Path

from insula.templates import namespace
from insula.templates.distribution import APPLICATIONS, Distribution, Progress, Workroom

SIZE = 10 << 30
"""Bytes a root file system may grow to; the qube's volume can be resized later."""
LABEL = "insula-root"
INODE_RATIO = 16384
"""Bytes per inode: mkfs's default, said here because its configuration file differs between systems."""

# metadata_csum_seed lets a clone get a new UUID while mounted; 64-bit and the lazy inode table keep the image small: an
# unused group is not written at all. No reserved blocks: root in a qube gains nothing from them.
_MKFS_OPTIONS = (
    "-q", "-F", "-b", "4096", "-i", str(INODE_RATIO), "-m", "0", "-L", LABEL,
    "-O", "metadata_csum,metadata_csum_seed,64bit",
)  # fmt: skip

_EXTENDED = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"

_TREE_SCRIPT = """\
set -e
rm -rf "$3"
mkdir "$3"
# Device nodes cannot be made in a user namespace, and need not be: devtmpfs makes them at each boot.
tar --extract --file "$1" --directory "$3" --preserve-permissions --same-owner --numeric-owner --xattrs \\
    --delay-directory-restore --exclude './dev/*'
echo "unpacked"
sh -e "$4" "$3" "$2"
rm -f "$5"
[ ! -f "$3/$6" ] || mv "$3/$6" "$5"
"""


AGENT = "insula-agent.deb"
"""Name of the agent's package in the room."""


async def make_tree(
    room: Workroom, distribution: Distribution, archive: str, tree: str, applications: str, progress: Progress
) -> None:
    """Unpack the system's tar ``archive`` to the folder ``tree`` and adapt it. Names are relative to the room.

    What it says of its applications becomes the file ``applications``, if it says anything.

    :raise BuildFailed: the folder is left for :func:`remove`.
    """
    adapt = room.path / "adapt.sh"
    adapt.write_text(distribution.adapt_script(), encoding="utf-8")
    progress(0.0, "unpacking the system")
    inside = namespace.INSIDE
    await namespace.run(
        [
            *("sh", "-c", _TREE_SCRIPT, "sh"),
            *(str(inside / item) for item in (archive, AGENT, tree, adapt.name, applications)),
            APPLICATIONS,
        ],
        work_dir=room.path,
        ids=room.ids,
        on_line=lambda line: progress(0.6, line[:100]),
    )


async def make_image(room: Workroom, tree: str, image: str, identity: str, progress: Progress) -> Path:
    """Copy the folder ``tree`` into a new ext4 image. ``identity`` decides the file system's UUID.

    :raise BuildFailed:
    """
    progress(0.0, "writing the file system")
    # From the content, so that a build can be repeated; the hash seed is what mkfs would draw at random too.
    unique = str(uuid.uuid5(uuid.NAMESPACE_URL, f"insula:template:{identity}"))
    path = room.path / image
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.truncate(SIZE)
    namespace.hand_over(path, room.ids)
    await namespace.run(
        ["mkfs.ext4", *_MKFS_OPTIONS, "-U", unique, "-E", f"{_EXTENDED},hash_seed={unique}", "-d", tree, image],
        work_dir=room.path,
        ids=room.ids,
    )
    return path


async def remove(room: Workroom, *names: str) -> None:
    """Remove files and folders of the room, whoever owns them; absent is fine.

    Only the namespace's root may remove what an ordinary user's builds made; root on this machine may remove all, and
    what it made itself is nothing the namespace's root could touch.
    """
    if os.geteuid() == 0:
        await asyncio.to_thread(_remove_here, [room.path / name for name in names])
    elif names:
        await namespace.run(["rm", "-rf", "--one-file-system", "--", *names], work_dir=room.path, ids=room.ids)


def _remove_here(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
