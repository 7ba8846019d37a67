"""Rules between a property's new value, other qubes and running machines (admin-api §4).

A change is checked on the :class:`System` it would lead to: each rule gets the system before, the system after, and
the state of machines. A rule either returns or raises; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from insula.model.errors import (
    QubesPropertyValueError,
    QubesVMInUseError,
    QubesVMNotFoundError,
    QubesVMNotHaltedError,
    QubesVMNotStartedError,
)
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.property_resolution import view
from insula.model.qube import PropertyValue, Qube
from insula.model.roles import refusal
from insula.model.state import PowerState
from insula.model.system import System

PowerStates = Callable[[QubeName], PowerState]
"""State of any qube's machine, as ``Engine.power_state``."""


@dataclass(frozen=True)
class Change:
    """One property about to change."""

    before: System
    after: System
    qube: Qube | None
    """The qube before; None: the system's property."""
    name: str
    power_state: PowerStates
    kernels: frozenset[str] | None
    """Installed kernels; None: not to be checked."""

    @property
    def value(self) -> PropertyValue:
        """Effective value after the change."""
        return view(self.after, self._qube_after).value(self.name)

    @property
    def old_value(self) -> PropertyValue:
        return view(self.before, self.qube).value(self.name)

    @property
    def target(self) -> Qube | None:
        """The qube referred to after the change, for properties whose value is a qube."""
        value = self.value
        if not isinstance(value, str):
            return None
        try:
            return self.before.get(value)
        except QubesVMNotFoundError as error:
            raise self.refusal(str(error)) from error

    @property
    def _qube_after(self) -> Qube | None:
        return None if self.qube is None else self.after.get(self.qube.name)

    def refusal(self, reason: str) -> QubesPropertyValueError:
        owner = "" if self.qube is None else f" of {self.qube.name}"
        return QubesPropertyValueError(f"Property {self.name}{owner}: {reason}")


Check = Callable[[Change], None]


def check(change: Change) -> None:
    """Apply the rules of the property that changes.

    :raise QubesPropertyValueError: the value cannot be.
    :raise QubesVMInUseError: others rely on the value it has.
    :raise QubesVMNotHaltedError, QubesVMNotStartedError: not while machines are as they are.
    """
    rules = GLOBAL_RULES if change.qube is None else QUBE_RULES
    for rule in rules.get(change.name, ()):
        rule(change)


# template


def _template_fits(change: Change) -> None:
    target, qube = change.target, change.qube
    if target is None or qube is None:
        raise change.refusal("must be a qube")
    if qube.klass is Klass.APPVM and target.klass is not Klass.TEMPLATEVM:
        raise change.refusal(f"{target.name} is not a TemplateVM but a {target.klass}")
    if qube.klass is Klass.DISPVM:
        _dispvm_template_fits(change)


def _halted(change: Change) -> None:
    assert change.qube is not None
    if change.power_state(change.qube.name).is_on:
        raise QubesVMNotHaltedError(f"{change.qube.name} must be halted to change its {change.name}")
    for disposable in change.before.based_on(change.qube.name):
        if change.power_state(disposable.name).is_on:
            raise QubesVMNotHaltedError(f"{disposable.name}, a disposable of {change.qube.name}, must be halted first")


def _dispvm_template_fits(change: Change) -> None:
    target = change.target
    if target is not None and not allows_disposables(change.after, target):
        raise change.refusal(f"{target.name} does not have template_for_dispvms set")


def allows_disposables(system: System, qube: Qube) -> bool:
    """Whether disposables may be made from the qube."""
    has_property = qube.klass in (Klass.APPVM, Klass.STANDALONEVM)
    return has_property and view(system, system.get(qube.name)).flag("template_for_dispvms")


def _disposables_unused(change: Change) -> None:
    """``template_for_dispvms`` cannot be cleared while somebody relies on it."""
    assert change.qube is not None
    if change.value is True:
        return
    users = [
        dependency
        for dependency in change.before.dependents(change.qube.name)
        if dependency.property in ("default_dispvm", "management_dispvm")
        or (dependency.property == "template" and dependency.user is not None)
    ]
    if users:
        raise QubesVMInUseError(f"template_for_dispvms of {change.qube.name} is needed: {'; '.join(map(str, users))}")


# network


def _provides_network(change: Change) -> None:
    target = change.target
    if target is None:
        return
    if not target.klass.has_machine or not view(change.before, target).flag("provides_network"):
        raise change.refusal(f"{target.name} does not provide network")


