"""What a qube tells its host after packages changed: the scripts as they are run, the host played by a file."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "src" / "insula_agent"
SCRIPTS = AGENT / "rootfs" / "etc" / "qubes" / "post-install.d"


class Qube:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "etc").mkdir()
        for name in ("qubesdb-write", "qrexec-client-vm"):
            tool = folder / "bin" / name
            tool.write_text(f'#!/bin/sh\necho {name} >>"{folder}/said"\nprintf "%s\\n" "$@" >>"{folder}/said"\n')
            tool.chmod(0o755)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(folder / "db"))
        self.env = {
            "PATH": f"{folder}/bin:{AGENT}/bin:/usr/bin:/bin",
            "QUBESDB_SOCKET": str(folder / "db"),
            "INSULA_OS_RELEASE": str(folder / "etc/os-release"),
            "INSULA_SERVICES": str(folder / "etc"),
        }

    def run(self, *argv: str | Path) -> int:
        return subprocess.run(argv, env=self.env, check=False, timeout=120, stderr=subprocess.DEVNULL).returncode

    @property
    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def qube(tmp_path: Path) -> Iterator[Qube]:
    made = Qube(tmp_path)
    yield made
    made.socket.close()


def test_notes_are_one_write_and_commit_is_a_call(qube: Qube) -> None:
    assert qube.run("qvm-features-request", "os=Linux", "--commit", "supported-rpc.a=1", "x=a=b c") == 0
    assert qube.said == [
        "qubesdb-write",
        *("/features-request/os", "Linux", "/features-request/supported-rpc.a", "1", "/features-request/x", "a=b c"),
        *("qrexec-client-vm", "dom0", "qubes.FeaturesRequest"),
    ]


@pytest.mark.parametrize("argument", ["name", "-x", "--help"])
def test_what_is_no_note_is_not_written(qube: Qube, argument: str) -> None:
    assert qube.run("qvm-features-request", "os=Linux", argument) == 2
    assert qube.said == []


def test_without_an_agent_nobody_is_told(qube: Qube) -> None:
    qube.env["QUBESDB_SOCKET"] = str(qube.folder / "none")
    assert qube.run("qvm-features-request", "--commit", "os=Linux") == 0
    assert qube.said == []


def test_system_and_its_services_are_told(qube: Qube) -> None:
    (qube.folder / "etc/os-release").write_text("NAME='Debian'\nID=debian\nID_LIKE=\"a b\"\nVERSION_ID='12'\nX=$(id)\n")
    for name in ("qubes.A", "qubes.B", "qubes.B+arg"):
        (qube.folder / "etc" / name).touch(mode=0o755)
    (qube.folder / "etc/qubes.Config").touch(mode=0o644)
    (qube.folder / "etc/qubes.Port").symlink_to("/dev/tcp/127.0.0.1")
    assert qube.run(SCRIPTS / "10-insula-features.sh") == 0
    words = qube.said[1:]
    told = dict(zip(words[::2], words[1::2], strict=True))
    assert told == {
        f"/features-request/{name}": value
        for name, value in {
            "qrexec": "1", "vmexec": "1", "os": os.uname().sysname, "os-distribution": "debian",
            "os-distribution-like": "a b", "os-version": "12", "supported-rpc.qubes.A": "1",
            "supported-rpc.qubes.B": "1", "supported-rpc.qubes.Port": "1",
        }.items()
    }  # fmt: skip


def test_commit_comes_last(qube: Qube) -> None:
    assert max(path.name for path in SCRIPTS.iterdir()) == "90-insula-commit.sh"
    assert qube.run(SCRIPTS / "90-insula-commit.sh") == 0
    assert qube.said == ["qrexec-client-vm", "dom0", "qubes.FeaturesRequest"]


def test_applications_are_told_where_what_is_installed_stays(qube: Qube) -> None:
    service = qube.folder / "etc/qubes.GetAppmenus"
    service.write_text("#!/bin/sh\necho a.desktop:Name=x\n")
    service.chmod(0o755)
    (qube.folder / "bin/qrexec-client-vm").write_text(
        f'#!/bin/sh\necho "$@" >>"{qube.folder}/said"; cat >>"{qube.folder}/said"\n'
    )
    script = SCRIPTS / "50-insula-applications.sh"
    qube.env["QREXEC_AGENT_SOCKET"] = str(qube.folder / "db")
    assert qube.run(script) == 0
    assert qube.said == []
    qube.env["INSULA_UPDATEABLE"] = "True"
    assert qube.run(script) == 0
    assert qube.said == ["dom0 qubes.SyncAppMenus", "a.desktop:Name=x"]


def test_what_is_known_of_fonts_is_kept_by_the_tool_or_without_it(qube: Qube) -> None:
    script = SCRIPTS / "20-insula-fonts.sh"
    cache = qube.folder / "cache/fontconfig"
    qube.env["INSULA_FONT_CACHE"] = str(cache)
    (qube.folder / "bin/python3").write_text(f'#!/bin/sh\necho "$1 $2" >>"{qube.folder}/said"\n')
    (qube.folder / "bin/python3").chmod(0o755)
    qube.env["PATH"] = f"{qube.folder}/bin:{qube.folder}/sbin"
    for tool in ("sh", "mkdir"):
        (qube.folder / "bin" / tool).symlink_to(f"/bin/{tool}")
    assert qube.run("sh", script) == 0
    assert (qube.said, cache.exists()) == ([], False)
    cache.parent.mkdir()
    assert qube.run("sh", script) == 0
    assert cache.is_dir()
    assert qube.said == ["-I -c"]
    (qube.folder / "bin/fc-cache").write_text(f'#!/bin/sh\necho fc-cache "$@" >>"{qube.folder}/said"\n')
    (qube.folder / "bin/fc-cache").chmod(0o755)
    assert qube.run("sh", script) == 0
    assert qube.said == ["-I -c", "fc-cache --system-only"]
