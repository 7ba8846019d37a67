from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from insula.hal.driver import Disk, MachineSpec
from insula.hal.errors import DriverError
from insula.hal.qemu.descriptors import (
    BOOT_HEAD,
    QMP_SOCKET,
    STATUS_FILE,
    MachineFiles,
    StatusNote,
    connect,
    is_in_use,
    read_status,
    remove_runtime_files,
    socket_names,
    unlink_thrown_away,
)
from insula.hal.qemu.seed_files import FileNote, LoadedSeed, Manifest
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat, new_key

ANOTHER_UID = 0x70000001


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    for name in ("kernel", "initrd", "top.qcow2", "base.raw"):
        (tmp_path / name).write_bytes(name.encode())
    runtime_dir = tmp_path / ("deep-" * 30)
    runtime_dir.mkdir()
    layers = (BlockLayer(tmp_path / "top.qcow2", LayerFormat.QCOW2), BlockLayer(tmp_path / "base.raw", LayerFormat.RAW))
    return MachineSpec(
        name="one",
        uuid=uuid4(),
        qid=1,
        memory_mib=64,
        vcpus=1,
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        cmdline="",
        disks=(Disk("root", BlockSource(layers, MIB, writable=True)),),
        runtime_dir=runtime_dir,
    )


def access(fd: int) -> int:
    return int(Path(f"/proc/self/fdinfo/{fd}").read_text().split("flags:")[1].split()[0], 8) & os.O_ACCMODE


def open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_top_is_opened_for_writing_and_lower_layers_for_reading(spec: MachineSpec) -> None:
    with MachineFiles(spec, None) as files:
        (top, base) = files.descriptors.disks[0].layers
        assert (access(top), access(base)) == (os.O_RDWR, os.O_RDONLY)


def test_read_only_disk_is_opened_for_reading(spec: MachineSpec) -> None:
    disk = spec.disks[0]
    with MachineFiles(
        replace(spec, disks=(replace(disk, source=replace(disk.source, writable=False)),)), None
    ) as files:
        assert [access(fd) for fd in files.descriptors.disks[0].layers] == [os.O_RDONLY] * 2


def test_all_descriptors_are_closed_at_the_end(spec: MachineSpec) -> None:
    before = open_count()
    with MachineFiles(spec, ANOTHER_UID):
        assert open_count() > before
    assert open_count() == before


def test_sockets_listen_at_any_depth_and_accept_before_anybody_serves(spec: MachineSpec) -> None:
    assert len(str(spec.runtime_dir)) > 107
    with MachineFiles(spec, None):
        for name in socket_names(spec):
            connect(spec.runtime_dir / name).close()


def test_leftover_sockets_of_a_dead_vmm_are_replaced(spec: MachineSpec) -> None:
    with MachineFiles(spec, None):
        pass
    with MachineFiles(spec, None):
        connect(spec.runtime_dir / QMP_SOCKET).close()


def test_living_vmm_in_the_folder_is_refused_and_left_alone(spec: MachineSpec) -> None:
    with MachineFiles(spec, None):
        for _ in range(3):
            with pytest.raises(DriverError, match="already"), MachineFiles(spec, None):
                pass
        assert (spec.runtime_dir / QMP_SOCKET).exists()


@pytest.mark.parametrize("missing", ["kernel", "initrd", "base.raw", "top.qcow2"])
def test_missing_file_leaves_no_socket_descriptor_or_unlinked_layer(spec: MachineSpec, missing: str) -> None:
    (spec.kernel.parent / missing).unlink()
    disk = spec.disks[0]
    thrown_away = replace(spec, disks=(replace(disk, source=replace(disk.source, unlink_top=True)),))
    before = open_count()
    with pytest.raises(DriverError, match=missing), MachineFiles(thrown_away, None):
        pass
    assert open_count() == before
    assert list(spec.runtime_dir.iterdir()) == []
    assert (spec.kernel.parent / "top.qcow2").exists() is (missing != "top.qcow2")


def test_fifo_or_folder_in_place_of_a_disk_is_refused_without_waiting(spec: MachineSpec) -> None:
    top = spec.disks[0].source.layers[0].path
    top.unlink()
    os.mkfifo(top)
    with pytest.raises(DriverError, match="neither a file"), MachineFiles(spec, None):
        pass


def test_empty_kernel_is_refused(spec: MachineSpec) -> None:
    spec.kernel.write_bytes(b"")
    with pytest.raises(DriverError, match="no kernel"), MachineFiles(spec, None):
        pass


def test_private_kernel_is_copied_for_another_user_and_shared_where_all_may_read(spec: MachineSpec) -> None:
    spec.kernel.chmod(0o600)
    spec.initrd.chmod(0o644)
    with MachineFiles(spec, ANOTHER_UID) as files:
        kernel, initrd = files.descriptors.kernel, files.descriptors.initrd
        assert os.pread(kernel, 100, 0) == b"kernel"
        assert os.fstat(kernel).st_mode & stat.S_IROTH
        assert os.fstat(kernel).st_ino != spec.kernel.stat().st_ino
        assert os.fstat(initrd).st_ino == spec.initrd.stat().st_ino


