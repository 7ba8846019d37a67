"""Properties: the published table, default chains, rules between qubes, what follows a change."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import (
    QubesException,
    QubesLabelNotFoundError,
    QubesNoSuchPropertyError,
    QubesPropertyValueError,
    QubesValueError,
    QubesVMInUseError,
    QubesVMNotFoundError,
    QubesVMNotHaltedError,
    QubesVMNotStartedError,
)
from insula.model.klass import LOCAL_KLASSES, Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import (
    Access,
    PowerStates,
    PropertyType,
    Runtime,
    default_of,
    definition,
    global_names,
    names_for,
    parse_value,
    reset_property,
    resolve,
    set_property,
)
from insula.model.property_text import default_text, get_text, list_line
from insula.model.property_types import Resolved
from insula.model.qube import PropertyValue
from insula.model.state import PowerState
from insula.model.system import PoolConfig, System
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of


def running(*names: str) -> PowerStates:
    return lambda name: PowerState.RUNNING if name in names else PowerState.HALTED


def value(system: System, qube: str | None, name: str, runtime: Runtime | None = None) -> PropertyValue:
    return resolve(system, None if qube is None else system.get(qube), name, runtime or Runtime()).value


def parse(system: System, qube: str | None, name: str, text: str) -> PropertyValue:
    of = None if qube is None else system.get(qube)
    return parse_value(definition(None if of is None else of.klass, name), text, system, of)


REMOTE_NAMES = "name qid uuid klass label icon include_in_backups relayvm transport_rpc remote_name"
DOM0_NAMES = (
    "name qid uuid klass label icon include_in_backups updateable default_dispvm keyboard_layout maxmem devices_denied"
)
LOCAL_NAMES = """
    name qid uuid klass label icon include_in_backups default_dispvm management_dispvm guivm audiovm keyboard_layout
    devices_denied updateable autostart debug installed_by_rpm backup_timestamp default_user memory maxmem stubdom_mem
    vcpus virt_mode kernel kernelopts bootmode qrexec_timeout shutdown_timeout netvm provides_network mac ip ip6
    visible_ip visible_ip6 visible_gateway visible_gateway6 visible_netmask gateway gateway6 dns start_time xid
    stubdom_xid stubdom_uuid start_mode uplink
"""
GLOBAL_NAMES = """
    check_updates_vm clockvm default_audiovm default_guivm default_dispvm management_dispvm default_kernel default_netvm
    default_pool default_pool_root default_pool_private default_pool_volatile default_pool_kernel
    default_qrexec_timeout default_shutdown_timeout default_template maxmem no_cpus stats_interval updatevm
