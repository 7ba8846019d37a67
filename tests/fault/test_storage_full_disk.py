"""A disk that is really full, without being root: a small tmpfs in a user namespace of its own (MC-60)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("full_disk.py")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "--kill-child")
MOUNT_AND_RUN = 'mount -t tmpfs -o size=16m,mode=0700 none "$1" && exec "$2" "$3" "$1"'


def test_full_disk_operations_refused_or_undone_nothing_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNT_AND_RUN, "sh", str(tmp_path), sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