def test_thrown_away_layer_is_unlinked_and_stays_open(spec: MachineSpec) -> None:
    disk = spec.disks[0]
    thrown_away = replace(spec, disks=(replace(disk, source=replace(disk.source, unlink_top=True)),))
    with MachineFiles(thrown_away, None) as files:
        assert not disk.source.layers[0].path.exists()
        assert os.pread(files.descriptors.disks[0].layers[0], 100, 0) == b"top.qcow2"


# Memory, seeds and keys


def test_key_can_be_read_by_the_vmm_until_it_is_wiped(spec: MachineSpec) -> None:
    key = new_key()
    disk = spec.disks[0]
    before = open_count()
    with MachineFiles(replace(spec, disks=(replace(disk, source=replace(disk.source, key=key)),)), None) as files:
        fd = files.descriptors.disks[0].key
        assert fd is not None
        inherited = os.dup(fd)
    assert os.pread(inherited, 100, 0) == key
    files.keys.wipe()
    files.keys.wipe()
    assert os.pread(inherited, 100, 0) == bytes(len(key))
    os.close(inherited)
    assert open_count() == before


def test_failed_opening_leaves_no_key_or_memory(spec: MachineSpec) -> None:
    disk = spec.disks[0]
    broken = replace(disk, name="x", source=BlockSource((BlockLayer(Path("/absent"), LayerFormat.RAW),), MIB, True))
    keyed = replace(disk, source=replace(disk.source, key=new_key()))
    before = open_count()
    for disks in ((keyed, broken), (keyed,)):
        spec.initrd.write_bytes(b"" if disks == (keyed,) else b"initrd")
        with (
            pytest.raises(DriverError),
            MachineFiles(replace(spec, disks=disks, freezable=True), None),
        ):
            pass
        assert open_count() == before


def test_memory_of_a_freezable_machine_has_its_size_for_ever_and_outlives_the_block(spec: MachineSpec) -> None:
    with MachineFiles(replace(spec, freezable=True), None) as files:
        assert files.memory == files.descriptors.memory
    assert files.memory is not None
    assert os.fstat(files.memory).st_size == spec.memory_mib * MIB
    with pytest.raises(PermissionError):
        os.ftruncate(files.memory, 0)
    os.close(files.memory)


def test_fork_gets_the_seed_a_stub_of_the_kernel_and_keeps_its_thrown_away_layers(spec: MachineSpec) -> None:
    memory, state = os.memfd_create("memory"), os.memfd_create("state")
    os.write(state, b"state")
    seed = LoadedSeed(Manifest("7.2", "", FileNote(0, ""), FileNote(5, "")), memory, state)
    spec.kernel.write_bytes(bytes(range(256)) * 1024)
    disk = spec.disks[0]
    thrown_away = replace(spec, disks=(replace(disk, source=replace(disk.source, unlink_top=True)),))
    before = open_count()
    with MachineFiles(thrown_away, ANOTHER_UID, seed) as files:
        fds = files.descriptors
        assert fds.memory is not None
        assert fds.state is not None
        assert os.read(fds.state, 100) == b"state"
        assert os.fstat(fds.kernel).st_size == os.fstat(fds.initrd).st_size == BOOT_HEAD
        assert disk.source.layers[0].path.exists()
    assert open_count() == before
    unlink_thrown_away(thrown_away)
    assert not disk.source.layers[0].path.exists()
    seed.close()


# The note of what runs


def test_status_note_is_complete_or_nothing(spec: MachineSpec) -> None:
    note = spec.runtime_dir / STATUS_FILE
    with MachineFiles(spec, None) as files:
        assert read_status(spec.runtime_dir) is None
        files.status.write(json.dumps({"child-pid": 42, "net-namespace": 1}).encode() + b"\n")
    assert read_status(spec.runtime_dir) == StatusNote(str(spec.uuid), 42)
    for text in ("", "uuid", "uuid\n{}", "uuid\n[]", 'uuid\n{"child-pid": "x"}', "\n\n", 'uuid\n{"child-pid"'):
        note.write_text(text)
        assert read_status(spec.runtime_dir) is None


def test_runtime_files_are_removed_but_for_logs_and_others(spec: MachineSpec) -> None:
    others = {"console.log", "console.log.1", "rpc.sock"}
    for name in others:
        (spec.runtime_dir / name).write_bytes(b"")
    with MachineFiles(spec, None):
        pass
    remove_runtime_files(spec.runtime_dir)
    assert {path.name for path in spec.runtime_dir.iterdir()} == others


def test_a_start_is_under_way_while_an_heir_of_its_status_file_lives(tmp_path: Path) -> None:
    """MC-62: a daemon that is killed between fork and note leaves a start that the next one must wait for."""
    assert not is_in_use(tmp_path)
    with (tmp_path / STATUS_FILE).open("wb") as status:
        fcntl.flock(status, fcntl.LOCK_SH)
        heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[status.fileno()])
    assert is_in_use(tmp_path)
    heir.communicate()
    assert not is_in_use(tmp_path)
