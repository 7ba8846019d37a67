"""Which machine is linked to which, through starts, ends, changes and a new daemon; a fake hypervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from insula.hal.errors import DriverError
from insula.lifecycle import links
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.plan import MAX_CLIENTS
from insula.model.errors import QubesException, QubesVMInUseError
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import reset_property, set_property
from insula.model.property_resolution import view
from insula.model.roles import ANONYMOUS, TOR_SERVICE
from insula.model.state import PowerState
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench
from insula_proto.firewall import parse_rules

NET, FIREWALL, OTHER = QubeName("sys-net"), QubeName("sys-firewall"), QubeName("other-net")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """``work`` behind ``sys-firewall`` behind ``sys-net``, which leads outside; ``other-net`` leads nowhere."""
    async with engine_bench(tmp_path) as made:
        for name in (NET, FIREWALL, OTHER):
            await made.engine.create(CreateRequest(name=name, klass=Klass.APPVM, label="red", template=TEMPLATE))
            put(made, name, "provides_network", True)
            put(made, name, "netvm", None)
        put(made, NET, "uplink", "host")
        put(made, FIREWALL, "netvm", NET)
        put(made, WORK, "netvm", FIREWALL)
        yield made


def put(bench: Bench, qube: QubeName, name: str, value: str | bool | None) -> None:
    store = bench.host.store
    store.commit(set_property(store.system, qube, name, value, bench.engine.power_state))


async def change(bench: Bench, qube: QubeName, name: str, value: str | bool | None) -> None:
    put(bench, qube, name, value)
    await bench.engine.property_changed(qube, name)


def link_of(bench: Bench, name: str) -> tuple[str, int] | None:
    """Name of the machine a qube's interface is joined to, and the number there, as the hypervisor has it."""
    link = bench.guest(name).linked_to
    return None if link is None else (bench.computer.guests[link[0]].spec.name, link[1])


def told(bench: Bench, name: str) -> dict[str, str]:
    """What a net qube's agent knows of its clients."""
    keys = bench.sessions.of(name).keys
    return {path: value for path, value in keys.items() if path.startswith("/insula-link/")}


async def test_start_brings_up_the_chain_and_links_it(bench: Bench) -> None:
    await bench.engine.start(WORK)
    assert link_of(bench, "work") == ("sys-firewall", 0)
    assert link_of(bench, "sys-firewall") == ("sys-net", 0)
    assert bench.guest("sys-net").is_outside
    assert not bench.guest("sys-firewall").is_outside
    assert not bench.guest("work").is_outside
    mac, ip = told(bench, "sys-firewall")["/insula-link/0"].split()
    assert (mac, ip) == ("00:16:3e:5e:6c:00", bench.sessions.of("work").keys["/qubes-ip"])


async def test_qube_without_net_qube_has_no_interface(bench: Bench) -> None:
    """MC-82"""
    put(bench, WORK, "netvm", None)
    await bench.engine.start(WORK)
    assert bench.guest("work").mac is None
    assert not any(path.startswith("/qubes-ip") for path in bench.sessions.of("work").keys)


async def test_net_qube_is_told_whose_link_it_is_before_there_is_one_and_that_before_the_guest_runs(
    bench: Bench,
) -> None:
    """MC-83"""
    await bench.engine.start(FIREWALL)
    gate = bench.computer.script.hold_next("link")
    starting = asyncio.create_task(bench.engine.start(WORK))
    while ("work", "link") not in bench.computer.script.calls:
        await asyncio.sleep(0)
    assert list(told(bench, "sys-firewall")) == ["/insula-link/0"]
    assert ("work", "resume") not in bench.computer.script.calls
    gate.set()
    await starting
    assert link_of(bench, "work") == ("sys-firewall", 0)


async def test_link_that_fails_undoes_the_start_and_takes_back_what_was_told(bench: Bench) -> None:
    await bench.engine.start(FIREWALL)
    bench.computer.script.fail_next("link")
    with pytest.raises(QubesException, match="linking it to its network"):
        await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    assert told(bench, "sys-firewall") == {}
    await bench.engine.start(WORK)
    assert link_of(bench, "work") == ("sys-firewall", 0)