def _no_net_loop(change: Change) -> None:
    """No qube may reach itself by following ``netvm``, defaults included."""
    for qube in change.after.qubes.values():
        here, seen = view(change.after, qube), [qube.name]
        while (nearer := here.netvm) is not None:
            here = nearer
            if here.subject.name in seen:
                raise change.refusal(f"would make a loop: {' -> '.join([*seen, here.subject.name])}")
            seen.append(here.subject.name)


def _through_tor_if_anonymous(change: Change) -> None:
    """Who is to be anonymous is not moved to another way out, defaults included."""
    for qube in change.after.qubes.values():
        reason = _other_way(change.after, qube)
        is_meant = change.qube is not None and change.qube.name == qube.name
        if reason and (is_meant or not _other_way(change.before, change.before.get(qube.name))):
            raise change.refusal(reason)


def _other_way(system: System, qube: Qube) -> str:
    """Why a qube's net qube is wrong for it; empty: it is not."""
    provider = view(system, qube).netvm if qube.klass.has_machine else None
    return "" if provider is None else refusal(system, qube, provider.subject)


def _netvm_runs_if_needed(change: Change) -> None:
    """A running qube cannot be moved to a net qube that does not run."""
    target = change.target
    if target is None or change.qube is None or target.name == change.old_value:
        return
    if change.power_state(change.qube.name).is_on and not change.power_state(target.name).is_on:
        raise QubesVMNotStartedError(f"{target.name} must run before {change.qube.name}, which runs, can use it")


def _network_unused(change: Change) -> None:
    """``provides_network`` cannot be cleared while somebody uses the qube's network."""
    assert change.qube is not None
    if change.value is True:
        return
    users = [d for d in change.before.dependents(change.qube.name) if d.property in ("netvm", "default_netvm")]
    if users:
        raise QubesVMInUseError(f"provides_network of {change.qube.name} is needed: {'; '.join(map(str, users))}")


# others


def _is_template(change: Change) -> None:
    target = change.target
    if target is not None and target.klass is not Klass.TEMPLATEVM:
        raise change.refusal(f"{target.name} is not a TemplateVM but a {target.klass}")


def _is_local(change: Change) -> None:
    target = change.target
    if target is not None and target.klass is Klass.REMOTEVM:
        raise change.refusal(f"{target.name} is not on this host")


def _has_machine(change: Change) -> None:
    target = change.target
    if target is not None and not target.klass.has_machine:
        raise change.refusal(f"{target.name} is not a qube on this host")


def _not_itself(change: Change) -> None:
    if change.qube is not None and change.value == change.qube.name:
        raise change.refusal("cannot be the qube itself")


def _kernel_installed(change: Change) -> None:
    if change.kernels is None or not change.value or change.value in change.kernels:
        return
    known = ", ".join(sorted(change.kernels)) or "none"
    raise change.refusal(f"no kernel {change.value!a} is installed (there is: {known})")


def _pool_exists(change: Change) -> None:
    if change.value is not None and change.value not in change.after.pools:
        raise change.refusal(f"no such pool: {change.value!a}")


QUBE_RULES: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {
        "template": (_template_fits, _halted),
        "template_for_dispvms": (_disposables_unused,),
        "default_dispvm": (_dispvm_template_fits,),
        "management_dispvm": (_dispvm_template_fits,),
        "netvm": (
            _not_itself,
            _provides_network,
            _no_net_loop,
            _through_tor_if_anonymous,
            _netvm_runs_if_needed,
        ),
        "provides_network": (_network_unused,),
        "guivm": (_not_itself, _is_local),
        "audiovm": (_not_itself, _is_local),
        "relayvm": (_has_machine,),
        "kernel": (_kernel_installed,),
    }
)
GLOBAL_RULES: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {
        "clockvm": (_has_machine,),
        "updatevm": (_is_local,),
        "default_guivm": (_is_local,),
        "default_audiovm": (_is_local,),
        "default_dispvm": (_dispvm_template_fits,),
        "management_dispvm": (_dispvm_template_fits,),
        "default_netvm": (_provides_network, _no_net_loop, _through_tor_if_anonymous),
        "default_template": (_is_template,),
        "default_kernel": (_kernel_installed,),
        "default_pool": (_pool_exists,),
        "default_pool_root": (_pool_exists,),
        "default_pool_private": (_pool_exists,),
        "default_pool_volatile": (_pool_exists,),
        "default_pool_kernel": (_pool_exists,),
    }
)
