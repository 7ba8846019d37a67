"""Kernels that qubes are started with: one folder a version, written once, never changed.

``VERSION/vmlinuz``, ``VERSION/initrd`` and ``VERSION/cmdline`` (the options this kernel and initramfs need, one line).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from insula.model.errors import QubesPropertyValueError

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
MAX_CMDLINE = 1024
"""Bytes of a stored command line; the kernel itself takes 2048 on x86 and the host adds to it."""


@dataclass(frozen=True)
class Kernel:
    version: str
    image: Path
    initrd: Path
    cmdline: str


class Kernels:
    """The folder of kernels; the daemon is its only writer, so what was read once stays true."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options: dict[str, str] | None = None

    def options(self) -> dict[str, str]:
        """Version → command line of every kernel; from memory but for the first time."""
        if self._options is None:
            self._options = {version: self.get(version).cmdline for version in self.versions()}
        return self._options

    def versions(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if _VERSION.fullmatch(p.name) and (p / "vmlinuz").exists())

    def get(self, version: str) -> Kernel:
        """:raise QubesPropertyValueError: there is no such kernel."""
        folder = self.folder / version
        if not _VERSION.fullmatch(version) or not (folder / "vmlinuz").exists():
            known = ", ".join(self.versions()) or "none installed"
            raise QubesPropertyValueError(f"No kernel {version!r} on this host (there are: {known})")
        return Kernel(version, folder / "vmlinuz", folder / "initrd", (folder / "cmdline").read_text().strip())

    def install(self, version: str, image: Path, initrd: Path, cmdline: str) -> Kernel:
        """Copy a kernel in; a version that exists already with other content is replaced as a whole.

        :raise ValueError: bad version or command line.
        """
        if not _VERSION.fullmatch(version):
            raise ValueError(f"bad kernel version {version!a}")
        if len(cmdline) > MAX_CMDLINE or not cmdline.isascii() or not cmdline.isprintable():
            raise ValueError("a kernel command line is one line of printable ASCII")
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / version
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            shutil.copyfile(image, fresh / "vmlinuz")
            shutil.copyfile(initrd, fresh / "initrd")
            (fresh / "cmdline").write_text(cmdline + "\n")
            for file in fresh.iterdir():
                # Read through descriptors by VMMs of other uids; a kernel is no secret.
                file.chmod(0o644)
                _sync(file)
            fresh.chmod(0o755)
            _sync(fresh)
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder)) / version
                target.rename(old)
                fresh.rename(target)
                shutil.rmtree(old.parent)
            else:
                fresh.rename(target)
            _sync(self.folder)
        finally:
            self._options = None
            shutil.rmtree(fresh, ignore_errors=True)
        return self.get(version)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
