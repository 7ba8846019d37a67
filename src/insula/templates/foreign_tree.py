"""Takes the files out of somebody else's ext4 file system, in a sandbox: never mounted, only read by ``debugfs``.

Run by path with ``python3 -I -S``, standard library only. Arguments: image of the file system, folder to be made. What
debugfs copies has owners and permissions, but for set-uid and set-gid, which changing the owner takes away: they are
read from the file system again and set. File capabilities, device nodes and pipes are not taken.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SPECIAL = 0o6000
"""Set-uid and set-gid."""
ENTRY = re.compile(rb"/\d+/(\d{6})/\d+/\d+/([^/\n]+)/\d*/")
"""debugfs(8), ``ls -p``: inode, mode, owner, group, name, size."""


def folders(tree: str) -> Iterator[str]:
    """Folders as debugfs is asked for them; those whose names it could take for something else are left out."""
    for path, _, _ in os.walk(tree):
        name = path[len(tree) :] or "/"
        if not set(name) & set('"\n\\'):
            yield name


def special_modes(untrusted_listing: bytes, names: list[str]) -> Iterator[tuple[str, int]]:
    """Path and mode of files with special bits, from the answers to ``ls -p`` of these folders, in order."""
    number = -1
    for line in untrusted_listing.splitlines():
        if line.startswith(b"debugfs: ls -p"):
            number += 1
            continue
        found = ENTRY.match(line)
        if found and 0 <= number < len(names):
            mode = int(found[1], 8)
            if mode & SPECIAL and mode >> 12 == 8:
                yield f"{names[number].rstrip('/')}/{os.fsdecode(found[2])}", mode & 0o7777


def main(arguments: list[str]) -> int:
    image, tree = arguments
    Path(tree).mkdir()
    if subprocess.run(["debugfs", "-R", f"rdump / {tree}", image], check=False).returncode != 0:
        return 1
    names = list(folders(tree))
    commands = Path("commands")
    commands.write_bytes(b"".join(b'ls -p "%s"\n' % os.fsencode(name) for name in names))
    listing = subprocess.run(
        ["debugfs", "-f", str(commands), image], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    ).stdout
    commands.unlink()
    for name, mode in special_modes(listing, names):
        path = Path(f"{tree}{name}")
        # Never through a link: what is there is the file that was copied, or nothing is done.
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
    print(f"{len(names)} folders")
    return 0 if len(names) > 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
