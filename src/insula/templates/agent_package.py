"""Builds the Debian packages that make a system a qube: ``insula-agent`` and the tiny ``insula-boot``.

``insula-agent`` holds the packages ``insula_agent`` and ``insula_proto`` under ``/usr/lib/insula`` (not on Python's
normal path: programs of the user neither see nor shadow it), the files of ``insula_agent/rootfs`` as they are, the
service scripts of ``insula_agent/rpc`` and, in ``/usr/bin``, the commands of ``insula_agent/bin``. Symbolic links are
listed here: a wheel, from which this program may be installed, holds none. Python files are
byte-compiled when the package is installed, by the very Python that will run them, with hashes that are not checked at
run time: an import then reads one file.

Equal sources give equal bytes: names are sorted, times fixed, owners root.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from insula import __version__
from insula.templates.errors import BuildFailed, Unbuildable

SOURCES = Path(__file__).parents[2]
"""The folder that holds ``insula_agent`` and ``insula_proto``, in a checkout as in an installation."""
LIBRARY = PurePosixPath("usr/lib/insula")
EPOCH = 1_735_689_600
"""Time stamp of every packed file: 2025-01-01, any fixed past time will do."""
DPKG_TIMEOUT_S = 60

ENABLED_UNITS = {
    "multi-user.target": (
        "insula-clocksync.service",
        "insula-console.service",
        "insula-package-proxy.service",
        "insula-rc-local.service",
        "insula-seed.service",
        "insula-ssh-keys.service",
        "insula-tor.service",
        "insula-updates-cache.service",
        "insula-updates-forwarder.socket",
        "insula-updates-proxy.service",
        "insula-vpn.service",
    ),
    "sysinit.target": ("insula-agent.service", "insula-identity.target"),
    "timers.target": ("qubes-update-check.timer",),
}
"""Target → units that it wants."""
PORT_SERVICES = {"qubes.ConnectTCP": "/dev/tcp/127.0.0.1", "qubes.UpdatesProxy": "/dev/tcp/127.0.0.1/8082"}
"""Services that are a TCP port of the qube: what the link in ``/etc/qubes-rpc`` says (qrexec §8)."""
SAME_SERVICES = {"qubes.VMExecGUI": "qubes.VMExec", "qubes.VMRootExec": "qubes.VMExec"}
"""Services that are another one under a name with settings of its own (agent-services §2); by links, as published."""

MAINTAINER = "Insula <insula@localhost>"
"""Debian wants an address; these packages are built on the machine that uses them."""

_COMPILE = f"""\
#!/bin/sh
set -e
case "$1" in
configure|triggered)
    python3 -m compileall -q --invalidation-mode unchecked-hash /{LIBRARY}
    ;;