"""


@pytest.mark.parametrize(
    ("klass", "names"),
    [
        (Klass.REMOTEVM, REMOTE_NAMES),
        (Klass.ADMINVM, DOM0_NAMES),
        (Klass.TEMPLATEVM, LOCAL_NAMES + "appvm_default_bootmode"),
        (Klass.STANDALONEVM, LOCAL_NAMES + "template_for_dispvms"),
        (Klass.APPVM, LOCAL_NAMES + "template template_for_dispvms"),
        (Klass.DISPVM, LOCAL_NAMES + "template auto_cleanup dispid is_preload"),
    ],
)
def test_class_has_exactly_the_published_properties(klass: Klass, names: str) -> None:
    assert sorted(names_for(klass)) == sorted(names.split())


def test_system_has_exactly_the_published_properties() -> None:
    assert sorted(global_names()) == sorted(GLOBAL_NAMES.split())


def test_every_property_of_every_class_resolves_to_its_type() -> None:
    system = with_qube_of(small_system(), Klass.REMOTEVM, "far")
    system = with_qube_of(system, Klass.STANDALONEVM, "alone")
    assert {qube.klass for qube in system.qubes.values()} == set(Klass)
    python_types = {PropertyType.INT: int, PropertyType.BOOL: bool}
    for qube in [*system.qubes.values(), None]:
        for name in global_names() if qube is None else names_for(qube.klass):
            resolved = resolve(system, qube, name)
            assert resolved.type is definition(None if qube is None else qube.klass, name).type
            assert resolved.value is None or type(resolved.value) in (python_types.get(resolved.type, str), QubeName)
            if resolved.type is PropertyType.BOOL:
                assert resolved.value is not None
            assert definition(None if qube is None else qube.klass, name).help.endswith(".")


@pytest.mark.parametrize(
    ("qube", "name", "expected"),
    [
        (WORK, "memory", 400),
        (WORK, "vcpus", 2),
        (WORK, "maxmem", 0),
        (WORK, "virt_mode", "pvh"),
        (WORK, "kernelopts", "swiotlb=2048"),
        (WORK, "default_user", "user"),
        (WORK, "qrexec_timeout", 60),
        (WORK, "bootmode", "default"),
        (WORK, "start_mode", "auto"),
        (WORK, "netvm", NET),
        (TEMPLATE, "netvm", None),
        (WORK, "guivm", ADMIN_NAME),
        (WORK, "updateable", False),
        (TEMPLATE, "updateable", True),
        (ADMIN_NAME, "updateable", True),
        (WORK, "include_in_backups", True),
        (DISPOSABLE, "include_in_backups", False),
        (DISPOSABLE, "default_dispvm", WORK),
        (WORK, "default_dispvm", None),
        (WORK, "keyboard_layout", "us++"),
        (WORK, "mac", "00:16:3e:5e:6c:00"),
        (WORK, "xid", -1),
        (WORK, "start_time", None),
        (WORK, "backup_timestamp", None),
        (None, "default_guivm", "dom0"),
        (None, "default_pool_root", "default"),
        (None, "stats_interval", 3),
        (None, "check_updates_vm", True),
    ],
)
def test_unset_property_has_the_published_default(qube: str | None, name: str, expected: PropertyValue) -> None:
    assert value(small_system(), qube, name) == expected


@pytest.mark.parametrize("name", ["memory", "vcpus", "maxmem", "qrexec_timeout", "shutdown_timeout"])
def test_default_chain_is_template_then_constant_or_global(name: str) -> None:
    system = set_property(small_system(), TEMPLATE, name, 77, all_halted)
    assert value(system, WORK, name) == 77
    assert value(system, DISPOSABLE, name) == 77, "through its app qube"
    system = set_property(system, WORK, name, 88, all_halted)
    assert value(system, DISPOSABLE, name) == 88
    assert value(reset_property(system, WORK, name, all_halted), WORK, name) == 77


def test_timeout_falls_back_to_global() -> None:
    system = set_property(small_system(), None, "default_qrexec_timeout", 5, all_halted)
    assert value(system, DISPOSABLE, "qrexec_timeout") == 5


def test_kernel_falls_back_to_global_and_brings_its_options() -> None:
    system = set_property(small_system(), None, "default_kernel", "6.1", all_halted, kernels=frozenset({"6.1"}))
    assert value(system, WORK, "kernel") == "6.1"
    assert value(system, WORK, "kernelopts", Runtime(kernel_options={"6.1": "quiet"})) == "quiet"


def test_keyboard_layout_comes_from_guivm_and_survives_a_circle() -> None:
    system = set_property(small_system(), ADMIN_NAME, "keyboard_layout", "de+nodeadkeys+", all_halted)
    assert value(system, WORK, "keyboard_layout") == "de+nodeadkeys+"
    system = set_property(system, WORK, "guivm", NET, all_halted)
    system = set_property(system, NET, "guivm", WORK, all_halted)
    assert value(system, WORK, "keyboard_layout") == "us++"


def test_boot_mode_follows_features() -> None:
    system = small_system()
    system = system.with_qube(system.get(TEMPLATE).with_feature("boot-mode.appvm-default", "hardened"))
    assert value(system, WORK, "bootmode") == "hardened"
    assert value(system, TEMPLATE, "bootmode") == "default"
    system = system.with_qube(system.get(WORK).with_feature("boot-mode.active", "plain"))
    assert value(system, WORK, "bootmode") == "plain"


@pytest.mark.parametrize(
    ("name", "icon"),
    [
        (ADMIN_NAME, "adminvm-black"),
        (TEMPLATE, "templatevm-black"),
        (NET, "servicevm-red"),
        (WORK, "templatevm-blue"),
        (DISPOSABLE, "dispvm-red"),
        ("alone", "standalonevm-red"),
        ("far", "remotevm-red"),
        ("plain", "appvm-red"),
    ],
)
def test_icon_says_kind_and_label(name: str, icon: str) -> None:
    system = with_qube_of(small_system(), Klass.STANDALONEVM, "alone")
    system = with_qube_of(with_qube_of(system, Klass.REMOTEVM, "far"), Klass.APPVM, "plain", template=TEMPLATE)
    assert value(system, name, "icon") == icon


def test_preloaded_disposable_is_told_from_others() -> None:
    system = small_system()
    assert value(system, DISPOSABLE, "is_preload") is False
    system = system.with_qube(system.get(WORK).with_feature("preload-dispvm", f"disp1 {DISPOSABLE}"))
    assert value(system, DISPOSABLE, "is_preload") is True


def test_runtime_facts_belong_to_the_qube_asked_about() -> None:
    runtime = Runtime(start_time=12.5, xid=7, host_memory_mib=16000, host_cpus=8)
    system = small_system()
    assert value(system, WORK, "start_time", runtime) == "12.5"
    assert value(system, WORK, "xid", runtime) == 7
    assert value(system, None, "maxmem", runtime) == 16000
    assert value(system, ADMIN_NAME, "maxmem", runtime) == 16000
    assert value(system, None, "no_cpus", runtime) == 8


# network


@pytest.mark.parametrize(
    ("qid", "ip"),
    [(1, "10.137.0.1"), (254, "10.137.0.254"), (255, "10.137.1.1"), (508, "10.137.1.254"), (509, "10.137.2.1")],
)
def test_address_follows_number(qid: int, ip: str) -> None:
    system = small_system()
    qube = system.get(WORK)
    moved = system.with_qube(type(qube)(**{**vars(qube), "qid": qid}))
    assert value(moved, WORK, "ip") == ip
    assert value(moved, WORK, "visible_ip") == ip


@given(st.integers(1, 10000), st.integers(1, 10000))
def test_addresses_of_different_numbers_differ(one: int, other: int) -> None:
    system = small_system()
    qube = system.get(WORK)
    ips = [value(system.with_qube(type(qube)(**{**vars(qube), "qid": qid})), WORK, "ip") for qid in (one, other)]
    assert (ips[0] == ips[1]) == (one == other)
    assert all(re.fullmatch(r"10\.137\.\d{1,2}\.\d{1,3}", str(ip)) for ip in ips)


def test_disposable_has_address_of_its_own_range() -> None:
    assert value(small_system(), DISPOSABLE, "ip") == "10.138.4.218"


def test_qube_without_network_has_no_addresses() -> None:
    system = set_property(small_system(), WORK, "netvm", None, all_halted)
    names = ["ip", "ip6", "visible_ip", "visible_gateway", "visible_netmask", "gateway", "dns"]
    assert [value(system, WORK, name) for name in names] == [None] * 7
    assert value(system, NET, "gateway") == "10.137.0.2"


def test_gateway_of_client_is_address_of_net_qube() -> None:
    system = small_system()
    assert value(system, WORK, "visible_gateway") == value(system, NET, "ip") == "10.137.0.2"
    assert value(system, WORK, "visible_netmask") == "255.255.255.255"
    assert value(system, WORK, "dns") == "10.139.1.1 10.139.1.2"


def test_fake_addresses_change_what_the_guest_sees_only() -> None:
    system = small_system()
    qube = system.get(WORK).with_feature("net.fake-ip", "192.168.1.2").with_feature("net.fake-gateway", "192.168.1.1")
    system = system.with_qube(qube.with_feature("net.fake-netmask", "255.255.255.0"))
    seen = [value(system, WORK, f"visible_{name}") for name in ("ip", "gateway", "netmask")]
    assert seen == ["192.168.1.2", "192.168.1.1", "255.255.255.0"]
    assert value(system, WORK, "ip") == "10.137.0.3"


def test_ipv6_is_switched_on_along_the_net_qubes() -> None:
    system = small_system()
    assert value(system, WORK, "ip6") is None
    system = system.with_qube(system.get(NET).with_feature("ipv6", "1"))
    assert value(system, WORK, "ip6") == "fd09:24ef:4179::a89:3"
    assert value(system, DISPOSABLE, "ip6") == "fd09:24ef:4179::a8a:4d2"
    assert value(system, WORK, "visible_gateway6") == "fd09:24ef:4179::a89:2"


def test_net_qube_must_provide_network() -> None:
    with pytest.raises(QubesPropertyValueError, match="does not provide network"):
        set_property(small_system(), NET, "netvm", WORK, all_halted)
    with pytest.raises(QubesPropertyValueError, match="does not provide network"):
        set_property(small_system(), None, "default_netvm", WORK, all_halted)
    with pytest.raises(QubesPropertyValueError, match="does not provide network"):
        set_property(small_system(), WORK, "netvm", ADMIN_NAME, all_halted)


def test_net_loop_is_refused_in_every_way_to_make_one() -> None:
    system = with_qube_of(small_system(), Klass.APPVM, "sys-fw", template=TEMPLATE)
    system = set_property(system, "sys-fw", "provides_network", True, all_halted)
    with pytest.raises(QubesPropertyValueError, match="itself"):
        set_property(system, NET, "netvm", NET, all_halted)
    with pytest.raises(QubesPropertyValueError, match="loop"):
        set_property(system, NET, "netvm", "sys-fw", all_halted)
    with pytest.raises(QubesPropertyValueError, match="loop"):
        set_property(system, None, "default_netvm", "sys-fw", all_halted)
    with pytest.raises(QubesPropertyValueError, match="itself"):
        reset_property(system, NET, "netvm", all_halted)
    assert value(set_property(system, WORK, "netvm", "sys-fw", all_halted), WORK, "netvm") == "sys-fw"


def test_running_qube_cannot_be_moved_to_halted_net_qube() -> None:
    system = with_qube_of(small_system(), Klass.APPVM, "other", template=TEMPLATE, provides_network=True, netvm=None)
    with pytest.raises(QubesVMNotStartedError):
        set_property(system, WORK, "netvm", "other", running(WORK))
    for states in (running(WORK, "other"), all_halted):
        assert value(set_property(system, WORK, "netvm", "other", states), WORK, "netvm") == "other"
    assert value(set_property(system, WORK, "netvm", None, running(WORK)), WORK, "netvm") is None


def test_network_in_use_cannot_be_withdrawn() -> None:
    with pytest.raises(QubesVMInUseError, match="default_netvm"):
        set_property(small_system(), NET, "provides_network", False, all_halted)
    with pytest.raises(QubesVMInUseError):
        reset_property(small_system(), NET, "provides_network", all_halted)
    free = reset_property(small_system(), None, "default_netvm", all_halted)
    assert value(set_property(free, NET, "provides_network", False, all_halted), NET, "provides_network") is False


def test_providing_network_is_mirrored_in_feature_servicevm() -> None:
    system = reset_property(small_system(), None, "default_netvm", all_halted)
    assert system.get(NET).features["servicevm"] == "1"
    assert "servicevm" not in reset_property(system, NET, "provides_network", all_halted).get(NET).features


# templates and disposables


def with_second_template(system: System) -> System:
    return with_qube_of(system, Klass.TEMPLATEVM, "fedora")


def test_template_change_takes_root_of_qube_and_its_disposables_along() -> None:
    system = set_property(with_second_template(small_system()), WORK, "template", "fedora", all_halted)
    assert system.get(WORK).volumes["root"].source == "qubes/fedora/root"
    assert system.get(DISPOSABLE).volumes["root"].source == "qubes/fedora/root"
    assert system.get(DISPOSABLE).volumes["private"].source == "qubes/work/private"
    assert system.get(NET).volumes["root"].source == "qubes/debian-12/root"


@pytest.mark.parametrize("runs", [WORK, DISPOSABLE])
def test_template_change_needs_qube_and_its_disposables_halted(runs: str) -> None:
    with pytest.raises(QubesVMNotHaltedError, match=runs):
        set_property(with_second_template(small_system()), WORK, "template", "fedora", running(runs))


def test_template_of_wrong_class_is_refused() -> None:
    with pytest.raises(QubesPropertyValueError, match="not a TemplateVM"):
        set_property(small_system(), WORK, "template", NET, all_halted)
    with pytest.raises(QubesPropertyValueError, match="template_for_dispvms"):
        set_property(small_system(), DISPOSABLE, "template", NET, all_halted)
    with pytest.raises(QubesPropertyValueError, match="template_for_dispvms"):
        set_property(small_system(), DISPOSABLE, "template", TEMPLATE, all_halted)
    with pytest.raises(QubesPropertyValueError):
        set_property(small_system(), WORK, "template", None, all_halted)
    with pytest.raises(QubesPropertyValueError, match="no default"):
        reset_property(small_system(), WORK, "template", all_halted)


def test_disposables_need_their_template_to_allow_them() -> None:
    with pytest.raises(QubesVMInUseError, match=DISPOSABLE):
        set_property(small_system(), WORK, "template_for_dispvms", False, all_halted)
    system = small_system().without_qube(DISPOSABLE)
    used = set_property(system, None, "default_dispvm", WORK, all_halted)
    with pytest.raises(QubesVMInUseError, match="default_dispvm"):
        reset_property(used, WORK, "template_for_dispvms", all_halted)
    assert (
        value(reset_property(system, WORK, "template_for_dispvms", all_halted), WORK, "template_for_dispvms") is False
    )


@pytest.mark.parametrize("name", ["default_dispvm", "management_dispvm"])
@pytest.mark.parametrize("qube", [None, NET])
def test_disposable_template_must_allow_disposables(qube: QubeName | None, name: str) -> None:
    with pytest.raises(QubesPropertyValueError, match="template_for_dispvms"):
        set_property(small_system(), qube, name, TEMPLATE, all_halted)
    assert value(set_property(small_system(), qube, name, WORK, all_halted), qube, name) == WORK
    assert value(set_property(small_system(), qube, name, None, all_halted), qube, name) is None


# other rules


def test_unknown_kernel_is_refused_and_empty_one_accepted() -> None:
    kernels = frozenset({"6.1"})
    for qube, name in ((WORK, "kernel"), (None, "default_kernel")):
        with pytest.raises(QubesPropertyValueError, match="there is: 6"):
            set_property(small_system(), qube, name, "6.2", all_halted, kernels=kernels)
        for good in ("6.1", ""):
            assert (
                value(set_property(small_system(), qube, name, good, all_halted, kernels=kernels), qube, name) == good
            )


def test_kernel_volume_follows_the_kernel() -> None:
    system = set_property(small_system(), None, "default_kernel", "6.1", all_halted)
    assert {q.volumes["kernel"].vid for q in system.qubes.values() if q.volumes} == {"6.1"}
    system = set_property(system, TEMPLATE, "kernel", "6.9", all_halted)
    assert system.get(DISPOSABLE).volumes["kernel"].vid == "6.9"


def test_default_pool_must_exist_and_root_follows_it() -> None:
    with pytest.raises(QubesPropertyValueError, match="no such pool"):
        set_property(small_system(), None, "default_pool", "fast", all_halted)
    system = small_system().with_pool(PoolConfig("fast", "qcow2"))
    assert value(set_property(system, None, "default_pool", "fast", all_halted), None, "default_pool_root") == "fast"
    assert value(System().with_pool(PoolConfig("b", "x")).with_pool(PoolConfig("a", "x")), None, "default_pool") == "a"


def test_clockvm_moves_its_feature() -> None:
    system = set_property(small_system(), None, "clockvm", NET, all_halted)
    assert system.get(NET).features["service.clocksync"] == "1"
    system = set_property(system, None, "clockvm", WORK, all_halted)
    assert "service.clocksync" not in system.get(NET).features
    assert system.get(WORK).features["service.clocksync"] == "1"
    assert "service.clocksync" not in reset_property(system, None, "clockvm", all_halted).get(WORK).features


def test_tags_follow_guivm_of_qube_and_of_system() -> None:
    system = set_property(small_system(), WORK, "guivm", NET, all_halted)
    assert system.get(WORK).tags >= {"guivm-sys-net", "audiovm-dom0"}
    system = set_property(system, None, "default_guivm", None, all_halted)
    assert not any(tag.startswith("guivm-") for tag in system.get(DISPOSABLE).tags)
    assert "guivm-sys-net" in system.get(WORK).tags


@pytest.mark.parametrize(("qube", "name"), [(None, "default_template"), (None, "clockvm"), (None, "updatevm")])
def test_global_of_unsuitable_class_is_refused(qube: None, name: str) -> None:
    system = with_qube_of(small_system(), Klass.REMOTEVM, "far")
    with pytest.raises(QubesPropertyValueError, match="far"):
        set_property(system, qube, name, "far", all_halted)


def test_relay_must_be_local() -> None:
    system = with_qube_of(with_qube_of(small_system(), Klass.REMOTEVM, "far"), Klass.REMOTEVM, "farther")
    with pytest.raises(QubesPropertyValueError):
        set_property(system, QubeName("far"), "relayvm", "farther", all_halted)
    assert "relayvm-sys-net" in set_property(system, QubeName("far"), "relayvm", NET, all_halted).get("far").tags


# access


@pytest.mark.parametrize(
    "name", [n for n in names_for(Klass.APPVM) if definition(Klass.APPVM, n).access is Access.READ_ONLY]
)
def test_read_only_property_is_refused(name: str) -> None:
    for change in (
        lambda: parse(small_system(), WORK, name, "1"),
        lambda: set_property(small_system(), WORK, name, 1, all_halted),
        lambda: reset_property(small_system(), WORK, name, all_halted),
    ):
        with pytest.raises(QubesPropertyValueError, match="read-only"):
            change()


@pytest.mark.parametrize(("qube", "name"), [(WORK, "name"), (WORK, "qid"), (WORK, "uuid"), (DISPOSABLE, "dispid")])
def test_property_set_at_creation_is_refused_with_value_error(qube: str, name: str) -> None:
    with pytest.raises(QubesValueError, match="cannot change") as error:
        parse(small_system(), qube, name, "5")
    assert error.value.wire_name == "QubesValueError"


@pytest.mark.parametrize(
    ("qube", "name"), [(WORK, "nope"), (TEMPLATE, "template"), (ADMIN_NAME, "memory"), (None, "memory")]
)
def test_property_of_other_class_does_not_exist(qube: str | None, name: str) -> None:
    system = small_system()
    with pytest.raises(QubesNoSuchPropertyError, match=name):
        resolve(system, None if qube is None else system.get(qube), name)


def test_setting_on_unknown_qube_is_refused() -> None:
    with pytest.raises(QubesVMNotFoundError):
        set_property(small_system(), QubeName("nowhere"), "memory", 1, all_halted)


def test_value_of_wrong_type_is_refused() -> None:
    for name, wrong in (("memory", "400"), ("memory", True), ("debug", 1), ("kernel", None), ("netvm", 5)):
        with pytest.raises(QubesPropertyValueError, match="type"):
            set_property(small_system(), WORK, name, wrong, all_halted)


def test_label_is_changed_by_name_or_index_but_not_of_dom0() -> None:
    system = small_system()
    assert parse(system, WORK, "label", "label-4") == "green"
    assert set_property(system, WORK, "label", "green", all_halted).get(WORK).label == "green"
    with pytest.raises(QubesLabelNotFoundError):
        parse(system, WORK, "label", "pink")
    with pytest.raises(QubesPropertyValueError):
        parse(system, ADMIN_NAME, "label", "red")
    with pytest.raises(QubesPropertyValueError):
        reset_property(system, WORK, "label", all_halted)


# parsing


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory", "512", 512),
        ("maxmem", "0", 0),
        ("debug", "TRUE", True),
        ("debug", "on", True),
        ("debug", "No", False),
        ("netvm", "", None),
        ("netvm", "sys-net", "sys-net"),
        ("virt_mode", "HVM", "hvm"),
        ("start_mode", "cold", "cold"),
        ("kernel", "", ""),
        ("kernelopts", "nomodeset a='b c' \"d\" <e>,%s", "nomodeset a='b c' \"d\" <e>,%s"),
        (
            "keyboard_layout",
            "de+nodeadkeys+grp:alt_shift_toggle,ctrl:nocaps",
            "de+nodeadkeys+grp:alt_shift_toggle,ctrl:nocaps",
        ),
        ("devices_denied", "u03****b******u03****", "b******u03****"),
        ("mac", "00:16:3E:00:00:01", "00:16:3e:00:00:01"),
        ("ip", "10.1.2.3", "10.1.2.3"),
        ("ip6", "FD00::1", "fd00::1"),
        ("default_user", "alice", "alice"),
    ],
)
def test_valid_text_is_parsed(name: str, text: str, expected: PropertyValue) -> None:
    parsed = parse(small_system(), WORK, name, text)
    assert parsed == expected
    assert type(parsed) is type(expected) or expected is None or isinstance(parsed, str)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory", ""),
        ("memory", "0"),
        ("memory", "-1"),
        ("memory", "4e2"),
        ("memory", "１２"),
        ("memory", "9" * 11),
        ("memory", "1 "),
        ("vcpus", "129"),
        ("debug", ""),
        ("debug", "maybe"),
        ("netvm", "none such"),
        ("netvm", "nowhere"),
        ("template", ""),
        ("virt_mode", "kvm"),
        ("start_mode", "lukewarm"),
        ("kernel", "../vmlinuz"),
        ("kernelopts", "x" * 1025),
        ("kernelopts", "a\nb"),
        ("kernelopts", "é"),
        ("keyboard_layout", "us"),
        ("keyboard_layout", "us+;rm+"),
        ("devices_denied", "u03***"),
        ("devices_denied", "x******"),
        ("mac", "01:16:3e:00:00:01"),
        ("mac", "00:16:3e:00:00"),
        ("ip", "10.1.2"),
        ("ip", "010.1.2.3"),
        ("ip6", "fe80::1%eth0"),
        ("default_user", "-root"),
        ("default_user", ""),
        ("qrexec_timeout", "0"),
    ],
)
def test_invalid_text_is_refused_with_property_named(name: str, text: str) -> None:
    with pytest.raises(QubesPropertyValueError, match=name):
        parse(small_system(), WORK, name, text)


WRITABLE = [n for n in names_for(Klass.APPVM) if definition(Klass.APPVM, n).access is Access.READ_WRITE]


@given(st.sampled_from(WRITABLE), st.text(max_size=60))
def test_mc101_mc102_any_text_becomes_a_clean_value_or_is_refused(name: str, text: str) -> None:
    try:
        parsed = parse(small_system(), WORK, name, text)
    except QubesException as error:
        assert str(error).isascii()
        assert str(error).isprintable()
        return
    assert text.isascii()
    if isinstance(parsed, str):
        assert parsed == "" or parsed.isprintable()
        assert parse(small_system(), WORK, name, parsed) == parsed


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
def test_mc101_kernel_options_arrive_as_they_were_sent(text: str) -> None:
    parsed = parse(small_system(), WORK, "kernelopts", text)
    system = set_property(small_system(), WORK, "kernelopts", parsed, all_halted)
    assert value(system, WORK, "kernelopts") == text


# wire text


@pytest.mark.parametrize(
    ("resolved", "text"),
    [
        (Resolved(400, True, PropertyType.INT), "default=True type=int 400"),
        (Resolved(None, False, PropertyType.VM), "default=False type=vm "),
        (Resolved(True, False, PropertyType.BOOL), "default=False type=bool True"),
        (Resolved("red", False, PropertyType.LABEL), "default=False type=label red"),
    ],
)
def test_value_is_written_as_published(resolved: Resolved, text: str) -> None:
    assert get_text(resolved) == text


def test_backslash_and_newline_are_escaped_in_lists() -> None:
    assert list_line("x", Resolved("a\\b\nc", True, PropertyType.STR)) == "x default=True type=str a\\\\b\\nc\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory", "type=int 400"),
        ("netvm", "type=vm sys-net"),
        ("qid", ""),
        ("icon", ""),
        ("template", ""),
        ("backup_timestamp", "type=int "),
    ],
)
def test_default_is_written_as_published(name: str, text: str) -> None:
    system = set_property(small_system(), WORK, "memory", 999, all_halted)
    assert default_text(default_of(system, system.get(WORK), name)) == text


def test_set_property_equal_to_default_is_not_default() -> None:
    system = set_property(small_system(), WORK, "memory", 400, all_halted)
    assert resolve(system, system.get(WORK), "memory").is_default is False
    assert resolve(small_system(), small_system().get(WORK), "memory").is_default is True


def test_local_classes_share_all_but_their_own_properties() -> None:
    shared = set.intersection(*(set(names_for(klass)) for klass in LOCAL_KLASSES))
    assert shared == set(LOCAL_NAMES.split())
