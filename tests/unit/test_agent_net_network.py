"""In which order a net qube with a role opens and closes; what it does to the kernel is written down, not done."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from insula_agent import files, programs
from insula_agent.loop import Loop
from insula_agent.net import interfaces, network, roles
from insula_agent.net.network import FORWARDING, Network

KEYS = {
    "/qubes-mac": b"00:16:3e:5e:6c:00",
    "/qubes-ip": b"10.137.0.4",
    "/qubes-netmask": b"255.255.255.255",
    "/qubes-gateway": b"10.137.0.3",
    "/qubes-netvm-gateway": b"10.137.0.4",
    "/qubes-primary-dns": b"10.139.1.1",
}


class Steps(list[str]):
    """What was done, in order; a program that gets a text with one of the ``refused`` words in it fails."""

    refused: Sequence[str] = ()

    def index_of(self, word: str) -> int:
        return next(number for number, step in enumerate(self) if word in step)

    def has(self, word: str) -> bool:
        return any(word in step for step in self)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps()

    def run(argv: Sequence[str], accept: int = 0, stdin: str | None = None) -> int:
        text = f"{argv[0]}: {stdin}"
        if any(word in text for word in made.refused):
            raise programs.ProgramFailed(argv[0])
        made.append(text)
        return accept

    def write(path: str, text: str, mode: int = 0o644) -> None:
        del mode
        made.append(f"{path}: {text}")

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(files, "write", write)
    monkeypatch.setattr(files, "change", write)
    # No notices of this machine's interfaces.
    monkeypatch.setattr(Network, "_listen", lambda _: None)
    monkeypatch.setattr(interfaces, "names_by_mac", lambda *_: {"00:16:3e:5e:6c:00": "eth0"})
    monkeypatch.setattr(interfaces, "first_of_group", lambda *_: None)
    return made


@pytest.mark.parametrize("role", [roles.VPN, roles.TOR])
def test_rules_of_a_role_hold_before_its_uplink_has_an_address(steps: Steps, role: str) -> None:
    """MC-83, MC-84"""
    Network(Loop()).begin(KEYS, frozenset({"qubes-network", role}))
    assert steps.index_of("table inet insula-") < steps.index_of("address replace 10.137.0.4/32 dev eth0")


@pytest.mark.parametrize("role", [roles.VPN, roles.TOR])
def test_rules_of_a_role_that_are_not_taken_leave_the_qube_without_a_way_out(steps: Steps, role: str) -> None:
    """MC-84"""
    steps.refused = ("table inet insula-",)
    Network(Loop()).begin(KEYS, frozenset({"qubes-network", role}))
    assert steps == []


def test_vpn_forwards_only_once_clients_are_routed_to_the_tunnel(steps: Steps) -> None:
    Network(Loop()).begin(KEYS, frozenset({"qubes-network", roles.VPN}))
    assert steps.index_of("lookup 5300") < steps.index_of(FORWARDING)
    assert steps.index_of("unreachable default table 5300") < steps.index_of(FORWARDING)
    # Its clients' questions are not led to the name servers of its own uplink.
    assert not steps.has("dnat-dns ip daddr")


def test_tor_gateway_never_forwards(steps: Steps) -> None:
    Network(Loop()).begin(KEYS, frozenset({"qubes-network", roles.TOR}))
    assert not steps.has(FORWARDING)
    assert not steps.has("5300 priority")


def test_net_qube_without_a_role_has_none_of_it(steps: Steps) -> None:
    Network(Loop()).begin(KEYS, frozenset({"qubes-network"}))
    assert steps.has(FORWARDING)
    assert not steps.has("insula-")


def test_tunnel_that_is_there_is_where_clients_packets_and_questions_go(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "first_of_group", lambda *_: "wg0")
    monkeypatch.setattr(network.files, "read", lambda path: "nameserver 10.8.0.1\n" if path == roles.DNS_FILE else "")
    net = Network(Loop())
    net.begin(KEYS, frozenset({"qubes-network", roles.VPN}))
    assert steps.has("route replace default dev wg0 table 5300")
    assert steps.has("dnat ip to 10.8.0.1")
    told = len(steps)
    # A notice of the kernel's: the route is set again, for it may have been lost; name servers are told once.
    net.look_for_tunnel()
    assert steps[told:] == ["ip: route replace default dev wg0 table 5300\n"]


def test_other_net_qube_is_one_run_of_ip(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, waiting = Loop(), []
    monkeypatch.setattr(loop, "after", lambda _, callback: waiting.append(callback))
    net = Network(loop)
    net.begin(KEYS, frozenset())
    steps.clear()
    net.key_changed("/qubes-gateway", b"10.137.0.9")
    for callback in waiting:
        callback()
    (text,) = [step for step in steps if step.startswith("ip: ")]
    assert text.index("flush dev eth0") < text.index("default via 10.137.0.9")


def test_interface_of_a_client_that_was_pulled_out_is_not_looked_for_by_a_program(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, waiting = Loop(), []
    monkeypatch.setattr(loop, "after", lambda _, callback: waiting.append(callback))
    macs = {"00:16:3e:5e:6c:00": "eth0", network.link_mac(0): "eth1"}
    monkeypatch.setattr(interfaces, "names_by_mac", lambda *_: macs)
    net = Network(loop)
    for is_there in (True, False):
        net.begin({**KEYS, "/insula-link/0": b"00:16:3e:5e:6c:00 10.137.0.7"}, frozenset({"qubes-network"}))
        macs[interfaces.GATEWAY_MAC] = "vif0.0"
        if not is_there:
            del macs[interfaces.GATEWAY_MAC]
        steps.clear()
        waiting.clear()
        net.key_changed("/insula-link/0", None)
        for callback in waiting:
            callback()
        assert steps.has("link set dev vif0.0 down") is is_there


OWN = {"00:16:3e:5e:6c:00": "eth0"}


class Machine:
    """Its interfaces, and what the loop was asked to do later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.macs = dict(OWN)
        self.indexes = {"eth0": "2"}
        self.loop = Loop()
        self._later: list[Callable[[], None]] = []
        monkeypatch.setattr(self.loop, "after", lambda _, callback: self._later.append(callback))
        monkeypatch.setattr(interfaces, "names_by_mac", lambda *_: self.macs)
        monkeypatch.setattr(interfaces, "attribute", lambda name, *_: self.indexes.get(name, ""))

    def let_pass(self) -> None:
        """What is due is done, once."""
        due, self._later = self._later, []
        for callback in due:
            callback()


