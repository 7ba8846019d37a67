"""The process that leads a machine to the host's network: started, watched, found again, and what it can reach."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from insula.hal.errors import DriverError
from insula.hal.qemu import outside
from insula.hal.qemu.outside import NOTE, PULSE, WayOut, join
from insula.hal.qemu.process import HostUser, ProcessIdentity
from insula.net import resolver

LIMIT_S = 120.0
UID = 0x7000_0007


async def started(folder: Path, user: HostUser | None = None) -> tuple[socket.socket, WayOut]:
    machine, cable = socket.socketpair()
    with cable:
        return machine, await join(folder, cable.fileno(), user)


async def lost(way: WayOut) -> str:
    async with asyncio.timeout(LIMIT_S):
        return await way.lost()


def status_of(way: WayOut) -> dict[str, list[str]]:
    lines = Path(f"/proc/{way.identity.pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


async def test_it_runs_as_long_as_the_machines_end_is_open_and_is_known_to_a_later_daemon(tmp_path: Path) -> None:
    assert WayOut.find(tmp_path) is None
    machine, way = await started(tmp_path)
    later = WayOut.find(tmp_path)
    assert later is not None
    assert later.identity == way.identity
    machine.close()
    assert await lost(way) == await lost(later) == "it ended"
    assert WayOut.find(tmp_path) is None


async def test_its_sandbox(tmp_path: Path) -> None:
    user = HostUser(UID) if os.geteuid() == 0 else None
    machine, way = await started(tmp_path, user)
    with machine:
        root = Path(f"/proc/{way.identity.pid}/root")
        assert [str(path.relative_to(root)) for path in root.rglob("*")] == ["etc", "etc/resolv.conf"]
        status = status_of(way)
        assert status["Seccomp"] == ["2"]
        assert status["NoNewPrivs"] == ["1"]
        assert {status[key][0] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NSpid"][-1] == "1"
        assert set(status["Uid"]) == {str(UID if user else os.geteuid())}
        await way.end()


async def test_one_that_hangs_is_noticed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-118"""
    monkeypatch.setattr(outside, "SILENCE_LIMIT_S", 3.0)
    monkeypatch.setattr(outside, "WATCH_S", 0.1)
    machine, way = await started(tmp_path)
    with machine:
        os.kill(way.identity.pid, signal.SIGSTOP)
        assert await lost(way) == "it hangs"
        await way.end()
        assert ProcessIdentity.of(way.identity.pid) != way.identity


async def test_another_name_server_of_the_host_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "WATCH_S", 0.1)
    machine, way = await started(tmp_path)
    with machine:
        watching = asyncio.create_task(lost(way))
        await asyncio.sleep(0.3)
        assert not watching.done()
        monkeypatch.setattr(resolver, "host_server", lambda: "192.0.2.99")
        assert await watching == "the host asks another name server"
        await way.end()


async def test_one_that_cannot_begin_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "_RUN", "import sys; print('no way out', file=sys.stderr); sys.exit(1)")
    machine, cable = socket.socketpair()
    with machine, cable, pytest.raises(DriverError) as caught:
        await join(tmp_path, cable.fileno(), None)
    assert "no way out" in caught.value.detail
    assert WayOut.find(tmp_path) is None


async def test_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "from insula.net import slirp; slirp.LIBRARY = 'libnone.so.0'; "
    monkeypatch.setattr(outside, "_RUN", outside._RUN.replace("from insula", f"{missing}from insula"))
    machine, cable = socket.socketpair()
    with machine, cable, pytest.raises(DriverError) as caught:
        await join(tmp_path, cable.fileno(), None)
    assert "libnone.so.0" in caught.value.detail


async def test_one_that_is_not_in_its_sandbox_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    slow = (
        "import os, sys, time; os.write(int(sys.argv[4]), b'%d\\n' % os.getpid()); "
        f"open({str(told)!r}, 'w').close(); time.sleep(600)"
    )
    monkeypatch.setattr(outside, "_RUN", slow)
    monkeypatch.setattr(outside, "START_LIMIT_S", 1.0)
    popen = outside._popen

    def until_it_has_told(arguments: Sequence[str], descriptors: Sequence[int], output: int) -> subprocess.Popen[bytes]:
        """The time to begin in is that of its sandbox, not that of the interpreter on a busy machine."""
        process = popen(arguments, descriptors, output)
        end = time.monotonic() + LIMIT_S
        while not told.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return process

    monkeypatch.setattr(outside, "_popen", until_it_has_told)
    machine, cable = socket.socketpair()
    with machine:
        with cable, pytest.raises(DriverError, match="within 1 s"):
            await join(tmp_path, cable.fileno(), None)
        # Nobody holds the other end any more.
        machine.settimeout(LIMIT_S)
        assert machine.recv(1) == b""


@pytest.mark.parametrize("note", ["", "{}", "[]", "1 2", '{"pid": 1, "start_ticks": 0, "boot_id": "x"}'])
async def test_note_that_names_no_living_process_is_none(tmp_path: Path, note: str) -> None:
    (tmp_path / NOTE).write_text(note)
    assert WayOut.find(tmp_path) is None


async def test_another_process_under_the_noted_number_is_not_it(tmp_path: Path) -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    (tmp_path / NOTE).write_text(json.dumps({**identity.record(), "start_ticks": 1}))
    assert WayOut.find(tmp_path) is None


async def test_sign_of_life_that_is_gone_is_none(tmp_path: Path) -> None:
    machine, way = await started(tmp_path)
    with machine:
        (tmp_path / PULSE).unlink()
        assert await lost(way) == "it hangs"
        await way.end()
