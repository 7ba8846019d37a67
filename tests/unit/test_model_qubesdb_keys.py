import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.errors import QubesValueError, QubesVMNotFoundError
from insula.model.features import set_feature
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.properties import set_property
from insula.model.qubesdb_keys import MAX_KEY, MAX_VALUE, RANDOM_SEED_BYTES, boot_keys, seed_keys
from insula.model.system import System
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of

SEED = bytes(range(RANDOM_SEED_BYTES))


def keys_of(system: System, name: str) -> dict[str, str]:
    return boot_keys(system, QubeName(name), SEED, "Europe/Rome")


def test_app_qube_is_told_who_it_is() -> None:
    assert keys_of(small_system(), WORK) == {
        "/name": "work",
        "/insula-machine-id": small_system().get(QubeName(WORK)).uuid.hex,
        "/type": "AppVM",
        "/default-user": "user",
        "/qubes-vm-type": "AppVM",
        "/qubes-vm-updateable": "False",
        "/qubes-vm-persistence": "rw-only",
        "/qubes-base-template": "debian-12",
        "/qubes-debug-mode": "0",
        "/qubes-random-seed": base64.b64encode(SEED).decode(),
        "/qubes-timezone": "Europe/Rome",
        "/keyboard-layout": "us++",
        "/qubes-block-devices": "",
        "/qubes-usb-devices": "",
        "/qubes-service/meminfo-writer": "0",
        "/qubes-mac": "00:16:3e:5e:6c:00",
        "/qubes-ip": "10.137.0.3",
        "/qubes-netmask": "255.255.255.255",
        "/qubes-gateway": "10.137.0.2",
        "/qubes-primary-dns": "10.139.1.1",
        "/qubes-secondary-dns": "10.139.1.2",
    }


def test_machine_id_is_the_uuid_and_each_qube_has_its_own() -> None:
    ids = {keys_of(small_system(), name)["/insula-machine-id"] for name in (WORK, NET, TEMPLATE)}
    assert len(ids) == 3
    assert all(len(value) == 32 and set(value) <= set("0123456789abcdef") for value in ids)


def test_seed_is_told_that_it_is_one_and_nothing_of_any_qube_or_host() -> None:
    assert seed_keys() == {"/insula-seed": "1"}


@pytest.mark.parametrize(
    ("name", "vm_type", "persistence", "base"),
    [
        (TEMPLATE, "TemplateVM", "full", ""),
        (NET, "NetVM", "rw-only", TEMPLATE),
        ("sys-fw", "ProxyVM", "rw-only", TEMPLATE),
        (DISPOSABLE, "AppVM", "none", WORK),
        ("alone", "AppVM", "full", ""),
    ],
)
def test_kind_and_persistence_follow_class_and_network(name: str, vm_type: str, persistence: str, base: str) -> None:
    system = with_qube_of(small_system(), Klass.APPVM, "sys-fw", template=TEMPLATE, provides_network=True)
    keys = keys_of(with_qube_of(system, Klass.STANDALONEVM, "alone"), name)
    told = (keys["/qubes-vm-type"], keys["/qubes-vm-persistence"], keys["/qubes-base-template"])
    assert told == (vm_type, persistence, base)


def test_qube_without_network_is_told_of_none() -> None:
    system = set_property(small_system(), WORK, "netvm", None, all_halted)
    offline = {
        "/qubes-mac",
        "/qubes-ip",
        "/qubes-netmask",
        "/qubes-gateway",
        "/qubes-primary-dns",
        "/qubes-secondary-dns",
    }
    assert not offline & keys_of(system, WORK).keys()


def test_net_qube_is_told_what_its_clients_see() -> None:
    keys = keys_of(small_system(), NET)
    assert keys["/qubes-netvm-gateway"] == keys_of(small_system(), WORK)["/qubes-gateway"]
    assert "/qubes-ip" not in keys


def test_ipv6_keys_are_there_where_switched_on() -> None:
    system = set_feature(small_system(), NET, "ipv6", "1", all_halted)
    assert keys_of(system, WORK)["/qubes-ip6"] == "fd09:24ef:4179::a89:3"
    assert keys_of(system, WORK)["/qubes-gateway6"] == keys_of(system, NET)["/qubes-netvm-gateway6"]


def test_timezone_is_own_or_hosts_or_hidden() -> None:
    system = small_system()
    assert (
        keys_of(set_feature(system, WORK, "timezone", "Asia/Tokyo", all_halted), WORK)["/qubes-timezone"]
        == "Asia/Tokyo"
    )
    assert "/qubes-timezone" not in keys_of(set_feature(system, WORK, "anon-timezone", "1", all_halted), WORK)
    assert "/qubes-timezone" not in boot_keys(system, WORK, SEED, "")


def test_services_and_settings_are_delivered() -> None:
    system = small_system()
    for feature, value in (("service.cups", "1"), ("vm-config.x", "y z"), ("custom-persist.p", "/p")):
        system = set_feature(system, WORK, feature, value, all_halted)
    keys = keys_of(system, WORK)
    assert (keys["/qubes-service/cups"], keys["/vm-config/x"], keys["/persist/p"]) == ("1", "y z", "/p")


def test_memory_balancing_is_announced() -> None:
    system = set_property(small_system(), WORK, "maxmem", 800, all_halted)
    assert keys_of(system, WORK)["/qubes-service/meminfo-writer"] == "1"


def test_relay_is_told_far_names() -> None:
    system = with_qube_of(small_system(), Klass.REMOTEVM, "far", relayvm=WORK, remote_name="there")
    system = with_qube_of(system, Klass.REMOTEVM, "far2", relayvm=WORK)
    keys = keys_of(system, WORK)
    assert (keys["/remote/far"], keys["/remote/far2"]) == ("there", "far2")
    assert "/remote/far" not in keys_of(system, NET)


def test_unsuitable_request_is_refused() -> None:
    with pytest.raises(QubesValueError, match="seed"):
        boot_keys(small_system(), WORK, b"short", "UTC")
    with pytest.raises(QubesValueError, match="no machine"):
        keys_of(small_system(), ADMIN_NAME)
    with pytest.raises(QubesVMNotFoundError):
        keys_of(small_system(), "nowhere")


def test_value_beyond_the_limit_is_refused() -> None:
    system = small_system()
    qube = system.get(WORK).with_feature("vm-config.x", "v" * (MAX_VALUE + 1))
    with pytest.raises(QubesValueError, match="vm-config"):
        keys_of(system.with_qube(qube), WORK)


LETTERS = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABC019_.-", min_size=1, max_size=48)
PRINTABLE = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=100)


@given(st.sampled_from(["service.", "vm-config.a", "custom-persist."]), LETTERS, PRINTABLE)
def test_mc101_any_accepted_feature_is_one_key_within_limits(prefix: str, rest: str, value: str) -> None:
    system = small_system()
    before = keys_of(system, WORK)
    after = keys_of(system.with_qube(system.get(WORK).with_feature(prefix + rest, value)), WORK)
    added = after.items() - before.items()
    assert len(added) <= 2
    assert {value, "0", "1"} >= {v for _, v in added}
    assert all(len(key) <= MAX_KEY and key.startswith("/") for key in after)
    assert before.items() <= after.items() or prefix + rest == "service.meminfo-writer"
