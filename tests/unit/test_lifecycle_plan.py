from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from insula.lifecycle.create import plan_create
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.kernels import Kernel
from insula.lifecycle.plan import EMULATED_TIMEOUT_S, plan_start, with_cd
from insula.model.block import BlockLayer, BlockSource, LayerFormat
from insula.model.errors import QubesException, QubesPropertyValueError, QubesVMInUseError, QubesVMNotHaltedError
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.pci import PciAddress
from insula.model.roles import ANONYMOUS
from insula.model.system import PoolConfig, System

KERNEL = Kernel("6.1", Path("/k/vmlinuz"), Path("/k/initrd"), "console=hvc0 ro")
WORK = QubeName("work")


def kernel_of(version: str) -> Kernel:
    if version != "6.1":
        raise QubesPropertyValueError(f"No kernel {version}")
    return KERNEL


@pytest.fixture
def system() -> System:
    system = System(pools={"default": PoolConfig("default", "qcow2")}, properties={"default_kernel": "6.1"})
    for number, (klass, name, template) in enumerate(
        [("TemplateVM", "debian-12", None), ("AppVM", "work", "debian-12"), ("AppVM", "sys-net", "debian-12")]
    ):
        request = CreateRequest(klass, QubeName(name), "red", template=QubeName(template) if template else None)
        system = plan_create(system, request, UUID(int=number + 1))
    return system


def test_qube_with_a_network_card_boots_and_has_no_other_network(system: System) -> None:
    net = system.get("sys-net").with_property("uplink", "pci:0000:03:00.0").with_property("netvm", None)
    plan = plan_start(system.with_qube(net), net.name, kernel_of)
    assert (plan.card, plan.nic, plan.may_fork) == (PciAddress(0, 3, 0, 0), None, False)
    assert plan.strict_reset
    assert any("0000:03:00.0" in line for line in plan.describe())
    lax = net.with_feature("uplink-no-strict-reset", "1")
    assert not plan_start(system.with_qube(lax), net.name, kernel_of).strict_reset


@pytest.mark.parametrize("uplink", ["host", "pci:0000:03:00.0"])
def test_anonymous_qube_does_not_start_with_a_way_out_of_its_own(system: System, uplink: str) -> None:
    """MC-85"""
    net = system.get("sys-net").with_property("uplink", uplink).with_property("netvm", None)
    plan_start(system.with_qube(net), net.name, kernel_of)
    with pytest.raises(QubesException, match="not through the host's network"):
        plan_start(system.with_qube(net.with_tags([ANONYMOUS])), net.name, kernel_of)


def test_plan_takes_values_along_the_chain_of_defaults(system: System) -> None:
    template = system.get("debian-12").with_property("memory", 700)
    plan = plan_start(system.with_qube(template), WORK, kernel_of)
    assert (plan.memory_mib, plan.vcpus, plan.kernel, plan.agent_timeout_s) == (700, 2, KERNEL, 60)
    assert [v.name for v in plan.volumes] == ["root", "private", "volatile"]


def test_emulated_guest_has_longer_to_answer_unless_somebody_has_said_how_long(system: System) -> None:
    assert plan_start(system, WORK, kernel_of, emulated=True).agent_timeout_s == EMULATED_TIMEOUT_S > 60
    for said in (
        system.with_qube(system.get(WORK).with_property("qrexec_timeout", 60)),
        system.with_qube(system.get("debian-12").with_property("qrexec_timeout", 60)),
        system.with_property("default_qrexec_timeout", 60),
    ):
        assert plan_start(said, WORK, kernel_of, emulated=True).agent_timeout_s == 60


def test_machine_id_follows_the_uuid_and_users_options_come_last(system: System) -> None:
    qube = system.get(WORK).with_property("kernelopts", "debug=1")
    plan = plan_start(system.with_qube(qube), WORK, kernel_of)
    assert plan.cmdline == f"console=hvc0 ro systemd.machine_id={UUID(int=2).hex} debug=1"


def test_plan_describes_its_steps_in_order(system: System) -> None:
    lines = plan_start(system, WORK, kernel_of).describe()
    assert lines[0] == "reserve 400 MiB of memory"
    assert "snapshot of qubes/debian-12/root" in lines[1]
    assert lines[-1].startswith("let it run and wait up to 60 s")