async def test_client_that_ends_leaves_its_number_to_the_next(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.engine.kill(WORK)
    assert told(bench, "sys-firewall") == {}
    await bench.engine.start(WORK)
    assert link_of(bench, "work") == ("sys-firewall", 0)


async def test_net_qube_that_comes_back_has_its_clients_again(bench: Bench) -> None:
    """MC-85"""
    await bench.engine.start(WORK)
    bench.guest("sys-firewall").die()
    while bench.engine.power_state(FIREWALL) is not PowerState.HALTED:
        await asyncio.sleep(0)
    assert link_of(bench, "work") is None or bench.guest("sys-firewall").exit is not None
    await bench.engine.start(FIREWALL)
    assert link_of(bench, "work") == ("sys-firewall", 0)
    assert bench.computer.guests[bench.guest("work").linked_to[0]].exit is None  # type: ignore[index]
    assert list(told(bench, "sys-firewall")) == ["/insula-link/0"]


async def test_client_that_could_not_be_linked_to_a_net_qube_that_came_back_is_linked_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MC-85"""
    monkeypatch.setattr(links, "LINK_AGAIN_S", (0.0, 0.0, 0.0))
    await bench.engine.start(WORK)
    await bench.engine.kill(FIREWALL)
    for _ in range(2):
        bench.computer.script.fail_next("link", DriverError("the interface of machine 'work' is linked already"))
    # (The first link of a start is the net qube's own.)
    put(bench, FIREWALL, "netvm", None)
    await bench.engine.start(FIREWALL)
    async with asyncio.timeout(120):
        while told(bench, "sys-firewall") == {} or link_of(bench, "work") != ("sys-firewall", 0):
            await asyncio.sleep(0)


async def test_net_qube_that_has_ended_is_not_linked_to_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LINK_AGAIN_S", (0.0, 0.0, 0.0))
    await bench.engine.start(WORK)
    await bench.engine.kill(FIREWALL)
    put(bench, FIREWALL, "netvm", None)
    bench.computer.script.fail_next("link")
    await bench.engine.start(FIREWALL)
    await bench.engine.kill(FIREWALL)
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.engine.links.note_of(WORK) is None


async def test_running_qube_moves_to_another_net_qube(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.engine.start(OTHER)
    await change(bench, WORK, "netvm", OTHER)
    assert link_of(bench, "work") == ("other-net", 0)
    assert told(bench, "sys-firewall") == {}
    assert list(told(bench, "other-net")) == ["/insula-link/0"]
    keys = bench.sessions.of("work").keys
    assert keys["/qubes-gateway"] == bench.sessions.of("other-net").keys["/qubes-netvm-gateway"]


async def test_running_qube_whose_network_is_taken_loses_its_interface_and_gets_one_again(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await change(bench, WORK, "netvm", None)
    assert bench.guest("work").mac is None
    assert "/qubes-ip" not in bench.sessions.of("work").keys
    assert told(bench, "sys-firewall") == {}
    await change(bench, WORK, "netvm", FIREWALL)
    assert bench.guest("work").mac == "00:16:3e:5e:6c:00"
    assert link_of(bench, "work") == ("sys-firewall", 0)
    assert "/qubes-ip" in bench.sessions.of("work").keys


async def test_net_qube_that_is_told_again_to_have_no_net_qube_keeps_its_way_outside(bench: Bench) -> None:
    await bench.engine.start(WORK)
    keys = dict(bench.sessions.of("sys-net").keys)
    await change(bench, NET, "netvm", None)
    assert bench.guest("sys-net").mac is not None
    assert bench.guest("sys-net").is_outside
    assert bench.sessions.of("sys-net").keys == keys
    store = bench.host.store
    store.commit(set_property(store.system, None, "default_netvm", FIREWALL, bench.engine.power_state))
    await bench.engine.property_changed(None, "default_netvm")
    assert bench.guest("sys-net").mac is not None
    assert link_of(bench, "work") == ("sys-firewall", 0)


async def test_default_that_changes_moves_those_who_follow_it(bench: Bench) -> None:
    store = bench.host.store
    await bench.engine.start(OTHER)
    await bench.engine.start(FIREWALL)
    store.commit(set_property(store.system, None, "default_netvm", FIREWALL, bench.engine.power_state))
    store.commit(reset_property(store.system, WORK, "netvm", bench.engine.power_state))
    await bench.engine.start(WORK)
    assert link_of(bench, "work") == ("sys-firewall", 0)
    store.commit(set_property(store.system, None, "default_netvm", OTHER, bench.engine.power_state))
    await bench.engine.property_changed(None, "default_netvm")
    assert link_of(bench, "work") == ("other-net", 0)


async def test_move_that_fails_does_not_keep_the_others_where_they_were(bench: Bench) -> None:
    store = bench.host.store
    play = QubeName("play")
    await bench.engine.create(CreateRequest(name=play, klass=Klass.APPVM, label="red", template=TEMPLATE))
    await bench.engine.start(OTHER)
    await bench.engine.start(FIREWALL)
    store.commit(set_property(store.system, None, "default_netvm", FIREWALL, bench.engine.power_state))
    for name in (WORK, play):
        store.commit(reset_property(store.system, name, "netvm", bench.engine.power_state))
        await bench.engine.start(name)
    store.commit(set_property(store.system, None, "default_netvm", OTHER, bench.engine.power_state))
    bench.computer.script.fail_next("link")
    with pytest.raises(QubesException, match="has no network now"):
        await bench.engine.property_changed(None, "default_netvm")
    assert {link_of(bench, "work"), link_of(bench, "play")} == {None, ("other-net", 0)}


async def test_move_that_fails_leaves_no_link_and_says_so(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.engine.start(OTHER)
    bench.computer.script.fail_next("link")
    with pytest.raises(QubesException, match="work has no network now"):
        await change(bench, WORK, "netvm", OTHER)
    assert link_of(bench, "work") is None
    assert told(bench, "sys-firewall") == told(bench, "other-net") == {}


async def test_net_qube_serves_so_many_and_refuses_one_more(bench: Bench) -> None:
    await bench.engine.start(FIREWALL)
    names = [QubeName(f"client-{number}") for number in range(MAX_CLIENTS + 1)]
    for name in names:
        await bench.engine.create(CreateRequest(name=name, klass=Klass.APPVM, label="red", template=TEMPLATE))
        put(bench, name, "netvm", FIREWALL)
    for name in names[:-1]:
        await bench.engine.start(name)
    assert sorted(link_of(bench, name)[1] for name in names[:-1]) == list(range(MAX_CLIENTS))  # type: ignore[index]
    with pytest.raises(QubesException, match="serves 16 qubes, and cannot serve more"):
        await bench.engine.start(names[-1])


async def test_net_qube_in_use_is_not_shut_down_and_all_end_after_their_clients(bench: Bench) -> None:
    await bench.engine.start(WORK)
    with pytest.raises(QubesVMInUseError):
        await bench.engine.shutdown(FIREWALL, force=False, wait=True)
    await bench.engine.stop_all()
    order = [name for name, method in bench.computer.script.calls if method == "request_shutdown"]
    assert order == ["work", "sys-firewall", "sys-net"]


async def test_next_daemon_finds_who_is_linked_to_whom(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.reopen()
    assert bench.engine.links.note_of(WORK) == ("sys-firewall", 0)
    assert list(told(bench, "sys-firewall")) == ["/insula-link/0"]
    assert [call for call in bench.computer.script.calls if call[1] == "link"] == [
        ("sys-firewall", "link"),
        ("work", "link"),
    ]
    await bench.engine.kill(WORK)
    assert told(bench, "sys-firewall") == {}


async def test_next_daemon_looks_after_the_way_out_of_who_leads_outside(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.reopen()
    asked = [call for call in bench.computer.script.calls if call[1] == "link_outside"]
    assert asked == [("sys-net", "link_outside")] * 2


async def test_net_qube_that_ended_without_a_daemon_is_missed_and_its_clients_wait(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.crash()
    bench.guest("sys-firewall").die()
    await bench.open()
    assert bench.engine.links.note_of(WORK) is None
    await bench.engine.start(FIREWALL)
    assert bench.engine.links.note_of(WORK) == ("sys-firewall", 0)


def rules_of(bench: Bench, provider: str) -> dict[str, str]:
    keys = bench.sessions.of(provider).keys
    return {path: value for path, value in keys.items() if path.startswith("/insula-firewall/")}


def put_firewall(bench: Bench, qube: QubeName, text: str) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(qube).with_firewall(parse_rules(text))))


async def test_net_qube_is_told_the_rules_of_a_client_before_its_link(bench: Bench) -> None:
    """MC-83"""
    put_firewall(bench, WORK, "action=drop comment=nothing\n")
    await bench.engine.start(FIREWALL)
    gate = bench.computer.script.hold_next("link")
    starting = asyncio.create_task(bench.engine.start(WORK))
    while ("work", "link") not in bench.computer.script.calls:
        await asyncio.sleep(0)
    assert rules_of(bench, "sys-firewall") == {"/insula-firewall/0/00": "action=drop\n", "/insula-firewall/0": "1"}
    gate.set()
    await starting
    await bench.engine.kill(WORK)
    assert rules_of(bench, "sys-firewall") == {}


async def test_rules_that_change_are_told_at_once_and_leave_nothing_of_those_before(bench: Bench) -> None:
    put_firewall(bench, WORK, "".join(f"action=accept dst4=10.0.{n}.0/24 dstports=1-2 proto=tcp\n" for n in range(100)))
    await bench.engine.start(WORK)
    assert len(rules_of(bench, "sys-firewall")) > 2
    assert list(bench.sessions.of("sys-firewall").keys)[-1] == "/insula-link/0"
    put_firewall(bench, WORK, "action=drop\n")
    await bench.engine.firewall_changed(WORK)
    assert rules_of(bench, "sys-firewall") == {"/insula-firewall/0/00": "action=drop\n", "/insula-firewall/0": "1"}


async def test_rule_whose_time_is_over_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.engine.start(WORK)
    now = int(time.time())
    clock = SimpleNamespace(time=lambda: now)
    # It stands still until what holds before was seen.
    monkeypatch.setattr(links, "time", clock)
    put_firewall(bench, WORK, f"action=accept expire={now + 1}\naction=drop\n")
    await bench.engine.firewall_changed(WORK)
    assert rules_of(bench, "sys-firewall")["/insula-firewall/0/00"] == "action=accept\naction=drop\n"
    clock.time = time.time
    async with asyncio.timeout(120):
        while rules_of(bench, "sys-firewall")["/insula-firewall/0/00"] != "action=drop\n":
            await asyncio.sleep(0.01)


async def test_session_that_is_replaced_is_told_all_again(bench: Bench) -> None:
    await bench.engine.start(WORK)
    bench.sessions.of("sys-firewall").die("killed")
    async with asyncio.timeout(120):
        while len([name for name, _ in bench.sessions.launched if name == "sys-firewall"]) < 2:
            await asyncio.sleep(0.01)
    assert list(told(bench, "sys-firewall")) == ["/insula-link/0"]
    assert rules_of(bench, "sys-firewall")["/insula-firewall/0"] == "1"


async def test_disposable_reaches_no_more_than_what_it_is_made_from(bench: Bench) -> None:
    """MC-86"""
    put(bench, WORK, "template_for_dispvms", True)
    put_firewall(bench, WORK, "action=accept dst4=10.0.0.1\n")
    name = await bench.engine.create_disposable(WORK, QubeName("dom0"))
    assert bench.host.store.system.get(name).firewall == bench.host.store.system.get(WORK).firewall


async def test_disposable_of_an_offline_qube_has_no_network(bench: Bench) -> None:
    """MC-86"""
    store = bench.host.store
    store.commit(set_property(store.system, None, "default_netvm", OTHER, bench.engine.power_state))
    put(bench, WORK, "template_for_dispvms", True)
    put(bench, WORK, "netvm", None)
    name = await bench.engine.create_disposable(WORK, QubeName("dom0"))
    assert view(store.system, store.system.get(name)).vm("netvm") is None


async def test_anonymous_qube_is_linked_with_a_tor_gateway_or_not_at_all(bench: Bench) -> None:
    """MC-85: whatever its properties say."""
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_tags([ANONYMOUS])))
    with pytest.raises(QubesException, match="not through sys-firewall"):
        await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    store.commit(store.system.with_qube(store.system.get(FIREWALL).with_feature(TOR_SERVICE, "1")))
    await bench.engine.start(WORK)
    assert link_of(bench, WORK) == (FIREWALL, 0)
    # The gateway comes back as an ordinary net qube: it is no way out any more.
    await bench.engine.kill(FIREWALL)
    store.commit(store.system.with_qube(store.system.get(FIREWALL).with_feature(TOR_SERVICE, "")))
    await bench.engine.start(FIREWALL)
    assert told(bench, FIREWALL) == {}


async def test_anonymous_qube_does_not_lead_outside_itself(bench: Bench) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(NET).with_tags([ANONYMOUS])))
    with pytest.raises(QubesException, match="not through the host's network"):
        await bench.engine.start(NET)


async def test_uplink_and_net_qube_together_are_refused(bench: Bench) -> None:
    put(bench, NET, "netvm", OTHER)
    with pytest.raises(QubesException, match="both a net qube and the uplink"):
        await bench.engine.start(NET)


# forwarded ports


async def test_net_qube_is_told_which_of_its_ports_lead_to_a_client(bench: Bench) -> None:
    forward(bench, "tcp:8080:80")
    await bench.engine.start(WORK)
    keys = bench.sessions.of("sys-firewall").keys
    assert keys["/insula-forward/0"] == "tcp:8080:80"
    forward(bench, "tcp:8080:80 udp:53:53")
    await bench.engine.firewall_changed(WORK)
    assert keys["/insula-forward/0"] == "tcp:8080:80 udp:53:53"
    forward(bench, "")
    await bench.engine.firewall_changed(WORK)
    assert "/insula-forward/0" not in keys


async def test_ports_lead_nowhere_when_their_client_has_gone(bench: Bench) -> None:
    forward(bench, "tcp:8080:80")
    await bench.engine.start(WORK)
    await bench.engine.kill(WORK)
    assert "/insula-forward/0" not in bench.sessions.of("sys-firewall").keys


def forward(bench: Bench, text: str) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_feature("net.forward", text)))


# rules as published


async def test_net_qube_has_the_rules_of_a_client_as_published_too(bench: Bench) -> None:
    rule(bench, "action=accept proto=tcp dst4=192.0.2.0/24 dstports=443 comment=web", "action=drop dst6=2001:db8::/32")
    await bench.engine.start(WORK)
    keys = bench.sessions.of("sys-firewall").keys
    ip = bench.sessions.of("work").keys["/qubes-ip"]
    published = {path: value for path, value in keys.items() if path.startswith("/qubes-firewall/")}
    assert list(published.items()) == [
        (f"/qubes-firewall/{ip}/policy", "drop"),
        (f"/qubes-firewall/{ip}/0000", "action=accept proto=tcp dst4=192.0.2.0/24 dstports=443-443"),
        (f"/qubes-firewall/{ip}", ""),
    ]
    rule(bench, "action=accept")
    await bench.engine.firewall_changed(WORK)
    assert keys[f"/qubes-firewall/{ip}/0000"] == "action=accept"
    rule(bench, *["action=accept"] * 25)
    await bench.engine.firewall_changed(WORK)
    assert not any(path.startswith("/qubes-firewall/") for path in keys)


def rule(bench: Bench, *lines: str) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_firewall(parse_rules("\n".join(lines)))))
