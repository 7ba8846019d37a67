"""An empty ext4 file system as the first content of a new private volume: one thing less that a first start waits for.

The host formats what is all zero and its own; it never reads a file system that a guest has written. Because the disk
is known to be zero and the tool says so in the file system, the guest does not write its inode tables in the
background either, which would fill the overlay of an idle qube.

Everything that ``mke2fs.conf`` of the host would decide is said here, so that the same file system is made
everywhere, with features that any guest's kernel since Linux 3.18 knows. UUID and hash seed are random.

Where the tool is missing or fails, the volume stays blank: the agent of a qube formats a blank disk itself.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from insula.storage.pool import StorageError

log = logging.getLogger("insula.storage.ext4")

TIME_LIMIT_S = 20.0
"""It takes 20 ms; a disk that is as busy as this is better not waited for."""
SIZE_MIN = 16 * 1024 * 1024
"""Bytes; below, a journal does not fit and a home hardly."""
MESSAGE_MAX = 500
"""Bytes of the tool's message that are logged."""
FEATURES = (
    "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg", "sparse_super",
    "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
)  # fmt: skip
_COMMAND = (
    *("mke2fs", "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-O", ",".join(("none", *FEATURES))),
    # The journal's blocks need not be zeroed either; files belong to the guest's root, whoever runs the tool.
    *("-E", "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0"),
)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "MKE2FS_CONFIG": os.devnull}
"""An ordinary user's PATH has no sbin. The configuration file is replaced by an empty one."""


class NotFormatted(StorageError):
    """The tool is missing or failed."""


def format_disk(path: Path) -> None:
    """Make an empty file system as large as the file or device ``path``, which must be all zero. Blocks for 20 ms.

    :raise NotFormatted: part of it may have been written.
    """
    try:
        done = subprocess.run(
            [*_COMMAND, str(path.absolute())],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            timeout=TIME_LIMIT_S,
        )
    except OSError as error:
        raise NotFormatted(f"cannot run mke2fs: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NotFormatted(f"mke2fs took longer than {TIME_LIMIT_S:.0f} s") from error
    if done.returncode != 0:
        message = done.stderr[:MESSAGE_MAX].decode("ascii", "replace").strip()
        raise NotFormatted(f"mke2fs failed ({done.returncode}): {message or 'no message'}")


def format_or_leave_blank(path: Path) -> None:
    """:func:`format_disk` on a file that is long enough for it; a failure is logged, and the file zero again.

    A :data:`insula.storage.pool.Prepare`. :raise OSError: the file cannot be used.
    """
    size = path.stat().st_size
    if size < SIZE_MIN:
        return
    try:
        format_disk(path)
    except NotFormatted as error:
        log.warning("a new volume is left to its qube to format: %s", error)
        os.truncate(path, 0)
        os.truncate(path, size)