esac
"""
_CLEAN = f"""\
#!/bin/sh
set -e
find /{LIBRARY} -name __pycache__ -type d -prune -exec rm -rf '{{}}' +
"""
# A new python3 minor version has new byte code: compile again when its interpreter changes.
_TRIGGERS = "interest-noawait /usr/bin/python3\n"


@dataclass(frozen=True)
class PackedFile:
    content: bytes
    mode: int = 0o644
    link: str = ""
    """Target, if this is a symbolic link (then without content)."""


@dataclass(frozen=True)
class Package:
    """A Debian package of architecture ``all``."""

    name: str
    version: str
    fields: Mapping[str, str]
    files: Mapping[PurePosixPath, PackedFile]
    """Relative to ``/``."""
    scripts: Mapping[str, str]
    """Maintainer scripts and other files of ``DEBIAN/``."""

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version}_all.deb"

    def digest(self) -> str:
        """Hash of everything in the package; known without building it."""
        parts = [self.name, self.version, repr(sorted(self.fields.items())), repr(sorted(self.scripts.items()))]
        parts += [f"{path} {file!r}" for path, file in sorted(self.files.items())]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _python_files(sources: Path, package: str) -> dict[PurePosixPath, PackedFile]:
    folder = sources / package
    return {
        LIBRARY / package / path.relative_to(folder): PackedFile(path.read_bytes())
        for path in sorted(folder.rglob("*.py"))
        if "rootfs" not in path.relative_to(folder).parts
    }


def _links() -> dict[PurePosixPath, PackedFile]:
    units = PurePosixPath("usr/lib/systemd/system")
    links = {
        # Published tools call it by this name.
        PurePosixPath("usr/lib/qubes/qrexec-client-vm"): "/usr/bin/qrexec-client-vm",
        **{
            PurePosixPath("etc/qubes-rpc") / service: target
            for service, target in (PORT_SERVICES | SAME_SERVICES).items()
        },
        **{
            units / f"{wanting}.wants" / unit: f"../{unit}"
            for wanting, wanted in ENABLED_UNITS.items()
            for unit in wanted
        },
    }
    return {path: PackedFile(b"", link=target) for path, target in links.items()}


def _tree(folder: Path, target: PurePosixPath) -> dict[PurePosixPath, PackedFile]:
    """Files of a source folder; a script (first bytes ``#!``) is executable, whatever the checkout says."""
    files = {}
    for path in sorted(folder.rglob("*")):
        place = target / path.relative_to(folder)
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            files[place] = PackedFile(content, 0o755 if content.startswith(b"#!") else 0o644)
    return files


def _services(folder: Path) -> dict[PurePosixPath, PackedFile]:
    """Services and, in ``config/``, their settings, where qrexec looks for them."""
    files = {}
    for path, file in _tree(folder, PurePosixPath()).items():
        if path.parts[0] == "config":
            files["etc/qubes/rpc-config" / path.relative_to("config")] = file
        else:
            files["etc/qubes-rpc" / path] = file
    return files


def agent_package(sources: Path = SOURCES) -> Package:
    """The package ``insula-agent``, from the sources this program runs from."""
    files = {
        **_python_files(sources, "insula_agent"),
        **_python_files(sources, "insula_proto"),
        **_tree(sources / "insula_agent" / "rootfs", PurePosixPath()),
        **_services(sources / "insula_agent" / "rpc"),
        **_tree(sources / "insula_agent" / "bin", PurePosixPath("usr/bin")),
        **_links(),
    }
    # sudo refuses files that others may read or write more than this.
    for path in list(files):
        if path.parent == PurePosixPath("etc/sudoers.d"):
            files[path] = PackedFile(files[path].content, 0o440)
    return Package(
        "insula-agent",
        __version__,
        {
            "Section": "admin",
            "Depends": "python3 (>= 3.9), systemd, udev, e2fsprogs, util-linux, kmod, iproute2",
            "Description": "makes this system a qube of Insula\n Identity, private storage and commands from the host.",
        },
        files,
        {"postinst": _COMPILE, "prerm": _CLEAN, "triggers": _TRIGGERS},
    )


def boot_package() -> Package:
    """The package ``insula-boot``: takes the place of what a qube has no use for.

    Initramfs images are made elsewhere, so kernels need no generator. There is no graphics chip, so Mesa needs no
    drivers, with their compiler 200 MB; who wants OpenGL by the processor installs ``libgl1-mesa-dri``. PulseAudio is
    for programs that speak its protocol, as nearly all do: others need ``libasound2-plugins``, which comes with all of
    FFmpeg, 160 MB more.
    """
    return Package(
        "insula-boot",
        "1",
        {
            "Section": "kernel",
            "Provides": "libasound2-plugins, libgl1-mesa-dri, linux-initramfs-tool",
            "Conflicts": "linux-initramfs-tool",
            "Description": "qubes are started by their host\n Kernel and initramfs come from the host side.",
        },
        {},
        {},
    )


def build_package(package: Package, folder: Path) -> Path:
    """Write the package into ``folder`` and return its path.

    :raise Unbuildable: dpkg-deb is missing. :raise BuildFailed: it refused.
    """
    if shutil.which("dpkg-deb") is None:
        raise Unbuildable("dpkg-deb is missing; install the package dpkg")
    target = folder / package.file_name
    with TemporaryDirectory(dir=folder, prefix=".package-") as temporary:
        tree = Path(temporary) / "tree"
        tree.mkdir()
        _lay_out(package, tree)
        part = Path(temporary) / package.file_name
        result = subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", "-Zxz", str(tree), str(part)],
            env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=DPKG_TIMEOUT_S,
        )
        if result.returncode != 0:
            raise BuildFailed(f"dpkg-deb refused {package.name}", result.stderr)
        part.chmod(0o644)
        part.replace(target)
    return target


def _lay_out(package: Package, tree: Path) -> None:
    for path, file in package.files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.link:
            place.symlink_to(file.link)
        else:
            place.write_bytes(file.content)
            place.chmod(file.mode)
    control = tree / "DEBIAN"
    control.mkdir()
    fields = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": "all",
        "Maintainer": MAINTAINER,
        "Priority": "optional",
        **package.fields,
    }
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()), encoding="utf-8")
    # What lies in /etc is the user's to change; dpkg keeps such changes.
    conffiles = [f"/{path}\n" for path, file in package.files.items() if path.parts[0] == "etc" and not file.link]
    if conffiles:
        (control / "conffiles").write_text("".join(conffiles), encoding="utf-8")
    for name, text in package.scripts.items():
        (control / name).write_text(text, encoding="utf-8")
        (control / name).chmod(0o755 if text.startswith("#!") else 0o644)
    for folder, names, others in os.walk(tree):
        for name in [*names, *others]:
            os.utime(Path(folder) / name, (EPOCH, EPOCH), follow_symlinks=False)
        if folder != str(control):
            Path(folder).chmod(0o755)
    control.chmod(0o755)
    os.utime(tree, (EPOCH, EPOCH))