def test_disposable_is_started_with_all_its_volumes_encrypted_its_template_is_not(system: System) -> None:
    work = system.get(WORK).with_property("template_for_dispvms", True)
    request = CreateRequest("DispVM", QubeName("disp1"), "red", template=WORK)
    system = plan_create(system.with_qube(work), request, UUID(int=9))
    plan = plan_start(system, QubeName("disp1"), kernel_of)
    assert [volume.ephemeral for volume in plan.volumes] == [True, True, True]
    assert sum("encrypted, its key thrown away" in line for line in plan.describe()) == 3
    assert not any(volume.ephemeral for volume in plan_start(system, WORK, kernel_of).volumes)
    assert not any(volume.ephemeral for volume in system.get("disp1").volumes.values()), "the setting is as it was"


def test_admin_qube_is_not_started(system: System) -> None:
    with pytest.raises(QubesVMNotHaltedError):
        plan_start(system, ADMIN_NAME, kernel_of)


def test_qube_without_kernel_is_refused_with_a_hint(system: System) -> None:
    with pytest.raises(QubesException, match="build a template"):
        plan_start(system.without_property("default_kernel"), WORK, kernel_of)


def test_cd_is_for_a_qube_that_boots_by_itself(system: System) -> None:
    cd = BlockSource((BlockLayer(Path("/images/rescue.iso"), LayerFormat.RAW),), 2048, writable=False)
    with pytest.raises(QubesException, match="not from a CD"):
        with_cd(plan_start(system, WORK, kernel_of), cd)
    own = system.with_qube(system.get(WORK).with_property("kernel", ""))
    plan = with_cd(plan_start(own, WORK, kernel_of), cd)
    assert plan.cd == cd
    assert any("booted from the CD /images/rescue.iso" in line for line in plan.describe())


def test_prohibited_start_gives_the_reason(system: System) -> None:
    qube = system.get(WORK).with_feature("prohibit-start", "do not touch")
    with pytest.raises(QubesException, match="do not touch"):
        plan_start(system.with_qube(qube), WORK, kernel_of)


def test_qube_under_restore_is_refused(system: System) -> None:
    qube = system.get(WORK).with_tags(["backup-restore-in-progress"])
    with pytest.raises(QubesVMInUseError):
        plan_start(system.with_qube(qube), WORK, kernel_of)


def test_net_qubes_are_started_outermost_first(system: System) -> None:
    net = system.get("sys-net").with_property("provides_network", True).with_property("netvm", None)
    firewall = replace(net, name=QubeName("sys-firewall"), qid=77, uuid=UUID(int=77)).with_property("netvm", "sys-net")
    work = system.get(WORK).with_property("netvm", "sys-firewall")
    plan = plan_start(system.with_qubes([net, firewall, work]), WORK, kernel_of)
    assert plan.net_qubes == ("sys-net", "sys-firewall")


def test_loop_of_net_qubes_is_refused(system: System) -> None:
    net = system.get("sys-net").with_property("provides_network", True).with_property("netvm", "work")
    work = system.get(WORK).with_property("provides_network", True).with_property("netvm", "sys-net")
    with pytest.raises(QubesException, match="loop"):
        plan_start(system.with_qubes([net, work]), WORK, kernel_of)


def test_qube_with_an_empty_kernel_of_its_own_boots_from_its_disk_with_a_screen(system: System) -> None:
    own = system.get(WORK).with_property("kernel", "")
    plan = plan_start(system.with_qube(own), WORK, kernel_of)
    assert (plan.kernel, plan.cmdline, plan.may_fork) == (None, "", False)
    lines = plan.describe()
    assert any("booted from its own disk" in line for line in lines)
    assert lines[-1] == "let it run"


def test_kernel_that_is_only_missing_is_refused(system: System) -> None:
    """An empty default is no word of the user's: nothing is started that nobody meant."""
    lost = replace(system, properties={})
    with pytest.raises(QubesException, match="no kernel"):
        plan_start(lost, WORK, kernel_of)
    template = lost.get("debian-12").with_property("kernel", "")
    with pytest.raises(QubesException, match="no kernel"):
        plan_start(lost.with_qube(template), WORK, kernel_of)
