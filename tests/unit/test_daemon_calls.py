"""The broker as the daemon puts it together: default policy, real store and Admin API; the callers are scripted."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from insula.daemon import calls
from insula.daemon.paths import Paths
from insula.model.block import VolumeSpec
from insula.model.names import QubeName
from insula.model.properties import view
from insula.policy.decisions import Allow, Ask, Deny, Request
from insula.policy.engine import evaluate
from insula.policy.folders import MemoryFolder
from insula.policy.loader import Sources, load
from insula.policy.store import PolicyStore
from insula.rpc.launcher import SessionLauncher
from insula.testing.admin_daemon import AdminDaemon, admin_daemon
from insula.testing.fake_pool import FakePool
from insula.testing.scripted_guest import Result, ScriptedGuest, talk

pytestmark = pytest.mark.timeout(300)


@dataclass
class World:
    daemon: AdminDaemon
    paths: Paths
    mgmt: ScriptedGuest

    def rules(self, name: str, text: str) -> None:
        """Add to a file that the default policy includes."""
        path = self.paths.policy / "include" / name
        path.write_text(path.read_text() + text)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.make()
    (paths.qube("mgmt")).mkdir()
    async with AsyncExitStack() as undo:
        daemon = await undo.enter_async_context(admin_daemon(tmp_path))
        await daemon.client.create_qube("AppVM", "mgmt", "red", template="debian-12")
        await daemon.client.create_qube("AppVM", "other", "red", template="debian-12")
        await daemon.client.call("admin.vm.tag.Set", "work", arg="created-by-mgmt")
        launch = SessionLauncher()
        undo.push_async_callback(launch.close)
        opened = await undo.enter_async_context(calls.open_calls(daemon.context, paths, launch.parent))
        launch.requests = opened.broker
        ours, theirs = socket.socketpair()
        session = await launch(name="mgmt", qid=9, channel=ours, rpc_socket=paths.rpc_socket("mgmt"), keys={})
        undo.push_async_callback(session.close)
        mgmt = ScriptedGuest(theirs)
        undo.push_async_callback(mgmt.close)
        await mgmt.ready.wait()
        yield World(daemon, paths, mgmt)


async def test_admin_calls_are_denied_to_every_qube_by_default(world: World) -> None:
    for service, target in (("admin.vm.List", "dom0"), ("admin.vm.Start", "work"), ("policy.List", "dom0")):
        assert await world.mgmt.call(service, target) is None


async def test_management_qube_administers_the_qubes_it_may_and_no_others(world: World) -> None:
    """MC-108, with the real dispatcher."""
    world.rules("admin-local-rwx", "mgmt @tag:created-by-mgmt allow,target=@adminvm\n")
    assert await answer(world, "admin.vm.Start", "work") == b"0\0"
    assert await answer(world, "admin.vm.feature.Set+color", "work", b"blue") == b"0\0"
    assert await answer(world, "admin.vm.feature.Get+color", "work") == b"0\0blue"
    assert world.daemon.store.system.get(QubeName("work")).features["color"] == "blue"
    refused = await answer(world, "admin.vm.feature.Get+none", "work")
    assert refused.startswith(b"2\0QubesFeatureNotFoundError\0")
    for target in ("other", "dom0", "debian-12"):
        assert await world.mgmt.call("admin.vm.feature.Get+color", target) is None
    # What it makes is its own.
    world.rules("admin-global-rwx", "mgmt @adminvm allow,target=@adminvm\n")
    assert await answer(world, "admin.vm.Create.AppVM+debian-12", "dom0", b"name=new label=red") == b"0\0"
    assert "created-by-mgmt" in world.daemon.store.system.get(QubeName("new")).tags
    assert await answer(world, "admin.vm.Start", "new") == b"0\0"


async def test_volume_is_filled_by_a_qube_that_may_whatever_its_size(world: World) -> None:
    other, size = QubeName("other"), 3 << 20
    call = "admin.vm.volume.ImportWithSize+private"
    content = bytes(range(256)) * (size // 256)
    assert await world.mgmt.call(call, "other") is None
    world.rules("admin-local-rwx", "mgmt other allow,target=@adminvm\n")
    assert await answer(world, call, "other", b"%d\n" % size + content) == b"0\0"
    volume = world.daemon.store.system.get(other).volumes["private"]
    assert volume.size == size
    assert held(world, volume) == content
    # More, or less, than was announced changes nothing.
    for wrong in (content + b"x", content[:-1], b"nonsense"):
        refused = await answer(world, call, "other", b"%d\n" % size + wrong)
        assert refused.startswith(b"2\0QubesException\0"), refused
    assert (await answer(world, call, "other", b"no size")).startswith(b"2\0ProtocolError\0")
    assert held(world, volume) == content


async def test_list_of_all_qubes_has_only_those_the_caller_may_list(world: World) -> None:
    world.rules(
        "admin-global-ro", "mgmt @adminvm allow,target=@adminvm\nmgmt @tag:created-by-mgmt allow,target=@adminvm\n"
    )
    listed = await answer(world, "admin.vm.List", "dom0")
    assert [line.split()[0] for line in listed.removeprefix(b"0\0").splitlines()] == [b"dom0", b"mgmt", b"work"]


async def test_events_are_those_of_qubes_the_caller_may_hear_of(world: World) -> None:
    world.rules(
        "admin-global-ro", "mgmt @adminvm allow,target=@adminvm\nmgmt @tag:created-by-mgmt allow,target=@adminvm\n"
    )
    connected = await (await world.mgmt.ask("admin.Events", "dom0"))
    assert connected is not None
    stream = world.mgmt.stream_of(connected.port)
    talking = asyncio.create_task(talk(stream, b""))
    await stream.until(lambda: b"connection-established" in stream.received)
    await world.daemon.client.call("admin.vm.feature.Set", "other", arg="x", payload=b"1")
    await world.daemon.client.call("admin.vm.feature.Set", "work", arg="x", payload=b"1")
    await stream.until(lambda: b"domain-feature-set:x" in stream.received)
    assert b"work\0domain-feature-set:x" in stream.received
    assert b"other" not in stream.received
    await stream.reset()
    await talking


async def test_methods_of_our_own_are_for_no_qube_whatever_the_policy_says(world: World) -> None:
    (world.paths.policy / "30-user.policy").write_text("* * @anyvm @adminvm allow\n")
    for service in ("insula.Shutdown", "internal.GetSystemInfo"):
        result = await world.mgmt.call(service, "dom0")
        assert result is not None
        assert result.code == 127
    assert not world.daemon.control.is_shut_down
    upload = await answer(world, "admin.vm.volume.Import+private", "dom0", b"data")
    assert upload.startswith(b"2\0")


async def test_policy_is_read_and_changed_by_a_qube_that_may(world: World) -> None:
    world.rules("policy-rwx", "mgmt @adminvm allow\n")
    names = await called(world, "policy.List")
    assert (names.code, names.out) == (0, b"30-user\n90-admin\n90-default\n")
    read = await called(world, "policy.Get+30-user")
    token, _, content = read.out.partition(b"\n")
    assert content == (world.paths.policy / "30-user.policy").read_bytes()
    wrong = await called(world, "policy.Replace+30-user", token + b"\nnonsense\n")
    assert wrong.code == 1
    assert wrong.err.startswith(b"PolicyAdminSyntaxException 30-user.policy:1:")
    rule = b"test.X * mgmt work allow\n"
    assert (await called(world, "policy.Replace+30-user", token + b"\n" + rule)).code == 0
    assert (world.paths.policy / "30-user.policy").read_bytes() == rule
    # MC-29: the version it was based on is gone.
    stale = await called(world, "policy.Remove+30-user", token)
    assert stale.err.startswith(b"PolicyAdminTokenException ")
    assert (await called(world, "policy.GetFiles+test.X")).out == b"30-user\n"
    assert (await called(world, "policy.Remove+30-user", b"any")).code == 0
    assert (await called(world, "policy.include.List")).out.count(b"\n") == 6


async def test_policy_that_becomes_none_is_told_in_the_log_and_as_an_event(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """MC-25, MC-27."""
    with world.daemon.bus.listen() as events:
        (world.paths.policy / "50-bad.policy").write_text("nonsense\n")
        assert await world.mgmt.call("qubes.GetDate", "dom0") is None
        (world.paths.policy / "50-bad.policy").unlink()
        assert await world.mgmt.call("qubes.GetDate", "dom0") is not None
        told = [event for event in events._queue if event.name == "policy-changed"]
    assert [event.kwargs["problems"] for event in told] == ["1", "0"]
    assert "50-bad.policy:1" in told[0].kwargs["first_problem"]
    assert any("EVERY call is denied" in entry.message for entry in caplog.records)


async def test_every_qube_may_ask_for_the_time(world: World) -> None:
    result = await called(world, "qubes.GetDate")
    assert result.code == 0
    assert len(result.out) == 26
    assert result.out.endswith(b"+00:00\n")
    assert len((await called(world, "qubes.GetDate+nanoseconds")).out) == 36


async def test_denial_says_that_nobody_could_be_asked_and_what_to_do(
    world: World,
) -> None:
    """MC-31: the default policy asks, on a machine without a screen."""
    assert await world.mgmt.call("qubes.Filecopy", "other") is None
    log = world.paths.calls_log
    async with asyncio.timeout(120):
        while not log.exists() or not log.read_text():
            await asyncio.sleep(0.01)
    [record] = map(json.loads, log.read_text().splitlines())
    assert (record["decision"], record["asked"]) == ("denied", True)
    assert record["reason"] == (
        "a rule asks, and nobody can be asked: there is no display;"
        " insula prompt asks on a desktop, insula prompt --terminal on a terminal"
    )


async def test_policy_folder_of_the_user_is_not_touched_and_a_missing_one_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "policy.d"
    calls.install_default_policy(calls.default_policy(), folder)
    assert sorted(path.name for path in folder.glob("*.policy")) == [
        "30-user.policy", "90-admin.policy", "90-default.policy",
    ]  # fmt: skip
    for path in folder.glob("*.policy"):
        path.unlink()
    calls.install_default_policy(calls.default_policy(), folder)
    assert list(folder.glob("*.policy")) == []


@pytest.mark.parametrize(
    ("service", "source", "target", "decision"),
    [
        ("qubes.Filecopy", "work", "@default", Ask),
        ("qubes.Filecopy", "work", "other", Ask),
        ("qubes.OpenInVM", "work", "@dispvm", Allow),
        ("qubes.OpenURL", "work", "other", Ask),
        ("qubes.VMShell", "work", "@dispvm", Allow),
        ("qubes.VMShell", "work", "other", Deny),
        ("qubes.VMExec", "work", "other", Deny),
        ("qubes.VMRootShell", "work", "@dispvm", Deny),
        ("qubes.PdfConvert", "work", "@dispvm", Allow),
        ("qubes.GetImageRGBA", "work", "@dispvm", Allow),
        ("qubes.Gpg", "work", "other", Ask),
        ("qubes.SshAgent", "work", "@default", Ask),
        ("qubes.ConnectTCP", "work", "other", Deny),
        ("qubes.UpdatesProxy", "debian-12", "@default", Deny),
        ("qubes.UpdatesProxy", "work", "@default", Deny),
        ("qubes.GetDate", "work", "dom0", Allow),
        ("qubes.GetDate", "work", "@default", Allow),
        ("qubes.NotifyUpdates", "work", "@adminvm", Allow),
        ("qubes.FeaturesRequest", "work", "dom0", Allow),
        ("insula.Notify", "work", "dom0", Allow),
        ("insula.Notify", "work", "other", Deny),
        ("admin.vm.List", "work", "dom0", Deny),
        ("policy.Get", "work", "dom0", Deny),
        ("insula.Shutdown", "work", "dom0", Deny),
        ("qubes.Unheard", "work", "other", Deny),
    ],
)
async def test_default_policy(
    tmp_path: Path, service: str, source: str, target: str, decision: type[Allow | Ask | Deny]
) -> None:
    async with admin_daemon(tmp_path) as daemon:
        await daemon.client.create_qube("AppVM", "other", "red", template="debian-12")
        await daemon.client.call("admin.vm.property.Set", "work", arg="template_for_dispvms", payload=b"True")
        await daemon.client.call("admin.property.Set", arg="default_dispvm", payload=b"work")
        policy = PolicyStore(calls.default_policy()).load()
        assert policy.problems == ()
        snapshot = calls.SystemQubes(daemon.context).snapshot()
        assert isinstance(evaluate(Request(service, "+", source, target), policy, snapshot), decision)


async def test_templates_fetch_through_the_net_qube_that_their_tag_says_or_not_at_all(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        policy = PolicyStore(calls.default_policy()).load()

        def target_of(source: str) -> str | None:
            snapshot = calls.SystemQubes(daemon.context).snapshot()
            found = evaluate(Request("qubes.UpdatesProxy", "+", source, "@default"), policy, snapshot)
            return found.target if isinstance(found, Allow) else None

        await daemon.client.create_qube("AppVM", "sys-net", "red", template="debian-12")
        assert target_of("debian-12") == "sys-net"
        await daemon.client.add_tag("debian-12", "whonix-updatevm")
        # Not even while there is no Tor gateway does it go another way.
        assert target_of("debian-12") is None
        await daemon.client.create_qube("AppVM", "sys-whonix", "black", template="debian-12")
        assert target_of("debian-12") == "sys-whonix"
        assert target_of("work") is None


async def test_disposable_is_a_caller_of_its_own_with_no_rights_of_its_template_or_opener(tmp_path: Path) -> None:
    """MC-34: rules for a disposable say so, by its class or by who opened it."""
    async with admin_daemon(tmp_path) as daemon:
        await daemon.client.create_qube("AppVM", "opener", "red", template="debian-12")
        await daemon.client.call("admin.vm.property.Set", "work", arg="template_for_dispvms", payload=b"True")
        name = await daemon.context.engine.create_disposable(QubeName("work"), QubeName("opener"))
        snapshot = calls.SystemQubes(daemon.context).snapshot()
        for source, is_allowed in (
            ("work", False), ("opener", False), ("@type:AppVM", False),
            (name, True), ("@type:DispVM", True), ("@tag:disp-created-by-opener", True),
        ):  # fmt: skip
            policy = load(Sources([MemoryFolder({"50-a.policy": f"a.B * {source} debian-12 allow\n"})]))
            decision = evaluate(Request("a.B", "+", name, "debian-12"), policy, snapshot)
            assert isinstance(decision, Allow) == is_allowed, source


@pytest.mark.parametrize(("netvm", "expected"), [("", None), ("net-b", "net-a")])
async def test_disposable_has_no_network_if_its_opener_has_none(
    tmp_path: Path, netvm: str, expected: str | None
) -> None:
    """MC-34, MC-86."""
    async with admin_daemon(tmp_path) as daemon:
        client = daemon.client
        for name in ("net-a", "net-b"):
            await client.create_qube("AppVM", name, "red", template="debian-12")
            await client.set_property("provides_network", "True", name)
        await client.create_qube("AppVM", "opener", "red", template="debian-12")
        await client.set_property("netvm", netvm, "opener")
        await client.set_property("netvm", "net-a", "work")
        await client.set_property("template_for_dispvms", "True", "work")
        async with calls.SystemQubes(daemon.context).disposable("work", "opener") as name:
            system = daemon.store.system
            assert view(system, system.get(QubeName(name))).vm("netvm") == expected


async def test_snapshot_is_the_same_value_until_the_system_or_a_state_changes(tmp_path: Path) -> None:
    async with admin_daemon(tmp_path) as daemon:
        qubes = calls.SystemQubes(daemon.context)
        first = qubes.snapshot()
        assert qubes.snapshot() is first
        await daemon.client.start("work")
        second = qubes.snapshot()
        assert second is not first
        assert second.qubes["work"].is_running
        await daemon.client.call("admin.vm.tag.Set", "work", arg="x")
        assert "x" in qubes.snapshot().qubes["work"].tags


def held(world: World, volume: VolumeSpec) -> bytes:
    pool = world.daemon.engine.pool(volume.pool)
    assert isinstance(pool, FakePool)
    return pool.content(volume.vid)


async def answer(world: World, service: str, target: str, payload: bytes = b"") -> bytes:
    """What the Admin API answers."""
    result = await called(world, service, payload, target)
    assert result.code == 0
    return result.out


async def called(world: World, service: str, payload: bytes = b"", target: str = "dom0") -> Result:
    result = await world.mgmt.call(service, target, stdin=payload)
    assert result is not None, service
    return result
