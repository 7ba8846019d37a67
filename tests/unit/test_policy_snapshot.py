"""What policy knows of the configured system."""

import json
from pathlib import Path
from uuid import UUID

from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import set_property
from insula.model.state import PowerState
from insula.policy.decisions import Allow, Deny, Request
from insula.policy.engine import evaluate
from insula.policy.evaluate import snapshot_from_json
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.snapshot import QubeFacts, Snapshot
from insula.policy.system_facts import snapshot_of
from insula.testing.admin_daemon import admin_daemon
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of


def work_runs(name: QubeName) -> PowerState:
    return PowerState.RUNNING if name in (WORK, ADMIN_NAME) else PowerState.HALTED


def test_snapshot_of_system_has_every_qube_and_its_facts() -> None:
    system = set_property(small_system(), WORK, "default_dispvm", WORK, all_halted)
    system = system.with_qube(system.get(NET).with_tags(["t"]).with_feature("internal", "1"))

    snapshot = snapshot_of(system, work_runs)

    assert set(snapshot.qubes) == {ADMIN_NAME, TEMPLATE, NET, WORK, DISPOSABLE}
    work = snapshot.qubes[WORK]
    assert (work.klass, work.template_for_dispvms, work.default_dispvm) == ("AppVM", True, WORK)
    assert (work.is_running, work.guivm, work.label) == (True, "dom0", "0x3465a4")
    assert work.uuid == str(system.get(WORK).uuid)
    net = snapshot.qubes[NET]
    assert net.internal
    assert not net.is_running
    assert "t" in net.tags
    admin = snapshot.qubes[ADMIN_NAME]
    assert (admin.klass, admin.uuid) == ("AdminVM", str(UUID(int=0)))
    assert snapshot.qubes[DISPOSABLE].klass == "DispVM"


def test_snapshot_of_remote_qube_has_its_relay() -> None:
    system = with_qube_of(small_system(), Klass.REMOTEVM, "far", relayvm=NET, transport_rpc="test.Ssh")
    far = snapshot_of(system, all_halted).qubes["far"]
    assert (far.relayvm, far.transport_rpc, far.default_dispvm) == (NET, "test.Ssh", None)


async def test_snapshot_of_system_says_what_get_system_info_says(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        info = json.loads(await daemon.internal.call("internal.GetSystemInfo"))
        told = snapshot_from_json(info)
        states = {name: PowerState(qube.power_state) for name, qube in told.qubes.items()}
        assert told.qubes == snapshot_of(daemon.store.system, lambda name: states[name]).qubes
        assert len(told.qubes) > 2


def test_policy_judges_the_configured_system() -> None:
    snapshot = snapshot_of(small_system(), work_runs)
    text = "test.S * @type:AppVM @dispvm:work allow\n"
    policy = load(Sources([MemoryFolder({"50-x.policy": text})]))
    assert isinstance(evaluate(Request("test.S", "+", NET, "@dispvm:work"), policy, snapshot), Allow)
    assert isinstance(evaluate(Request("test.S", "+", DISPOSABLE, "@dispvm:work"), policy, snapshot), Deny)


def test_find_knows_names_uuids_and_the_spellings_of_dom0() -> None:
    snapshot = Snapshot([QubeFacts("dom0", str(UUID(int=0)), "AdminVM"), QubeFacts("work", "w")])
    assert snapshot.find("work") is snapshot.find("uuid:w") is snapshot.qubes["work"]
    assert snapshot.find("@adminvm") is snapshot.find(f"uuid:{UUID(int=0)}") is snapshot.qubes["dom0"]
    assert snapshot.find("gone") is snapshot.find("uuid:") is None
    assert snapshot.base("@adminvm") is None
