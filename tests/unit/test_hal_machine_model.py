from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from insula.hal.driver import Disk, MachineSpec
from insula.hal.hostinfo import HostInfo, Tool
from insula.hal.qemu.accel import KvmNode
from insula.hal.qemu.machine_model import model_digest
from insula.model.block import MIB, BlockLayer, BlockSource, LayerFormat

HOST = HostInfo(
    qemu=Tool("/usr/bin/qemu-system-x86_64", (7, 2)),
    bwrap=Tool("/usr/bin/bwrap", (0, 8)),
    prlimit=Tool("/usr/bin/prlimit", (2, 38)),
    files_limit=1024,
    sandbox_problem="",
    kvm=KvmNode(False, "test"),
    kvm_group=None,
    cpu_count=2,
    cpu_model="a CPU",
    cpu_flags=frozenset({"sse2"}),
    memory_total_mib=8192,
    memory_available_mib=8192,
    iommu_groups=0,
    daemon_is_root=False,
)


def disk(name: str, path: str = "/disk", size: int = MIB, *, writable: bool = True) -> Disk:
    return Disk(name, BlockSource((BlockLayer(Path(path), LayerFormat.RAW),), size, writable))


SPEC = MachineSpec(
    name="work",
    uuid=uuid4(),
    qid=7,
    memory_mib=400,
    vcpus=2,
    kernel=Path("/kernels/vmlinuz"),
    initrd=Path("/kernels/initrd"),
    cmdline="quiet",
    disks=(disk("root"), disk("kernel", writable=False)),
    runtime_dir=Path("/run/work"),
)


def test_what_is_each_machines_own_is_left_out() -> None:
    top = BlockLayer(Path("/top"), LayerFormat.QCOW2)
    other_root = Disk("root", BlockSource((top, *SPEC.disks[0].source.layers), 5 * MIB, True, unlink_top=True))
    for spec in (
        replace(SPEC, name="other", uuid=uuid4(), qid=8, runtime_dir=Path("/run/other")),
        replace(SPEC, freezable=True),
        replace(SPEC, seed=Path("/seed")),
        replace(SPEC, disks=(other_root, SPEC.disks[1])),
    ):
        assert model_digest(spec, HOST) == model_digest(SPEC, HOST)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, memory_mib=401),
        replace(SPEC, vcpus=1),
        replace(SPEC, cmdline="quiet "),
        replace(SPEC, kernel=Path("/kernels/other")),
        replace(SPEC, initrd=Path("/kernels/other")),
        replace(SPEC, channels=("insula.rpc",)),
        replace(SPEC, disks=SPEC.disks[:1]),
        replace(SPEC, disks=SPEC.disks[::-1]),
        replace(SPEC, disks=(disk("root"), disk("kernel"))),
        replace(SPEC, disks=(disk("root"), disk("kernel", size=2 * MIB, writable=False))),
    ],
)
def test_what_the_guest_sees_is_part_of_it(spec: MachineSpec) -> None:
    assert model_digest(spec, HOST) != model_digest(SPEC, HOST)


def test_cpu_of_the_host_matters_where_guests_run_on_it() -> None:
    real = replace(HOST, kvm=KvmNode(True), cpu_flags=frozenset({"vmx", "sse2"}))
    assert model_digest(SPEC, real) != model_digest(SPEC, HOST)
    assert model_digest(SPEC, replace(real, cpu_flags=frozenset({"vmx", "sse2", "avx"}))) != model_digest(SPEC, real)
    assert model_digest(SPEC, replace(HOST, cpu_flags=frozenset())) == model_digest(SPEC, HOST)
