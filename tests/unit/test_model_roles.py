"""Roles of qubes, and who may reach the network through whom."""

from __future__ import annotations

import pytest

from insula.model.errors import QubesPropertyValueError
from insula.model.features import parse_feature_name, parse_feature_value
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import reset_property, set_property
from insula.model.property_resolution import definition
from insula.model.roles import ANONYMOUS, FIXED_WHILE_ON, ROLES, TOR_SERVICE, refusal
from insula.model.system import System
from insula.model.tags import parse_tag
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of

WHONIX = QubeName("sys-whonix")


@pytest.fixture
def system() -> System:
    """``work`` is anonymous, behind ``sys-whonix``; so is its disposable."""
    made = with_qube_of(small_system(), Klass.APPVM, WHONIX, label="black", template=TEMPLATE)
    made = set_property(made, WHONIX, "provides_network", True, all_halted)
    made = set_property(made, WHONIX, "netvm", NET, all_halted)
    made = made.with_qube(made.get(WHONIX).with_feature(TOR_SERVICE, "1"))
    made = set_property(made, WORK, "netvm", WHONIX, all_halted)
    return made.with_qube(made.get(WORK).with_tags([ANONYMOUS]))


@pytest.mark.parametrize("role", ROLES.values(), ids=str)
def test_role_is_made_of_words_that_exist(role: object) -> None:
    from insula.model.roles import Role  # noqa: PLC0415 - for the type alone

    assert isinstance(role, Role)
    for name in role.properties:
        definition(Klass.APPVM, name)
    for name, value in role.features.items():
        assert parse_feature_value(parse_feature_name(name), value) == value
    for tag in role.tags:
        parse_tag(tag)
    assert not FIXED_WHILE_ON.isdisjoint(role.features) or ANONYMOUS in role.tags


def test_anonymous_qube_goes_through_a_tor_gateway_or_nowhere(system: System) -> None:
    work, gateway = system.get(WORK), system.get(WHONIX)
    assert refusal(system, work, gateway) == ""
    assert "not through sys-net" in refusal(system, work, system.get(NET))
    assert "the host's network" in refusal(system, work, None)
    assert "not through sys-net" in refusal(system, system.get(DISPOSABLE), system.get(NET))
    without = system.with_qube(gateway.with_feature(TOR_SERVICE, ""))
    assert "not through sys-whonix" in refusal(without, work, without.get(WHONIX))
    assert refusal(system, gateway, system.get(NET)) == ""


def test_anonymous_qube_is_not_moved_by_any_property(system: System) -> None:
    """MC-85"""
    with pytest.raises(QubesPropertyValueError, match="Tor gateway"):
        set_property(system, WORK, "netvm", NET, all_halted)
    with pytest.raises(QubesPropertyValueError, match="Tor gateway"):
        reset_property(system, WORK, "netvm", all_halted)
    with pytest.raises(QubesPropertyValueError, match="Tor gateway"):
        set_property(system, DISPOSABLE, "netvm", NET, all_halted)
    assert set_property(system, WORK, "netvm", None, all_halted).get(WORK).properties["netvm"] is None


def test_anonymous_qube_is_not_moved_by_the_default_net_qube(system: System) -> None:
    system = set_property(system, WHONIX, "netvm", None, all_halted)
    follows = set_property(system, None, "default_netvm", WHONIX, all_halted)
    # Only where it is the Tor gateway may an anonymous qube follow the default one.
    follows = reset_property(follows, WORK, "netvm", all_halted)
    with pytest.raises(QubesPropertyValueError, match="Tor gateway"):
        set_property(follows, None, "default_netvm", NET, all_halted)
