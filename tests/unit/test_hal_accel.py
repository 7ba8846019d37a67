from __future__ import annotations

import pytest

from insula.hal.qemu.accel import EMULATED_CPU, TCG_CACHE_MIB, Accelerator, AcceleratorName, KvmNode, choose


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_usable_node_and_flag_give_kvm(flag: str) -> None:
    assert choose(KvmNode(True), {"fpu", flag}).name is AcceleratorName.KVM


def test_usable_node_without_flag_gives_tcg_and_says_why() -> None:
    chosen = choose(KvmNode(True), {"fpu", "sse"})
    assert chosen.name is AcceleratorName.TCG
    assert "vmx" in chosen.reason


def test_flag_without_usable_node_gives_tcg_with_the_nodes_problem() -> None:
    chosen = choose(KvmNode(False, "permission denied"), {"vmx"})
    assert (chosen.name, chosen.reason) == (AcceleratorName.TCG, "permission denied")


def test_tcg_is_threaded_with_a_bounded_cache() -> None:
    arguments = list(Accelerator(AcceleratorName.TCG, "").arguments())
    assert arguments == ["-accel", f"tcg,thread=multi,tb-size={TCG_CACHE_MIB}", "-cpu", EMULATED_CPU]


def test_kvm_passes_the_hosts_cpu() -> None:
    assert list(Accelerator(AcceleratorName.KVM, "").arguments()) == ["-accel", "kvm", "-cpu", "host"]
