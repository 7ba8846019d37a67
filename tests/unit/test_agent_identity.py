"""Identity: what the keys decide."""

from __future__ import annotations

import pytest

from insula_agent.identity import (
    _SAMPLE,
    Identity,
    IdentityError,
    parse_protected,
    plan_hosts,
    plan_services,
    plan_timezone,
)

KEYS = {
    "/name": b"work",
    "/default-user": b"user",
    "/qubes-vm-type": b"AppVM",
    "/qubes-vm-persistence": b"rw-only",
    "/qubes-timezone": b"Europe/Rome",
}


def test_app_qube_keys_give_its_identity() -> None:
    identity = Identity(KEYS)
    assert identity.hostname == "work"
    assert identity.user == "user"
    assert identity.timezone == "Europe/Rome"
    assert identity.run_files == ("this-is-appvm", "persistent-rw-only")


def test_identity_has_what_makes_a_fork_its_own() -> None:
    identity = Identity({**KEYS, "/insula-machine-id": b"a" * 32, "/insula-clock": b"1800000000000000000"})
    assert identity.machine_id == "a" * 32
    assert identity.clock == 1_800_000_000_000_000_000
    assert identity.entropy is None


def test_sample_that_seeds_rehearse_with_is_understood() -> None:
    identity = Identity(_SAMPLE)
    assert None not in (identity.entropy, identity.clock, identity.machine_id, identity.timezone)


def test_missing_user_is_the_default_user() -> None:
    assert Identity({name: value for name, value in KEYS.items() if name != "/default-user"}).user == "user"


@pytest.mark.parametrize(
    "change",
    [
        {"/name": b""},
        {"/name": b"a" * 64},
        {"/name": b"-rf"},
        {"/name": b"a/b"},
        {"/name": b"a b"},
        {"/name": b"a\n"},
        {"/name": "é".encode()},
        {"/qubes-vm-type": b"Toaster"},
        {"/qubes-vm-type": b""},
        {"/qubes-vm-persistence": b"sometimes"},
        {"/default-user": b"user;id"},
    ],
)
def test_key_that_cannot_be_meant_is_refused(change: dict[str, bytes]) -> None:
    with pytest.raises(IdentityError):
        Identity({**KEYS, **change})


@pytest.mark.parametrize(
    "zone", [b"", b"../../etc/passwd", b"/etc/passwd", b"Europe//Rome", b"./UTC", b"Europe/Ro me", b"x" * 65, b"\xff"]
)
def test_zone_that_is_no_plain_relative_path_is_none(zone: bytes) -> None:
    assert plan_timezone(zone) is None


@pytest.mark.parametrize("zone", ["UTC", "Europe/Rome", "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_zone_name_is_taken(zone: str) -> None:
    assert plan_timezone(zone.encode()) == zone


@pytest.mark.parametrize(
    ("vm_type", "present", "absent"),
    [
        ("AppVM", "tracker", "qubes-firewall"),
        ("TemplateVM", "updates-proxy-setup", "qubes-network"),
        ("NetVM", "qubes-updates-proxy", "tracker"),
        ("ProxyVM", "qubes-firewall", "network-manager"),
    ],
)
def test_services_follow_the_type(vm_type: str, present: str, absent: str) -> None:
    services = plan_services(vm_type, {})
    assert present in services
    assert absent not in services


def test_service_keys_override_the_defaults() -> None:
    services = plan_services("AppVM", {"/qubes-service/tracker": b"0", "/qubes-service/cups": b"1"})
    assert "tracker" not in services
    assert "cups" in services


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a\n"])
def test_service_that_is_no_file_name_is_left_out(name: str) -> None:
    assert plan_services("NetVM", {f"/qubes-service/{name}": b"1"}) == plan_services("NetVM", {})


def test_service_value_other_than_0_and_1_changes_nothing() -> None:
    assert "tracker" in plan_services("AppVM", {"/qubes-service/tracker": b""})
    assert "cups" not in plan_services("AppVM", {"/qubes-service/cups": b"yes"})


def test_hosts_gets_the_name_and_keeps_the_rest() -> None:
    text = "127.0.0.1\tlocalhost\n127.0.1.1 old\n10.0.0.1 printer # mine\n"
    assert plan_hosts(text, "work") == "127.0.0.1\tlocalhost\n10.0.0.1 printer # mine\n127.0.1.1\twork\n"


def test_hosts_of_nothing_has_localhost() -> None:
    assert plan_hosts("", "work") == "127.0.0.1\tlocalhost\n127.0.1.1\twork\n"


def test_hosts_twice_is_hosts_once() -> None:
    once = plan_hosts("", "work")
    assert plan_hosts(once, "work") == once


def test_protected_files_are_lines_with_a_path() -> None:
    assert parse_protected("# mine\n/etc/hosts\n\n  /etc/hostname \nnot a path\n") == {"/etc/hosts", "/etc/hostname"}
