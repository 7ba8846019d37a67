"""Run by test_filecopy_full_disk.py in a user namespace, on a small tmpfs: a transfer to a full disk (MC-08).

Usage: filecopy_full_disk.py FOLDER. Exit status 0 when all held.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from insula.testing.qube_calls import TwoQubes

MIB = 1 << 20


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def main(folder: Path) -> None:
    qubes = TwoQubes(folder)
    (qubes.here / "top").mkdir()
    (qubes.here / "top" / "fits").write_bytes(bytes(MIB))
    with (qubes.here / "top" / "huge").open("wb") as file:
        file.truncate(100 * MIB)
    before = free(folder)
    done = qubes.run("qvm-move", "top")
    assert done.returncode == 1, done
    assert b"No space left on device" in done.stderr, done
    # The sender has lost nothing; of the receiver's disk nothing is taken, under whatever name.
    assert (qubes.here / "top" / "huge").stat().st_size == 100 * MIB
    assert list(qubes.room.iterdir()) == []
    assert before - free(folder) < MIB, (before, free(folder))
    # The next transfer works.
    (qubes.here / "small").write_bytes(b"small")
    assert qubes.run("qvm-copy", "small").returncode == 0
    assert (qubes.room / "small").read_bytes() == b"small"

    # Not even a folder can be made: still an answer.
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    names = 0
    try:
        while True:
            (folder / f"inode-{names}").touch()
            names += 1
    except OSError:
        pass
    done = qubes.run("qvm-copy", "top/fits")
    assert done.returncode == 1, done
    assert b"No space left on device" in done.stderr, done
    assert [path.name for path in qubes.room.iterdir()] == ["small"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
