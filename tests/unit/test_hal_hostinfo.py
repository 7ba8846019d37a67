from __future__ import annotations

import os
from dataclasses import replace

import pytest

from insula.hal.hostinfo import HostInfo, Tool, parse_cpuinfo, parse_meminfo, parse_version, probe
from insula.hal.qemu.accel import KvmNode

GOOD = HostInfo(
    qemu=Tool("/usr/bin/qemu-system-x86_64", (7, 2, 22)),
    bwrap=Tool("/usr/bin/bwrap", (0, 8, 0)),
    prlimit=Tool("/usr/bin/prlimit", (2, 38)),
    files_limit=1024,
    sandbox_problem="",
    kvm=KvmNode(True),
    kvm_group=None,
    cpu_count=4,
    cpu_model="Test CPU",
    cpu_flags=frozenset({"vmx"}),
    memory_total_mib=16000,
    memory_available_mib=8000,
    iommu_groups=12,
    daemon_is_root=False,
)

CPUINFO = "processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nflags\t\t: fpu\n"


def test_good_host_has_no_problem_and_runs_on_the_cpu() -> None:
    assert GOOD.problems == ()
    assert any("on the CPU itself" in line for line in GOOD.consequences)
    assert any("12 groups" in line for line in GOOD.consequences)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qemu": Tool(None)}, "apt-get install qemu-system-x86"),
        ({"qemu": Tool("/opt/qemu", (9, 0))}, "outside /usr"),
        ({"qemu": Tool("/usr/bin/qemu", (6, 2))}, "too old"),
        ({"qemu": Tool("/usr/bin/qemu")}, "too old"),
        ({"bwrap": Tool(None)}, "apt-get install bubblewrap"),
        ({"bwrap": Tool("/usr/bin/bwrap", (0, 7, 9))}, "too old"),
        ({"prlimit": Tool(None)}, "util-linux"),
        ({"sandbox_problem": "No permissions to create new namespace"}, "No permissions to create new namespace"),
    ],
)
def test_what_is_missing_is_a_problem_with_a_way_out(change: dict[str, object], words: str) -> None:
    (problem,) = replace(GOOD, **change).problems  # type: ignore[arg-type]
    assert words in problem
    assert problem in replace(GOOD, **change).consequences  # type: ignore[arg-type]


def test_host_without_kvm_or_iommu_says_what_follows() -> None:
    text = " ".join(replace(GOOD, kvm=KvmNode(False, "no such file"), iommu_groups=0).consequences)
    assert "software emulation" in text
    assert "no such file" in text
    assert "no IOMMU" in text


def test_group_of_kvm_is_given_only_where_kvm_is_used() -> None:
    assert replace(GOOD, kvm_group=108).vmm_groups == (108,)
    assert replace(GOOD, kvm_group=108, cpu_flags=frozenset()).vmm_groups == ()
    assert GOOD.vmm_groups == ()


def test_sandbox_facts_of_an_incomplete_host_are_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        replace(GOOD, bwrap=Tool(None)).sandbox_facts()


def test_cpuinfo_gives_model_and_flags_of_the_first_cpu() -> None:
    assert parse_cpuinfo(CPUINFO) == ("Test CPU", frozenset({"fpu", "vmx", "sse"}))
    assert parse_cpuinfo("") == ("", frozenset())


def test_meminfo_gives_numbers_and_skips_the_rest() -> None:
    assert parse_meminfo("MemTotal:  100 kB\nHugePages_Total:   0\nodd\n") == {"MemTotal": 100}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2, 22)),
        ("bubblewrap 0.8.0", (0, 8, 0)),
        ("no number", ()),
        ("", ()),
    ],
)
def test_version_is_the_first_dotted_number(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_probe_finds_something_on_any_linux() -> None:
    found = probe()
    assert found.cpu_count >= 1
    assert 0 < found.memory_available_mib <= found.memory_total_mib
    assert found.daemon_is_root is (os.geteuid() == 0)
    assert found.consequences


def test_probe_without_tools_tells_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    problems = " ".join(probe().problems)
    assert "qemu" in problems
    assert "bubblewrap" in problems
