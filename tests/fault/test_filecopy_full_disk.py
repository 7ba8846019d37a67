"""A receiver's disk that is really full, without being root: a small tmpfs in a user namespace of its own (MC-08)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("filecopy_full_disk.py")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--kill-child")
MOUNT_AND_RUN = 'mount -t tmpfs -o size=16m,nr_inodes=200,mode=0700 none "$1" && exec "$2" "$3" "$1"'


def test_full_disk_ends_the_transfer_and_leaves_nothing(tmp_path: Path) -> None:
    """MC-08."""
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNT_AND_RUN, "sh", str(tmp_path), sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
