from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from insula.hal.driver import Disk
from insula.hal.errors import DriverError
from insula.hal.qemu.migration import announce_disks, restore_state, save_state
from insula.hal.qemu.monitor import Monitor
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat

Arguments = Mapping[str, object] | None


class ScriptedMonitor(Monitor):
    """Answers each command with the next of its replies, the last one for ever; others with nothing."""

    def __init__(self, replies: Mapping[str, list[object]]) -> None:
        super().__init__("test", lambda _: None)
        self._replies = {command: list(answers) for command, answers in replies.items()}
        self.commands: list[tuple[str, Arguments]] = []

    async def execute(self, command: str, arguments: Arguments = None, limit_s: float = 0) -> object:
        self.commands.append((command, arguments))
        answers = self._replies.get(command, [{}])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def names(self) -> list[str]:
        return [name for name, _ in self.commands]


@pytest.fixture
def state(tmp_path: Path) -> int:
    fd = os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"12345")
    return fd


def disk(name: str, *, writable: bool = True) -> Disk:
    return Disk(name, BlockSource((BlockLayer(Path("/x"), LayerFormat.RAW),), MIB, writable))


async def test_saved_state_ends_where_the_vmm_stopped_writing(state: int) -> None:
    monitor = ScriptedMonitor({"query-migrate": [{"status": "setup"}, {"status": "active"}, {"status": "completed"}]})
    assert await save_state(monitor, state) == 5
    assert monitor.names() == ["getfd", "migrate-set-capabilities", "migrate", *["query-migrate"] * 3]
    os.close(state)


@pytest.mark.parametrize("status", ["failed", "cancelled", "something-new"])
async def test_save_that_ends_otherwise_is_an_error_with_qemus_words(state: int, status: str) -> None:
    monitor = ScriptedMonitor({"query-migrate": [{"status": status, "error-desc": "too much"}]})
    with pytest.raises(DriverError, match=status) as caught:
        await save_state(monitor, state)
    assert caught.value.detail == "too much"
    os.close(state)


async def test_restore_waits_for_the_state_to_be_read() -> None:
    monitor = ScriptedMonitor(
        {"query-status": [{"status": "inmigrate"}, {"status": "inmigrate"}, {"status": "paused"}]}
    )
    await restore_state(monitor, 7)
    assert monitor.commands[0][0] == "migrate-set-capabilities"
    assert monitor.commands[1] == ("migrate-set-parameters", {"announce-rounds": 0})
    assert monitor.commands[2] == ("migrate-incoming", {"uri": "fd:7"})
    assert monitor.names().count("query-status") == 3


@pytest.mark.parametrize("status", ["running", "internal-error", "guest-panicked"])
async def test_restored_machine_that_is_not_paused_is_an_error(status: str) -> None:
    with pytest.raises(DriverError, match=status):
        await restore_state(ScriptedMonitor({"query-status": [{"status": status}]}), 7)


async def test_each_writable_disk_is_announced_with_the_size_it_has() -> None:
    entries = [
        {
            "qdev": f"/machine/peripheral/vd{n}/virtio-backend",
            "inserted": {"node-name": f"node{n}", "image": {"virtual-size": 512 * n}},
        }
        for n in range(3)
    ]
    monitor = ScriptedMonitor({"query-block": [entries]})
    await announce_disks(monitor, (disk("root"), disk("fixed", writable=False), disk("private")))
    assert [arguments for name, arguments in monitor.commands if name == "block_resize"] == [
        {"node-name": "node0", "size": 0},
        {"node-name": "node2", "size": 1024},
    ]


async def test_disk_whose_size_qemu_does_not_tell_is_an_error() -> None:
    with pytest.raises(DriverError, match="vd0"):
        await announce_disks(ScriptedMonitor({"query-block": [[]]}), (disk("root"),))
