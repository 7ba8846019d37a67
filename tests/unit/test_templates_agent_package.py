"""The agent's Debian package: what is in it, as dpkg-deb sees it, and that equal sources give equal bytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from insula.templates.agent_package import (
    ENABLED_UNITS,
    LIBRARY,
    PORT_SERVICES,
    SAME_SERVICES,
    agent_package,
    boot_package,
    build_package,
)
from insula_agent.plans import OWN_SCRIPTS, is_shell_script
from insula_proto.services import Executable, TcpService, locate, parse_call


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A small stand-in for the sources."""
    folder = tmp_path / "src"
    for name, text in {
        "insula_agent/main.py": "x = 1\n",
        "insula_agent/__pycache__/main.pyc": "",
        "insula_agent/rootfs/etc/sudoers.d/insula": "user ALL=(ALL) ALL\n",
        "insula_agent/rootfs/usr/lib/systemd/system/a.service": "[Unit]\n",
        "insula_agent/bin/a-command": "#!/bin/sh\n",
        "insula_agent/rpc/test.Service": "#!/bin/sh\n",
        "insula_agent/rpc/config/test.Service": "force-user='root'\n",
        "insula_proto/mux.py": "y = 2\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(package: Path) -> dict[str, str]:
    """Path → permissions and owner."""
    listing = subprocess.run(
        ["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    fields = [line.split() for line in listing.splitlines()]
    return {words[5]: f"{words[0]} {words[1]}" for words in fields}


def test_files_are_where_the_guest_looks_for_them(sources: Path, tmp_path: Path) -> None:
    found = contents(build_package(agent_package(sources), tmp_path))
    assert found[f"./{LIBRARY}/insula_agent/main.py"] == "-rw-r--r-- root/root"
    assert found[f"./{LIBRARY}/insula_proto/mux.py"] == "-rw-r--r-- root/root"
    assert found["./etc/qubes-rpc/test.Service"] == "-rwxr-xr-x root/root"
    assert found["./usr/bin/a-command"] == "-rwxr-xr-x root/root"
    assert found["./etc/qubes/rpc-config/test.Service"] == "-rw-r--r-- root/root"
    assert found["./etc/sudoers.d/insula"] == "-r--r----- root/root"
    assert not [path for path in found if "pycache" in path or "rootfs" in path]


def test_equal_sources_give_equal_bytes(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = build_package(agent_package(sources), tmp_path / "one")
    (sources / "insula_agent/main.py").touch()
    two = build_package(agent_package(sources), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert one.name.startswith("insula-agent_")
    assert one.name.endswith("_all.deb")


def test_changed_source_changes_the_digest(sources: Path) -> None:
    before = agent_package(sources).digest()
    assert agent_package(sources).digest() == before
    (sources / "insula_proto/mux.py").write_text("y = 3\n")
    assert agent_package(sources).digest() != before


def test_real_agent_is_packed_whole() -> None:
    files = {str(path) for path in agent_package().files}
    assert {
        f"{LIBRARY}/insula_agent/boot.py",
        f"{LIBRARY}/insula_agent/identity.py",
        f"{LIBRARY}/insula_proto/qubesdb.py",
        "usr/lib/systemd/system/insula-agent.service",
        "usr/lib/systemd/system/sysinit.target.wants/insula-agent.service",
    } <= files


def test_wheel_brings_the_same_agent(tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert agent_package(tmp_path / "installed").digest() == agent_package().digest()


@pytest.mark.parametrize(("wanting", "unit"), [(w, unit) for w, units in ENABLED_UNITS.items() for unit in units])
def test_enabled_unit_exists_and_says_who_wants_it(wanting: str, unit: str) -> None:
    text = agent_package().files[PurePosixPath("usr/lib/systemd/system") / unit].content.decode()
    assert f"WantedBy={wanting}" in text


@pytest.mark.parametrize(("argument", "service"), [("+8080", "qubes.ConnectTCP"), ("", "qubes.UpdatesProxy")])
def test_service_that_is_a_port_is_one_to_the_agent(argument: str, service: str, tmp_path: Path) -> None:
    (tmp_path / service).symlink_to(PORT_SERVICES[service])
    call = parse_call(f"QUBESRPC {service}{argument} work".encode())
    assert call is not None
    assert isinstance(locate(call, str(tmp_path)), TcpService)


@pytest.mark.parametrize("name", SAME_SERVICES)
def test_service_that_is_another_one_is_that_script_to_the_login_shell(name: str, tmp_path: Path) -> None:
    files, folder = agent_package().files, PurePosixPath("etc/qubes-rpc")
    link = files[folder / name].link
    (tmp_path / name).symlink_to(link)
    (tmp_path / link).write_bytes(files[folder / link].content)
    (tmp_path / link).chmod(0o755)
    call = parse_call(f"QUBESRPC {name}+echo+a-20b work".encode())
    assert call is not None
    found = locate(call, str(tmp_path))
    assert isinstance(found, Executable)
    assert found.path == str(tmp_path / name)
    assert f"/{folder}/{name}" in OWN_SCRIPTS
    assert is_shell_script(found.path)
    for words in ([found.path], ["/bin/sh", "-c", '. "$0"', found.path]):
        done = subprocess.run([*words, "echo+a-20b"], capture_output=True, check=True, timeout=120)
        assert done.stdout == b"a b\n"


def test_boot_package_takes_the_place_of_what_a_qube_has_no_use_for(tmp_path: Path) -> None:
    package = build_package(boot_package(), tmp_path)
    provides = subprocess.run(
        ["dpkg-deb", "--field", str(package), "Provides"], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert provides.strip() == "libasound2-plugins, libgl1-mesa-dri, linux-initramfs-tool"


def test_building_leaves_nothing_but_the_package(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    package = build_package(agent_package(sources), folder)
    assert list(folder.iterdir()) == [package]