@pytest.fixture
def machine(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> Machine:
    del steps
    return Machine(monkeypatch)


LINK = "/insula-link/0"
CLIENT = b"00:16:3e:5e:6c:00 10.137.0.7"


def test_client_that_is_back_before_its_end_was_acted_on_has_its_new_interface_set_up(
    steps: Steps, machine: Machine
) -> None:
    net = Network(machine.loop)
    machine.macs[network.link_mac(0)] = "eth1"
    net.begin({**KEYS, LINK: CLIENT}, frozenset({"qubes-network"}))
    assert steps.has("link set dev eth1 name vif0.0")
    machine.macs = {**OWN, interfaces.GATEWAY_MAC: "vif0.0"}
    machine.let_pass()
    steps.clear()
    net.key_changed(LINK, None)
    net.key_changed(LINK, CLIENT)
    machine.macs = {**OWN, network.link_mac(0): "eth2"}
    machine.let_pass()
    assert steps.has("link set dev eth2 name vif0.0")


def test_client_that_is_back_when_the_host_is_heard_again_has_its_new_interface_set_up(
    steps: Steps, machine: Machine
) -> None:
    net = Network(machine.loop)
    keys, services = {**KEYS, LINK: CLIENT}, frozenset({"qubes-network"})
    machine.macs[network.link_mac(0)] = "eth1"
    net.begin(keys, services)
    machine.macs = {**OWN, interfaces.GATEWAY_MAC: "vif0.0"}
    steps.clear()
    net.begin(keys, services)
    assert steps == []
    machine.macs = {**OWN, network.link_mac(0): "eth2"}
    net.begin(keys, services)
    assert steps.has("link set dev eth2 name vif0.0")


def test_interface_that_is_there_before_its_keys_is_nobodys(steps: Steps, machine: Machine) -> None:
    """MC-83: who had this link before is not who has it now."""
    net = Network(machine.loop)
    machine.macs[network.link_mac(0)] = "eth1"
    net.begin({**KEYS, LINK: CLIENT}, frozenset({"qubes-network"}))
    machine.macs = {**OWN, network.link_mac(0): "eth2"}
    steps.clear()
    net.key_changed("/insula-firewall/1", None)
    machine.let_pass()
    assert not steps.has("eth2")
    net.key_changed(LINK, None)
    net.key_changed(LINK, b"00:16:3e:5e:6c:00 10.137.0.8")
    machine.let_pass()
    assert steps.index_of('add element ip qubes allowed { "vif0.0" . 10.137.0.8 }') < steps.index_of(
        "dev eth2 name vif0.0"
    )
    assert not steps.has("10.137.0.7")


def test_own_interface_that_went_while_it_was_set_up_is_looked_for_again(steps: Steps, machine: Machine) -> None:
    """It is found by its address, then by its name: another may be plugged in between."""
    steps.refused = ("ip: ",)
    net = Network(machine.loop)
    net.begin(KEYS, frozenset())
    assert not steps.has("dev eth0")
    steps.refused = ()
    machine.let_pass()
    assert steps.has("dev eth0")
    assert steps.has("nameserver")
    steps.clear()
    machine.let_pass()
    assert steps == []


def test_qube_that_is_cut_off_has_no_name_servers_though_its_interface_went_first(
    steps: Steps, machine: Machine
) -> None:
    net = Network(machine.loop)
    net.begin(KEYS, frozenset())
    steps.clear()
    steps.refused = ("ip: ",)
    for path in KEYS:
        net.key_changed(path, None)
    machine.let_pass()
    assert steps.has("resolv.conf")
    assert not steps.has("nameserver")


def test_own_interface_that_was_plugged_anew_is_set_up_again_though_keys_say_the_same(
    steps: Steps, machine: Machine
) -> None:
    net = Network(machine.loop)
    net.begin(KEYS, frozenset())
    steps.clear()
    for path in KEYS:
        net.key_changed(path, None)
    machine.indexes["eth0"] = "3"
    for path, value in KEYS.items():
        net.key_changed(path, value)
    machine.let_pass()
    assert steps.has("address replace 10.137.0.4/32 dev eth0")
    # As long as it stays, nothing is done again.
    steps.clear()
    net.key_changed("/qubes-gateway", KEYS["/qubes-gateway"])
    machine.let_pass()
    assert steps == []
