"""The import program as the published tools run it, against the real server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.cli import volume_import
from insula.testing.admin_daemon import AdminDaemon, admin_daemon
from insula_proto.admin import Failure, ResponseDecoder, Success

SIZE = 3 * 1024 * 1024
RUN = "import sys; from insula.cli.volume_import import main; sys.argv = sys.argv[1:]; main()"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


async def run(folder: Path, method: str, data: bytes, *, volume: str = "private", source: str = "dom0") -> bytes:
    """Run it as a program of its own; what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, f"/etc/qubes-rpc/{method}", volume),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={
            "PYTHONPATH": os.pathsep.join(sys.path),
            "INSULA_RUNTIME_DIR": str(folder),
            "QREXEC_REMOTE_DOMAIN": source,
            "QREXEC_REQUESTED_TARGET": "work",
        },
    )
    answer, _ = await process.communicate(data)
    return answer


def decoded(answer: bytes) -> object:
    decoder = ResponseDecoder()
    decoder.receive(answer)
    return decoder.finish()


@pytest.mark.parametrize("source", ["work", "", "dom0 "])
def test_caller_other_than_dom0_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="dom0"):
        volume_import.request_head(
            ["/x/admin.vm.volume.Import", "private"],
            {"QREXEC_REMOTE_DOMAIN": source, "QREXEC_REQUESTED_TARGET": "work"},
        )


@pytest.mark.parametrize(
    "argv", [["insula-volume-import", "private"], ["admin.vm.Remove", "x"], ["admin.vm.volume.Import"]]
)
def test_other_names_and_arguments_are_refused(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="linked as"):
        volume_import.request_head(argv, {"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "work"})


@pytest.mark.parametrize(("volume", "target"), [("a b", "work"), ("private", ""), ("private", "a\0b"), ("\n", "work")])
def test_volume_or_qube_that_would_break_the_request_line_is_refused(volume: str, target: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        volume_import.request_head(
            ["admin.vm.volume.Import", volume], {"QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": target}
        )


def test_socket_is_the_published_one_unless_another_is_named() -> None:
    assert volume_import.socket_path({}) == Path("/var/run/qubesd.sock")
    assert volume_import.socket_path({"INSULA_RUNTIME_DIR": "/r"}) == Path("/r/insulad.sock")


async def test_import_with_size_replaces_the_content(daemon: AdminDaemon, tmp_path: Path) -> None:
    (tmp_path / "insulad.sock").symlink_to(daemon.socket)
    data = os.urandom(SIZE)
    answer = await run(tmp_path, "admin.vm.volume.ImportWithSize", f"{SIZE}\n".encode() + data)
    assert decoded(answer) == Success(b"")
    volume = daemon.store.system.get("work").volumes["private"]
    assert volume.size == SIZE
    assert b"".join([part async for part in daemon.engine.pool("default").export(volume)]) == data


async def test_refusal_is_passed_on_although_data_are_still_to_come(daemon: AdminDaemon, tmp_path: Path) -> None:
    (tmp_path / "insulad.sock").symlink_to(daemon.socket)
    answer = decoded(await run(tmp_path, "admin.vm.volume.ImportWithSize", b"512\n" + bytes(8 * SIZE)))
    assert isinstance(answer, Failure)
    assert "too much data" in answer.message
    answer = decoded(await run(tmp_path, "admin.vm.volume.Import", bytes(512), volume="none"))
    assert isinstance(answer, Failure)
    assert answer.type == "PermissionDenied"


async def test_no_daemon_is_an_error_the_tools_can_show(tmp_path: Path) -> None:
    answer = decoded(await run(tmp_path, "admin.vm.volume.Import", b""))
    assert isinstance(answer, Failure)
    assert "No daemon answers" in answer.message


async def test_wrong_call_prints_no_answer(daemon: AdminDaemon, tmp_path: Path) -> None:
    (tmp_path / "insulad.sock").symlink_to(daemon.socket)
    assert await run(tmp_path, "admin.vm.volume.Import", bytes(512), source="work") == b""
