"""Handlers through the client, noun by noun: what changes, what is told, what is refused under which name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.admin.client import AdminClient
from insula.admin.handlers.streams import Sample, stats_values
from insula.events.types import Event
from insula.hal.driver import MachineStats
from insula.hal.errors import DriverError
from insula.model import errors
from insula.model.applications import MAX_LIST
from insula.model.names import QubeName
from insula.model.state import PowerState
from insula.storage.pool import StorageError
from insula.testing.admin_daemon import KERNEL, AdminDaemon, admin_daemon

WORK = QubeName("work")


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[AdminDaemon]:
    async with admin_daemon(tmp_path) as running:
        yield running


@pytest.fixture
def client(daemon: AdminDaemon) -> AdminClient:
    return daemon.client


class Recorder:
    """What was published while it was entered."""

    def __init__(self, daemon: AdminDaemon) -> None:
        self._listener = daemon.bus.listen()
        self.events: list[Event] = []

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.end()
        self.events = [event async for event in self._listener]
        self._listener.close()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


# qubes


async def test_created_qube_has_creator_tag_and_is_announced(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.create_qube("AppVM", "new", "red")
    qube = daemon.store.system.get("new")
    assert (qube.klass, qube.label, qube.template) == ("AppVM", "red", "debian-12")
    assert "created-by-dom0" in qube.tags
    assert recorder.events[0] == Event("", "domain-add", {"vm": "new"})


async def test_created_qube_takes_chosen_pools(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.add_pool("fast", "qcow2", {"dir_path": "/srv/fast"})
    await client.create_qube("AppVM", "a", "red", pool="fast")
    await client.create_qube("AppVM", "b", "red", pools={"private": "fast"})
    assert daemon.store.system.get("a").volumes["volatile"].pool == "fast"
    assert daemon.store.system.get("b").volumes["private"].pool == "fast"
    assert daemon.store.system.get("b").volumes["volatile"].pool == "default"


@pytest.mark.parametrize(
    ("method", "arg", "payload", "error"),
    [
        ("Create.AppVM", "", "name=work label=red", errors.QubesVMAlreadyExistsError),
        ("Create.AppVM", "nosuch", "name=work label=nosuch", errors.QubesVMAlreadyExistsError),
        ("Create.AppVM", "", "name=dom0 label=red", errors.QubesVMAlreadyExistsError),
        ("Create.AppVM", "", "name=WORK label=red", errors.QubesVMAlreadyExistsError),
        ("Create.AppVM", "nosuch", "name=new label=nosuch", errors.QubesVMNotFoundError),
        ("Create.AppVM", "", "name=new label=nosuch", errors.QubesLabelNotFoundError),
        ("Create.AppVM", "work", "name=new label=red", errors.QubesPropertyValueError),
        ("Create.AppVM", "", "name=new", errors.ProtocolError),
        ("Create.AppVM", "", "label=red", errors.ProtocolError),
        ("Create.AppVM", "", "name= label=red", errors.ProtocolError),
        ("Create.AppVM", "", "name=new label=red color=blue", errors.ProtocolError),
        ("Create.AppVM", "", "name=new label=red label=red", errors.ProtocolError),
        ("Create.AppVM", "", "name=new label=red pool=default", errors.ProtocolError),
        ("Create.AppVM", "", "nonsense", errors.ProtocolError),
        ("Create.AppVM", "", "name=new  label=red", errors.ProtocolError),
        ("Create.AppVM", "", "name=é label=red", errors.ProtocolError),
        ("Create.AppVM", "", "name=1new label=red", errors.QubesValueError),
        ("Create.AppVM", "", "name=none label=red", errors.QubesValueError),
        ("Create.AppVM", "", "name=Domain-0 label=red", errors.QubesValueError),
        ("Create.AppVM", "", "name=x-dm label=red", errors.QubesValueError),
        ("Create.AppVM", "", "name=" + "x" * 32 + " label=red", errors.QubesValueError),
        ("Create.AppVM", "", "name=../x label=red", errors.QubesValueError),
        ("Create.TemplateVM", "debian-12", "name=new label=red", errors.ProtocolError),
        ("Create.StandaloneVM", "debian-12", "name=new label=red", errors.ProtocolError),
        ("Create.DispVM", "", "name=new label=red", errors.QubesNoTemplateError),
        ("Create.DispVM", "work", "name=new label=red", errors.QubesPropertyValueError),
        ("Create.AdminVM", "", "name=new label=red", errors.ProtocolError),
        ("Create.HugeVM", "", "name=new label=red", errors.ProtocolError),
        ("CreateInPool.AppVM", "", "name=new label=red", errors.ProtocolError),
        ("CreateInPool.AppVM", "", "name=new label=red pool=default pool:root=default", errors.ProtocolError),
        ("CreateInPool.AppVM", "", "name=new label=red pool:swap=default", errors.ProtocolError),
        ("CreateInPool.AppVM", "", "name=new label=red pool=nosuch", errors.QubesPoolNotFoundError),
        ("CreateInPool.AppVM", "", "name=new label=red pool:root=linux-kernel", errors.QubesException),
    ],
)
async def test_impossible_creation_is_refused_and_leaves_nothing(
    daemon: AdminDaemon, method: str, arg: str, payload: str, error: type[Exception]
) -> None:
    before = daemon.store.system
    with pytest.raises(error):
        await daemon.client.call(f"admin.vm.{method}", "dom0", arg, payload.encode())
    assert daemon.store.system is before


async def test_removed_qube_is_gone_and_announced(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.remove("work")
    assert "work" not in daemon.store.system.qubes
    assert recorder.names == ["domain-pre-delete", "domain-delete"]


@pytest.mark.parametrize("name", ["dom0", "debian-12"])
async def test_qube_in_use_is_not_removed(client: AdminClient, name: str) -> None:
    with pytest.raises(errors.QubesVMInUseError):
        await client.remove(name)


async def test_packaged_or_running_qube_is_not_removed(client: AdminClient) -> None:
    await client.set_property("installed_by_rpm", "True", "work")
    with pytest.raises(errors.QubesVMInUseError, match="package"):
        await client.remove("work")
    await client.set_property("installed_by_rpm", "False", "work")
    await client.start("work")
    with pytest.raises(errors.QubesVMInUseError, match="running"):
        await client.remove("work")


async def test_disposable_is_made_with_number_tags_and_cleanup(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.set_property("template_for_dispvms", "True", "work")
    name = await client.create_disposable("work")
    qube = daemon.store.system.get(name)
    assert name == f"disp{qube.properties['dispid']}"
    assert qube.properties["auto_cleanup"] is True
    assert {"created-by-dom0", "disp-created-by-dom0"} <= qube.tags
    answer = await client.call("admin.vm.CreateDisposable", "work", payload=b"uuid")
    made = daemon.store.system.sorted_qubes()
    assert answer.decode().removeprefix("uuid:") in {str(qube.uuid) for qube in made}


async def test_disposable_whose_record_cannot_be_kept_is_not_there(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.set_property("template_for_dispvms", "True", "work")
    daemon.engine.fail("create", errors.QubesException("no space"))
    with pytest.raises(errors.QubesException, match="no space"):
        await client.create_disposable("work")
    assert list(daemon.store.system.qubes) == ["dom0", "debian-12", "work"]


async def test_disposable_of_dom0_is_one_of_its_default_dispvm(daemon: AdminDaemon, client: AdminClient) -> None:
    with pytest.raises(errors.QubesException, match="no default_dispvm"):
        await client.create_disposable()
    await client.set_property("template_for_dispvms", "True", "work")
    await client.set_property("default_dispvm", "work")
    name = await client.create_disposable()
    assert daemon.store.system.get(name).template == "work"


async def test_disposable_of_qube_not_made_for_it_is_refused(client: AdminClient) -> None:
    with pytest.raises(errors.QubesException, match="template_for_dispvms"):
        await client.create_disposable("work")
    with pytest.raises(errors.QubesException, match="template_for_dispvms"):
        await client.call("admin.vm.CreateDisposable", "work", "preload")
    for arg, payload in (("other", b""), ("", b"other")):
        with pytest.raises(errors.ProtocolError):
            await client.call("admin.vm.CreateDisposable", "work", arg, payload)


async def test_notes_keep_text_and_lose_what_is_unsafe_to_display(client: AdminClient) -> None:
    await client.set_notes("work", "first\tline\nsecond: café \x1b[31m\u202e")
    assert await client.notes("work") == "first\tline\nsecond: café _[31m_"
    await client.set_notes("work", "")
    assert await client.notes("work") == ""


async def test_notes_that_are_not_text_are_refused(client: AdminClient) -> None:
    with pytest.raises(errors.QubesValueError, match="UTF-8"):
        await client.call("admin.vm.notes.Set", "work", payload=b"\xff")


# power


async def test_start_with_a_cd_names_its_image(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.start("work", cd=Path("/images/rescue ü.iso"))
    assert daemon.engine.cds == {QubeName("work"): Path("/images/rescue ü.iso")}
    for payload in (b"\xff", b"/a\0b", b"/" + b"x" * 5000):
        with pytest.raises(errors.ProtocolError):
            await client.call("insula.vm.StartWithCd", "work", payload=payload)


async def test_start_publishes_the_published_order(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.start("work")
        await client.start("work")
    assert recorder.names == [
        "domain-pre-start",
        "domain-pre-spawn",
        "property-reset:xid",
        "property-reset:stubdom_xid",
        "property-reset:start_time",
        "domain-spawn",
        "domain-qdb-create",
        "domain-pre-unpaused",
        "domain-unpaused",
        "domain-start",
    ]


@pytest.mark.parametrize("verb", ["Shutdown", "Kill", "Pause", "Unpause"])
async def test_halted_qube_cannot_be_stopped_or_paused(client: AdminClient, verb: str) -> None:
    with pytest.raises(errors.QubesVMNotStartedError):
        await client.call(f"admin.vm.{verb}", "work")


async def test_dom0_is_always_running(client: AdminClient) -> None:
    with pytest.raises(errors.QubesVMNotHaltedError):
        await client.start("dom0")
    for verb in ("Shutdown", "Kill", "Pause", "Unpause"):
        with pytest.raises(errors.QubesException):
            await client.call(f"admin.vm.{verb}", "dom0")


async def test_pause_unpause_shutdown_follow_each_other(client: AdminClient) -> None:
    await client.start("work")
    await client.pause("work")
    assert (await client.current_state("work")).power_state is PowerState.PAUSED
    with pytest.raises(errors.QubesVMNotRunningError):
        await client.shutdown("work")
    await client.unpause("work")
    with pytest.raises(errors.QubesVMNotPausedError):
        await client.unpause("work")
    await client.shutdown("work", force=True, wait=True)
    assert (await client.current_state("work")).power_state is PowerState.HALTED


async def test_unknown_shutdown_word_is_refused(client: AdminClient) -> None:
    await client.start("work")
    for arg in ("now", "force+force", "wait+now", "+"):
        with pytest.raises(errors.ProtocolError):
            await client.call("admin.vm.Shutdown", "work", arg)
    await client.call("admin.vm.Shutdown", "work", "wait+force")


async def test_prohibited_start_is_refused_with_its_reason(client: AdminClient) -> None:
    await client.set_feature("work", "prohibit-start", "under repair")
    with pytest.raises(errors.QubesException, match="under repair"):
        await client.start("work")


async def test_running_qube_reports_memory_and_cpu_time(client: AdminClient) -> None:
    await client.start("work")
    state = await client.current_state("work")
    assert (state.memory_kib, state.memory_static_max_kib, state.cpu_time_ms) == (409600, 409600, 1000)
    assert (await client.get_property("xid", "work")).value == "2"
    assert (await client.get_property("start_time", "work")).value == "1750000000.0"


async def test_console_is_refused_by_name(client: AdminClient) -> None:
    with pytest.raises(errors.QubesVMNotRunningError):
        await client.console_path("work")
    await client.start("work")
    with pytest.raises(errors.QubesNotImplementedError):
        await client.console_path("work")


async def test_rpc_socket_of_running_qube_is_told(client: AdminClient, tmp_path: Path) -> None:
    with pytest.raises(errors.QubesVMNotRunningError):
        await client.rpc_socket("work")
    await client.start("work")
    assert await client.rpc_socket("work") == tmp_path / "work" / "rpc.sock"


# properties


async def test_set_property_is_kept_announced_and_applied(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.set_property("memory", "500", "work")
    async with Recorder(daemon) as recorder:
        await client.set_property("memory", "600", "work")
    values = {"name": "memory", "newvalue": "600", "oldvalue": "500"}
    assert recorder.events == [
        Event("work", "property-pre-set:memory", values),
        Event("work", "property-set:memory", values),
    ]
    assert daemon.engine.changed == [(WORK, "memory"), (WORK, "memory")]
    assert (await client.get_property("memory", "work")).value == "600"


async def test_reset_property_is_announced_under_both_names(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.set_property("memory", "500", "work")
    async with Recorder(daemon) as recorder:
        await client.reset_property("memory", "work")
    assert recorder.names == [
        "property-pre-reset:memory",
        "property-pre-del:memory",
        "property-reset:memory",
        "property-del:memory",
    ]
    assert (await client.get_property("memory", "work")).is_default


async def test_global_property_has_no_subject(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.set_property("stats_interval", "5")
    assert recorder.events[-1] == Event("", "property-set:stats_interval", {"name": "stats_interval", "newvalue": "5"})
    assert (await client.get_property("stats_interval")).value == "5"


async def test_empty_payload_sets_none(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.set_property("netvm", "", "work")
    assert recorder.events[-1].kwargs == {"name": "netvm", "newvalue": "None"}
    assert not (await client.get_property("netvm", "work")).is_default


async def test_what_follows_a_property_is_announced_too(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.set_property("provides_network", "yes", "work")
        await client.set_property("guivm", "", "work")
    assert "domain-feature-set:servicevm" in recorder.names
    assert "domain-tag-delete:guivm-dom0" in recorder.names


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("nosuch", "1", errors.QubesNoSuchPropertyError),
        ("memory", "abc", errors.QubesPropertyValueError),
        ("memory", "0", errors.QubesPropertyValueError),
        ("memory", "", errors.QubesPropertyValueError),
        ("autostart", "perhaps", errors.QubesPropertyValueError),
        ("netvm", "nosuch", errors.QubesPropertyValueError),
        ("netvm", "debian-12", errors.QubesPropertyValueError),
        ("template", "", errors.QubesPropertyValueError),
        ("label", "nosuch", errors.QubesLabelNotFoundError),
        ("kernel", "9.9.9", errors.QubesPropertyValueError),
        ("xid", "5", errors.QubesPropertyValueError),
        ("klass", "TemplateVM", errors.QubesPropertyValueError),
        ("name", "other", errors.QubesValueError),
        ("qid", "5", errors.QubesValueError),
        ("uuid", "x", errors.QubesValueError),
        ("mac", "no", errors.QubesValueError),
        ("default_user", "caf\xe9", errors.QubesPropertyValueError),
        ("kernelopts", "a\nb", errors.QubesPropertyValueError),
        ("kernelopts", "x" * 5000, errors.QubesPropertyValueError),
        ("100%", "1", errors.QubesNoSuchPropertyError),
    ],
)
async def test_impossible_property_value_is_refused(
    daemon: AdminDaemon, name: str, value: str, error: type[Exception]
) -> None:
    before = daemon.store.system
    with pytest.raises(error) as refusal:
        await daemon.client.set_property(name, value, "work")
    assert name in str(refusal.value) or value in str(refusal.value)
    assert daemon.store.system is before


@pytest.mark.parametrize("verb", ["Get", "GetDefault", "Set", "Reset", "Help"])
async def test_unknown_property_is_refused_by_every_verb(client: AdminClient, verb: str) -> None:
    for method, dest in ((f"admin.vm.property.{verb}", "work"), (f"admin.property.{verb}", "dom0")):
        with pytest.raises(errors.QubesNoSuchPropertyError, match="nosuch"):
            await client.call(method, dest, "nosuch")


async def test_lists_and_single_gets_agree(client: AdminClient) -> None:
    for qube in (None, "work", "debian-12", "dom0"):
        names = await client.list_properties(qube)
        values = await client.get_properties(qube)
        assert sorted(names) == [value.name for value in values]
        for value in values:
            assert await client.get_property(value.name, qube) == value


async def test_template_of_running_qube_cannot_change(client: AdminClient) -> None:
    await client.create_qube("TemplateVM", "other", "black")
    await client.start("work")
    with pytest.raises(errors.QubesVMNotHaltedError):
        await client.set_property("template", "other", "work")
    await client.kill("work")
    await client.set_property("template", "other", "work")
    assert (await client.volume_info("work", "root")).source == "qubes/other/root"


async def test_property_default_is_told(client: AdminClient) -> None:
    await client.set_property("memory", "500", "work")
    default = await client.get_property_default("memory", "work")
    assert default is not None
    assert (default.value, default.type) == ("400", "int")
    assert await client.get_property_default("qid", "work") is None
    assert "memory" in (await client.property_help("memory", "work")).lower()


# features and tags


async def test_feature_is_set_read_and_removed_with_events(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.set_feature("work", "gui", "1")
        await client.set_feature("work", "gui", "")
        assert await client.get_features("work") == {"gui": ""}
        await client.remove_feature("work", "gui")
    assert [(event.name, dict(event.kwargs)) for event in recorder.events] == [
        ("domain-feature-pre-set:gui", {"feature": "gui", "value": "1"}),
        ("domain-feature-set:gui", {"feature": "gui", "value": "1"}),
        ("domain-feature-pre-set:gui", {"feature": "gui", "value": "", "oldvalue": "1"}),
        ("domain-feature-set:gui", {"feature": "gui", "value": "", "oldvalue": "1"}),
        ("domain-feature-pre-delete:gui", {"feature": "gui"}),
        ("domain-feature-delete:gui", {"feature": "gui"}),
    ]


async def test_missing_feature_is_not_found(client: AdminClient) -> None:
    for check in ("", "Template", "Netvm", "AdminVM", "TemplateAndAdminVM"):
        with pytest.raises(errors.QubesFeatureNotFoundError):
            await client.get_feature("work", "nosuch", check=check)
    with pytest.raises(errors.QubesFeatureNotFoundError):
        await client.remove_feature("work", "nosuch")


async def test_feature_lookups_go_where_they_say(client: AdminClient) -> None:
    await client.set_feature("debian-12", "of-template", "t")
    await client.set_feature("dom0", "of-dom0", "d")
    assert await client.get_feature("work", "of-template", check="Template") == "t"
    assert await client.get_feature("work", "of-template", check="TemplateAndAdminVM") == "t"
    assert await client.get_feature("work", "of-dom0", check="AdminVM") == "d"
    assert await client.get_feature("work", "of-dom0", check="TemplateAndAdminVM") == "d"
    with pytest.raises(errors.QubesFeatureNotFoundError):
        await client.get_feature("work", "of-dom0", check="Template")
    await client.create_qube("AppVM", "net", "red")
    await client.set_property("provides_network", "True", "net")
    await client.set_property("netvm", "net", "work")
    await client.set_feature("net", "of-net", "n")
    assert await client.get_feature("work", "of-net", check="Netvm") == "n"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("a/b", b"1", errors.ProtocolError),
        ("a%b", b"1", errors.ProtocolError),
        ("a", "é".encode(), errors.ProtocolError),
        ("a", b"a\nb", errors.ProtocolError),
        ("a", b"\0", errors.ProtocolError),
        ("preload-dispvm", b"x", errors.PermissionDenied),
        ("deferred-netvm-original", b"x", errors.PermissionDenied),
        ("service." + "x" * 49, b"1", errors.QubesValueError),
    ],
)
async def test_impossible_feature_is_refused(
    client: AdminClient, name: str, value: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.call("admin.vm.feature.Set", "work", name, value)
    assert await client.list_features("work") == []


async def test_tag_is_added_and_removed_with_events(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.add_tag("work", "mine")
        assert "mine" in await client.list_tags("work")
        await client.remove_tag("work", "mine")
    assert recorder.events == [
        Event("work", "domain-tag-add:mine", {"tag": "mine"}),
        Event("work", "domain-tag-delete:mine", {"tag": "mine"}),
    ]


async def test_bad_or_missing_tag_is_refused(client: AdminClient) -> None:
    with pytest.raises(errors.QubesTagNotFoundError):
        await client.remove_tag("work", "nosuch")
    for verb in ("Get", "Set", "Remove"):
        with pytest.raises(errors.QubesInvalidTagError):
            await client.call(f"admin.vm.tag.{verb}", "work", "a.b")


# labels


async def test_label_is_made_used_and_removed(client: AdminClient) -> None:
    await client.call("admin.label.Create", arg="teal", payload=b"0x008080")
    assert (await client.list_labels())["teal"] == "0x008080"
    assert await client.call("admin.label.Index", arg="teal") == b"9"
    await client.set_property("label", "teal", "work")
    with pytest.raises(errors.QubesLabelInUseError):
        await client.call("admin.label.Remove", arg="teal")
    await client.set_property("label", "red", "work")
    await client.call("admin.label.Remove", arg="teal")
    assert "teal" not in await client.list_labels()


@pytest.mark.parametrize(
    ("verb", "name", "payload", "error"),
    [
        ("Create", "red", b"0x000001", errors.QubesLabelInUseError),
        ("Create", "a/b", b"0x000001", errors.QubesInvalidLabelError),
        ("Create", "123", b"0x000001", errors.QubesInvalidLabelError),
        ("Create", "new", b"red", errors.QubesInvalidLabelValueError),
        ("Create", "new", "é".encode(), errors.QubesInvalidLabelValueError),
        ("Remove", "red", b"", errors.ProtocolError),
        ("Remove", "nosuch", b"", errors.QubesLabelNotFoundError),
        ("Get", "nosuch", b"", errors.QubesLabelNotFoundError),
        ("Index", "nosuch", b"", errors.QubesLabelNotFoundError),
    ],
)
async def test_impossible_label_is_refused(
    client: AdminClient, verb: str, name: str, payload: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.call(f"admin.label.{verb}", arg=name, payload=payload)


# volumes


async def of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_import_replaces_content_and_size(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.volume_import("work", "private", of(b"a" * 100_000, b"b" * 2400), 102_400)
    assert daemon.engine.pools["default"].content("qubes/work/private") == b"a" * 100_000 + b"b" * 2400
    assert (await client.volume_info("work", "private")).size == 102_400
    assert recorder.events == [
        Event("work", "domain-volume-import-begin", {"volume": "private", "size": "102400"}),
        Event("work", "domain-volume-import-end", {"volume": "private", "success": "True"}),
    ]


@pytest.mark.parametrize(("sent", "message"), [(511, "not enough data"), (513, "too much data")])
async def test_import_of_wrong_length_is_refused_and_changes_nothing(
    daemon: AdminDaemon, sent: int, message: str
) -> None:
    before = daemon.store.system
    async with Recorder(daemon) as recorder:
        with pytest.raises(errors.QubesException, match=message):
            await daemon.client.volume_import("work", "private", of(b"x" * sent), 512)
    assert daemon.store.system is before
    assert daemon.engine.pools["default"].content("qubes/work/private") == b""
    assert recorder.events[-1].kwargs["success"] == "False"


async def test_import_without_size_must_have_the_volumes_own(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.volume_import("work", "private", of(bytes(512)), 512)
    await client.upload("admin.vm.volume.Import", "work", "private", of(b"y" * 512))
    assert daemon.engine.pools["default"].content("qubes/work/private") == b"y" * 512
    with pytest.raises(errors.QubesException, match="not enough data"):
        await client.upload("admin.vm.volume.Import", "work", "private", of(b"y"))


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (b"", errors.ProtocolError),
        (b"512", errors.ProtocolError),
        (b"x" * 30, errors.ProtocolError),
        (b"0512\n", errors.QubesValueError),
        (b"513\n", errors.QubesValueError),
        (b"-1\n", errors.QubesValueError),
        (b"\xff\n", errors.QubesValueError),
        (b"9" * 19 + b"\n", errors.QubesValueError),
    ],
)
async def test_import_with_unreadable_size_is_refused(
    client: AdminClient, start: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.upload("admin.vm.volume.ImportWithSize", "work", "private", of(start))


async def test_import_is_refused_to_running_qube_and_to_volumes_that_keep_nothing(client: AdminClient) -> None:
    for volume in ("root", "volatile", "kernel"):
        with pytest.raises(errors.StoragePoolException):
            await client.volume_import("work", volume, of(bytes(512)), 512)
    await client.start("work")
    with pytest.raises(errors.QubesVMNotHaltedError):
        await client.volume_import("work", "private", of(bytes(512)), 512)


async def test_refused_import_is_answered_while_data_are_still_coming(client: AdminClient) -> None:
    """The stream never ends by itself: only an answer that is read at once can end the call."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    with pytest.raises(errors.QubesException, match="too much data"):
        await client.volume_import("work", "private", endless(), 512)


