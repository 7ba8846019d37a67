"""The process that leads a machine to the host's network: its command line, and the real one for a moment."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from insula.hal.errors import DriverError
from insula.hal.qemu import outside
from insula.hal.qemu.outside import NOTE, is_joined, join, passt_argv
from insula.hal.qemu.process import ProcessIdentity

LIMIT_S = 10.0


def pid_in(folder: Path) -> int:
    return int(json.loads((folder / NOTE).read_text())["pid"])


async def until_ended(folder: Path) -> None:
    """Ended, and reaped by the daemon whose child it is."""
    async with asyncio.timeout(LIMIT_S):
        while Path(f"/proc/{pid_in(folder)}").exists():
            await asyncio.sleep(0.01)
    assert not is_joined(folder)


def test_nothing_leads_in_and_the_gateway_is_not_the_host() -> None:
    argv = tuple(passt_argv("passt", 7, None))
    assert "--no-map-gw" in argv
    for option in ("--tcp-ports", "--udp-ports"):
        assert argv[argv.index(option) + 1] == "none"
    assert argv[argv.index("--fd") + 1] == "7"
    assert "--runas" not in argv


def test_under_a_root_daemon_it_is_the_qubes_user() -> None:
    argv = tuple(passt_argv("passt", 7, 0x70000005))
    assert argv[argv.index("--runas") + 1] == "1879048197:1879048197"


async def test_it_runs_as_long_as_the_machines_end_is_open_and_is_known_to_a_later_daemon(tmp_path: Path) -> None:
    machine, cable = socket.socketpair()
    assert not is_joined(tmp_path)
    with cable:
        await join(tmp_path, cable, None)
    assert is_joined(tmp_path)
    machine.close()
    await until_ended(tmp_path)


async def test_it_sees_no_file_of_the_host(tmp_path: Path) -> None:
    machine, cable = socket.socketpair()
    with machine, cable:
        await join(tmp_path, cable, None)
        assert list(Path(f"/proc/{pid_in(tmp_path)}/root").iterdir()) == []
    await until_ended(tmp_path)


async def test_one_that_ends_at_once_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "passt"
    program.write_text("#!/bin/sh\necho no way out >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(outside.shutil, "which", lambda _: str(program))
    machine, cable = socket.socketpair()
    with machine, cable, pytest.raises(DriverError) as caught:
        await join(tmp_path, cable, None)
    assert "no way out" in caught.value.detail
    assert not is_joined(tmp_path)


async def test_missing_program_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside.shutil, "which", lambda _: None)
    machine, cable = socket.socketpair()
    with machine, cable, pytest.raises(DriverError, match="install the Debian package passt"):
        await join(tmp_path, cable, None)


@pytest.mark.parametrize("note", ["", "{}", "[]", "1 2", '{"pid": 1, "start_ticks": 0, "boot_id": "x"}'])
def test_note_that_names_no_living_process_is_none(tmp_path: Path, note: str) -> None:
    (tmp_path / NOTE).write_text(note)
    assert not is_joined(tmp_path)


def test_another_process_under_the_noted_number_is_not_it(tmp_path: Path) -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    (tmp_path / NOTE).write_text(json.dumps({**identity.record(), "start_ticks": 1}))
    assert not is_joined(tmp_path)
