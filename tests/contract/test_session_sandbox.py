"""What surrounds a running session process, as the host's kernel shows it: the claims of docs/threat-model.md."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.rpc.spawn import SESSION_UID_BASE
from insula.testing.agent import FakeQube, fake_qube

QID = 7
"""Of :class:`FakeQube`."""


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[Path]:
    """/proc folder of a session process whose agent is ready."""
    async with fake_qube(tmp_path) as qube:
        yield innermost(qube)


def innermost(qube: FakeQube) -> Path:
    """The session itself: below one or two processes of bubblewrap."""
    assert qube.session is not None
    pid = str(qube.session.pid)
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        (pid,) = children
    folder = Path("/proc", pid)
    assert b"insula.rpc.session" in (folder / "cmdline").read_bytes()
    return folder


def status(session: Path) -> dict[str, str]:
    lines = (session / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mounts(session: Path) -> dict[str, set[str]]:
    """Mount point → options."""
    lines = [line.split() for line in (session / "mountinfo").read_text().splitlines()]
    return {fields[4]: set(fields[5].split(",")) for fields in lines}


@pytest.mark.parametrize("kind", ["user", "pid", "net", "ipc", "uts", "mnt"])
def test_session_has_its_own_namespace(session: Path, kind: str) -> None:
    assert (session / "ns" / kind).readlink() != Path("/proc/self/ns", kind).readlink()


def test_session_sees_no_process_but_those_of_its_sandbox(session: Path) -> None:
    ours = (session / "ns/pid").readlink()
    seen = list((session / "root/proc").glob("[0-9]*"))
    # Shown only where a host user of its own needs it; else there is no /proc at all.
    assert all((path / "ns/pid").readlink() == ours for path in seen)
    assert len(seen) <= 2


def test_session_has_no_network_interface_but_loopback(session: Path) -> None:
    lines = (session / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_session_sees_nothing_but_programs_and_its_packages(session: Path) -> None:
    """Where Python is installed in somebody's home, the way there is shown and nothing beside it."""
    inside = session / "root"
    assert not {path.name for path in inside.iterdir()} & {"etc", "tmp", "var", "run", "dev", "sys", "boot", "mnt"}
    python = Path(sys.base_prefix).resolve()
    for folder in python.parents:
        if not python.is_relative_to("/usr") and folder != Path("/"):
            assert len(list((inside / folder.relative_to("/")).iterdir())) == 1


def test_session_can_write_to_no_file_system(session: Path) -> None:
    writable = {point for point, options in mounts(session).items() if "rw" in options}
    assert writable <= {"/proc"}


def test_session_runs_as_a_host_user_of_its_own_not_root(session: Path) -> None:
    expected = SESSION_UID_BASE + QID if os.geteuid() == 0 else os.geteuid()
    assert status(session)["Uid"].split() == [str(expected)] * 4
    if os.geteuid() == 0:
        assert status(session)["Gid"].split() == [str(expected)] * 4


def test_session_has_no_capability_and_cannot_gain_one(session: Path) -> None:
    fields = status(session)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


def test_session_holds_three_sockets_of_ours_and_no_file(session: Path) -> None:
    links = [str(path.readlink()) for path in (session / "fd").iterdir()]
    assert [link for link in links if link.startswith("/") and link != "/dev/null"] == []
    # Channel, listener, daemon; the event loop has a pair of its own to wake itself.
    assert len([link for link in links if link.startswith("socket:")]) == 5