async def test_error_of_the_callers_stream_ends_the_call_and_changes_nothing(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        await client.volume_import("work", "private", broken(), 512)
    assert daemon.engine.pools["default"].content("qubes/work/private") == b""


async def test_import_through_a_file_takes_what_was_written(daemon: AdminDaemon) -> None:
    answer = await daemon.internal.call("internal.vm.volume.ImportBegin", "work", "private", b"1024")
    size, path = answer.decode().split(" ", 1)
    file = Path(path)
    assert (size, file.stat().st_size, file.stat().st_mode & 0o077) == ("1024", 1024, 0)
    file.write_bytes(b"z" * 1024)
    with pytest.raises(errors.QubesVMInUseError):
        await daemon.internal.call("internal.vm.volume.ImportBegin", "work", "private")
    assert await daemon.internal.call("internal.vm.volume.ImportEnd", "work", "private", b"ok") == b""
    assert daemon.engine.pools["default"].content("qubes/work/private") == b"z" * 1024
    assert not file.exists()


async def test_failed_import_through_a_file_tells_the_message_and_leaves_nothing(daemon: AdminDaemon) -> None:
    answer = await daemon.internal.call("internal.vm.volume.ImportBegin", "work", "private")
    size, path = answer.decode().split(" ", 1)
    assert size == "2147483648"
    with pytest.raises(errors.QubesException, match="not enough data_"):
        await daemon.internal.call("internal.vm.volume.ImportEnd", "work", "private", b"fail\nnot enough data\x1b")
    assert not Path(path).exists()
    with pytest.raises(errors.QubesException, match="begun"):
        await daemon.internal.call("internal.vm.volume.ImportEnd", "work", "private", b"ok")


async def test_clone_copies_once_per_token(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.create_qube("AppVM", "copy", "red")
    await client.volume_import("work", "private", of(b"c" * 512), 512)
    token = await client.call("admin.vm.volume.CloneFrom", "work", "private")
    await client.call("admin.vm.volume.CloneTo", "copy", "private", token)
    assert daemon.engine.pools["default"].content("qubes/copy/private") == b"c" * 512
    assert (await client.volume_info("copy", "private")).size == 512
    with pytest.raises(errors.QubesVolumeCopyTokenNotFoundError):
        await client.call("admin.vm.volume.CloneTo", "copy", "private", token)


async def test_clone_token_dies_with_a_failure_and_with_its_qube(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.create_qube("AppVM", "copy", "red")
    token = await client.call("admin.vm.volume.CloneFrom", "copy", "private")
    await client.start("work")
    with pytest.raises(errors.QubesVMNotHaltedError):
        await client.call("admin.vm.volume.CloneTo", "work", "private", token)
    await client.kill("work")
    with pytest.raises(errors.QubesVolumeCopyTokenNotFoundError):
        await client.call("admin.vm.volume.CloneTo", "work", "private", token)
    token = await client.call("admin.vm.volume.CloneFrom", "copy", "private")
    await client.remove("copy")
    await client.create_qube("AppVM", "copy", "red")  # another qube, whatever its name (MC-20)
    with pytest.raises(errors.QubesVolumeCopyTokenNotFoundError):
        await client.call("admin.vm.volume.CloneTo", "work", "private", token)
    with pytest.raises(errors.QubesVolumeCopyTokenNotFoundError):
        await client.call("admin.vm.volume.CloneTo", "work", "private", b"\xff\0%s")


async def test_revisions_are_listed_and_reverted_to(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.volume_import("work", "private", of(b"1" * 512), 512)
    await client.volume_import("work", "private", of(b"2" * 512), 512)
    (revision,) = await client.volume_revisions("work", "private")
    await client.volume_revert("work", "private", revision)
    assert daemon.engine.pools["default"].content("qubes/work/private") == b"1" * 512


@pytest.mark.parametrize("revision", ["nosuch", "../x", "a b", "x" * 100])
async def test_unknown_revision_is_not_found(client: AdminClient, revision: str) -> None:
    with pytest.raises(errors.QubesVolumeRevisionNotFoundError):
        await client.volume_revert("work", "private", revision)


@pytest.mark.parametrize("size", ["1024", "0", "-1", "abc", "", "012", "9" * 20, "99999999999999999999", "2147483649"])
async def test_impossible_size_is_refused(client: AdminClient, size: str) -> None:
    with pytest.raises((errors.QubesValueError, errors.StoragePoolException, errors.ProtocolError)):
        await client.call("admin.vm.volume.Resize", "work", "private", size.encode())
    assert (await client.volume_info("work", "private")).size == 2 * 1024**3


async def test_volume_settings_are_kept(client: AdminClient) -> None:
    await client.volume_set("work", "private", "revisions_to_keep", 5)
    await client.volume_set("work", "private", "rw", False)
    await client.volume_set("work", "volatile", "ephemeral", True)
    info = await client.volume_info("work", "private")
    assert (info.revisions_to_keep, info.rw) == (5, False)
    assert (await client.volume_info("work", "volatile")).ephemeral


@pytest.mark.parametrize(
    ("volume", "name", "value"),
    [
        ("private", "revisions_to_keep", "-2"),
        ("private", "revisions_to_keep", "many"),
        ("private", "revisions_to_keep", "1.5"),
        ("private", "rw", "maybe"),
        ("private", "ephemeral", "True"),
        ("root", "ephemeral", "True"),
        ("kernel", "ephemeral", "True"),
        ("private", "rw", "é"),
    ],
)
async def test_impossible_volume_setting_is_refused(client: AdminClient, volume: str, name: str, value: str) -> None:
    with pytest.raises(errors.QubesValueError):
        await client.call(f"admin.vm.volume.Set.{name}", "work", volume, value.encode())


async def test_rw_of_running_qube_is_refused(client: AdminClient) -> None:
    await client.start("work")
    for name in ("rw", "ephemeral"):
        with pytest.raises(errors.QubesVMNotHaltedError):
            await client.volume_set("work", "volatile", name, False)


@pytest.mark.parametrize(
    "method",
    ["Info", "ListSnapshots", "Revert", "CloneFrom", "CloneTo", "Resize", "Clear", "Set.rw", "Set.revisions_to_keep"],
)
async def test_unknown_volume_is_an_argument_outside_its_list(client: AdminClient, method: str) -> None:
    needs_payload = method in ("Revert", "CloneTo", "Resize", "Set.rw", "Set.revisions_to_keep")
    with pytest.raises(errors.PermissionDenied, match="Argument not in"):
        await client.call(f"admin.vm.volume.{method}", "work", "nosuch", b"1" if needs_payload else b"")


# pools


async def test_pool_is_added_described_set_and_removed(daemon: AdminDaemon, client: AdminClient) -> None:
    async with Recorder(daemon) as recorder:
        await client.add_pool("extra", "qcow2", {"dir_path": "/srv/extra"})
        await client.set_pool("extra", "revisions_to_keep", 3)
        await client.set_pool("extra", "ephemeral_volatile", True)
        info = await client.pool_info("extra")
        await client.remove_pool("extra")
    assert info.driver == "qcow2"
    assert info.config == {"dir_path": "/srv/extra", "revisions_to_keep": "3", "ephemeral_volatile": "True"}
    assert recorder.names == ["pool-add", "pool-pre-delete", "pool-delete"]
    assert await client.list_pools() == ["default", "linux-kernel"]


async def test_pool_that_cannot_be_used_is_still_described(daemon: AdminDaemon, client: AdminClient) -> None:
    """Its disk is not there."""
    del daemon.engine.pools["default"]
    info = await client.pool_info("default")
    assert (info.driver, info.size, info.usage) == ("qcow2", None, None)


@pytest.mark.parametrize(
    ("driver", "payload", "error"),
    [
        ("nosuch", "name=x\n", errors.QubesException),
        ("qcow2", "name=default\ndir_path=/x\n", errors.QubesPoolInUseError),
        ("qcow2", "name=x\n", errors.QubesException),
        ("qcow2", "dir_path=/x\n", errors.ProtocolError),
        ("qcow2", "name=x\ndir_path=/x\ncolor=red\n", errors.ProtocolError),
        ("qcow2", "name=x\ndir_path=/x\ndir_path=/y\n", errors.ProtocolError),
        ("qcow2", "name=x\n\ndir_path=/x\n", errors.ProtocolError),
        ("qcow2", "name=a/b\ndir_path=/x\n", errors.QubesException),
        ("qcow2", "name=é\ndir_path=/x\n", errors.ProtocolError),
    ],
)
async def test_impossible_pool_is_refused(
    daemon: AdminDaemon, driver: str, payload: str, error: type[Exception]
) -> None:
    before = daemon.store.system
    with pytest.raises(error):
        await daemon.client.call("admin.pool.Add", arg=driver, payload=payload.encode())
    assert daemon.store.system is before


async def test_pool_in_use_or_unknown_is_not_removed(client: AdminClient) -> None:
    with pytest.raises(errors.QubesPoolInUseError):
        await client.remove_pool("default")
    for method in ("Info", "UsageDetails", "Remove", "volume.List"):
        with pytest.raises(errors.PermissionDenied, match="Argument not in"):
            await client.call(f"admin.pool.{method}", arg="nosuch")


async def test_option_unknown_to_the_pools_driver_is_refused(client: AdminClient) -> None:
    with pytest.raises(errors.QubesException, match="does not know it"):
        await client.set_pool("linux-kernel", "revisions_to_keep", 3)


async def test_failure_of_the_pool_is_told(daemon: AdminDaemon, client: AdminClient) -> None:
    daemon.engine.fail("pool_add", StorageError("cannot make the folder"))
    with pytest.raises(errors.StoragePoolException, match="cannot make the folder"):
        await client.add_pool("extra", "qcow2", {"dir_path": "/srv/extra"})


# firewall


async def test_firewall_of_a_new_qube_accepts_and_is_replaced_as_a_whole(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    assert await client.call("admin.vm.firewall.Get", "work") == b"action=accept\n"
    rules = b"proto=tcp action=accept dsthost=10.0.0.1 dstports=443\naction=drop comment=the rest\n"
    await client.call("admin.vm.firewall.Set", "work", payload=rules)
    assert await client.call("admin.vm.firewall.Get", "work") == (
        b"action=accept proto=tcp dst4=10.0.0.1/32 dstports=443-443\naction=drop comment=the rest\n"
    )
    assert ("work", "firewall") in daemon.engine.changed
    daemon.engine.changed.clear()
    await client.call("admin.vm.firewall.Reload", "work")
    assert ("work", "firewall") in daemon.engine.changed


async def test_firewall_line_that_is_no_rule_is_refused_and_changes_nothing(
    daemon: AdminDaemon, client: AdminClient
) -> None:
    for wrong in (b"action=allow\n", b"action=accept\naction=drop dst4=1.2.3\n", b"action=drop x=\xff\n"):
        with pytest.raises(errors.QubesValueError, match=r"[Ff]irewall rules"):
            await client.call("admin.vm.firewall.Set", "work", payload=wrong)
    assert await client.call("admin.vm.firewall.Get", "work") == b"action=accept\n"
    assert daemon.engine.changed == []


async def test_firewall_rule_whose_time_is_over_is_not_listed(client: AdminClient) -> None:
    await client.call("admin.vm.firewall.Set", "work", payload=b"action=accept expire=1\naction=drop\n")
    assert await client.call("admin.vm.firewall.Get", "work") == b"action=drop\n"


# statistics


async def test_stats_come_at_once_for_running_qubes_only(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.start("work")
    async with aclosing(client.stats()) as stats:
        assert (await anext(stats)).name == "connection-established"
        record = await anext(stats)
    assert (record.subject, record.name) == ("work", "vm-stats")
    assert record.kwargs["memory_kb"] == "65536"
    assert record.kwargs["online_vcpus"] == "2"
    assert record.kwargs["cpu_usage"] == "0"


async def test_stats_of_one_qube_failing_do_not_end_the_stream(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.start("work")
    daemon.engine.fail("stats", DriverError("its monitor does not answer"))  # the first asked is the template
    async with aclosing(client.stats()) as stats:
        await anext(stats)
        assert (await anext(stats)).subject == "work"


async def test_failure_of_the_hypervisor_is_told(daemon: AdminDaemon, client: AdminClient) -> None:
    daemon.engine.fail("stats", DriverError("its monitor does not answer"))
    with pytest.raises(errors.QubesException, match="monitor"):
        await client.current_state("work")


# the daemon


async def test_status_is_what_the_daemon_says(client: AdminClient) -> None:
    assert await client.status() == {"version": "0", "pid": 1, "driver": "fake", "capabilities": []}


async def test_shutdown_reaches_the_daemon(daemon: AdminDaemon, client: AdminClient) -> None:
    await client.shutdown_daemon()
    assert daemon.control.is_shut_down


@pytest.fixture
def image(tmp_path: Path) -> dict[str, str]:
    files = {name: tmp_path / f"built.{name}" for name in ("root_image", "kernel", "initrd")}
    for file in files.values():
        file.touch()
    return {
        **{name: str(file) for name, file in files.items()},
        "kernel_version": KERNEL,
        "cmdline": "console=hvc0 quiet",
        "content_key": "abc123",
        "distribution": "debian",
        "release": "12",
    }


async def test_built_template_is_taken_in(daemon: AdminDaemon, client: AdminClient, image: dict[str, str]) -> None:
    await client.install_template("debian-12", image)
    (installed,) = daemon.templates.installed
    assert (installed.name, installed.kernel_version, installed.content_key) == ("debian-12", KERNEL, "abc123")
    assert installed.root_image == Path(image["root_image"])


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (b"xterm.desktop:Name=XTerm\nxterm.desktop:Exec=qubes-desktop-run xterm.desktop\n", ["XTerm"]),
        (b"no list at all\n", []),
        (b"x" * (MAX_LIST + 1), []),
    ],
)
async def test_applications_of_a_built_template_are_known_at_once(
    daemon: AdminDaemon, client: AdminClient, image: dict[str, str], tmp_path: Path, said: bytes, known: list[str]
) -> None:
    said_by = tmp_path / "said"
    said_by.write_bytes(said)
    await client.install_template("debian-12", {**image, "applications": str(said_by)})
    assert [each["name"] for each in await client.applications("work")] == known
    assert len(daemon.templates.installed) == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"applications": "/nonexistent"}, errors.QubesValueError),
        ({"root_image": "/nonexistent"}, errors.QubesValueError),
        ({"kernel": "relative"}, errors.QubesValueError),
        ({"initrd": "/"}, errors.QubesValueError),
        ({"initrd": "a\0b"}, errors.QubesValueError),
        ({"kernel_version": "../../etc"}, errors.QubesValueError),
        ({"kernel_version": ""}, errors.QubesValueError),
        ({"cmdline": "a\nb"}, errors.QubesValueError),
        ({"content_key": "é"}, errors.ProtocolError),
        ({"extra": "x"}, errors.ProtocolError),
        ({"release": None}, errors.ProtocolError),
    ],
)
async def test_impossible_template_is_refused(
    daemon: AdminDaemon, image: dict[str, str], changes: dict[str, str | None], error: type[Exception]
) -> None:
    payload = json.dumps({**image, **changes}).encode()
    with pytest.raises(error):
        await daemon.client.call("insula.template.Install", arg="debian-12", payload=payload)
    assert daemon.templates.installed == []


async def test_system_info_has_what_policy_decides_on(daemon: AdminDaemon) -> None:
    await daemon.client.set_feature("work", "internal", "1")
    info = json.loads(await daemon.internal.call("internal.GetSystemInfo"))["domains"]
    assert list(info) == ["dom0", "debian-12", "work"]
    assert info["work"] == {
        "tags": ["audiovm-dom0", "created-by-dom0", "guivm-dom0"],
        "type": "AppVM",
        "internal": True,
        "template_for_dispvms": False,
        "default_dispvm": None,
        "icon": "appvm-blue",
        "label": "0x3465a4",
        "guivm": "dom0",
        "relayvm": None,
        "transport_rpc": None,
        "power_state": "Halted",
        "uuid": "00000000-0000-0000-0000-000000000002",
    }


async def test_concurrent_changes_are_all_kept(daemon: AdminDaemon, client: AdminClient) -> None:
    await asyncio.gather(*(client.add_tag("work", f"t{number}") for number in range(50)))
    assert {f"t{number}" for number in range(50)} <= daemon.store.system.get("work").tags


def test_cpu_usage_is_percent_of_the_qubes_cpus() -> None:
    earlier = Sample(10.0, MachineStats(1000, 1, 1, 2))
    later = Sample(12.0, MachineStats(3000, 1, 1, 2))
    assert stats_values(later, earlier)["cpu_usage"] == "50"
    assert stats_values(later, None)["cpu_usage"] == "0"
    assert stats_values(earlier, later)["cpu_usage"] == "0"
