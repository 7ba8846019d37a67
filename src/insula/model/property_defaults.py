"""Rules for values nobody set: default chains and computed properties (admin-api §4, agent-services §12).

Each rule takes the :class:`View` of the qube (or of the system) and returns a value. ``None`` is "no qube" or "no
value". Rules never fail: a value that cannot be computed is None.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from insula.model.klass import Klass
from insula.model.property_view import View, has_address_of_disposables
from insula.model.qube import PropertyValue

Rule = Callable[[View], PropertyValue]

DEFAULT_MAC = "00:16:3e:5e:6c:00"
"""The same for every qube, so that it identifies none (agent-services §12)."""
NETMASK = "255.255.255.255"
DNS_SERVERS = ("10.139.1.1", "10.139.1.2")
DEFAULT_KERNEL_OPTIONS = "swiotlb=2048"
DEFAULT_KEYBOARD_LAYOUT = "us++"

_QUBES_NET = ipaddress.IPv4Address("10.137.0.0")
_DISPOSABLES_NET = ipaddress.IPv4Address("10.138.0.0")
_QUBES_NET6 = "fd09:24ef:4179:0::a89:"
_DISPOSABLES_NET6 = "fd09:24ef:4179:0::a8a:"
"""Network parts: agent-services §12."""


def constant(value: PropertyValue) -> Rule:
    return lambda view: value


def from_template(name: str, otherwise: Rule) -> Rule:
    """The template's effective value; for qubes without template ``otherwise``."""

    def rule(view: View) -> PropertyValue:
        return otherwise(view) if view.template is None else view.template.value(name)

    return rule


def from_globals(name: str) -> Rule:
    return lambda view: view.globals.value(name)


# identity


def klass(view: View) -> PropertyValue:
    return str(view.subject.klass)


def icon(view: View) -> PropertyValue:
    """Name of the icon clients look up: what the qube is for, then its label."""
    qube = view.subject
    if qube.is_admin:
        return "adminvm-black"
    if qube.klass is Klass.REMOTEVM:
        kind = "remotevm"
    elif qube.klass is Klass.TEMPLATEVM:
        kind = "templatevm"
    elif view.feature_from_template("servicevm"):
        kind = "servicevm"
    elif qube.klass is Klass.DISPVM:
        kind = "dispvm"
    elif qube.klass is Klass.APPVM and view.flag("template_for_dispvms"):
        kind = "templatevm"
    else:
        kind = "appvm" if qube.klass is Klass.APPVM else "standalonevm"
    return f"{kind}-{qube.label}"


def include_in_backups(view: View) -> PropertyValue:
    if view.subject.klass is Klass.DISPVM:
        return not view.flag("auto_cleanup")
    return view.subject.klass is not Klass.REMOTEVM


def updateable(view: View) -> PropertyValue:
    return view.subject.klass.is_updateable


def is_preload(view: View) -> PropertyValue:
    """Whether the template keeps this disposable ready for use."""
    template = view.template
    return template is not None and view.subject.name in template.subject.features.get("preload-dispvm", "").split()


def default_dispvm(view: View) -> PropertyValue:
    """A disposable opens more of its own kind, so that nesting never widens what it may reach (MC-86)."""
    if view.subject.klass is Klass.DISPVM:
        return view.subject.template
    return view.globals.value("default_dispvm")


def keyboard_layout(view: View) -> PropertyValue:
    """The layout of the qube that shows its windows, followed until somebody set one."""

    def to_guivm(here: View) -> View | None:
        guivm = here.vm("guivm") if here.subject.klass.has_machine else None
        return None if guivm is None else here.of(guivm)

    for here in view.along(to_guivm):
        layout = here.subject.properties.get("keyboard_layout")
        if layout is not None:
            return layout
    return DEFAULT_KEYBOARD_LAYOUT


# machine


def kernel_options(view: View) -> PropertyValue:
    return view.runtime.kernel_options.get(view.text("kernel"), DEFAULT_KERNEL_OPTIONS)


def boot_mode(view: View) -> PropertyValue:
    active = view.subject.features.get("boot-mode.active")
    if active:
        return active
    template = view.template
    if template is not None and template.subject.klass is Klass.TEMPLATEVM:
        return template.value("appvm_default_bootmode")
    return "default"


def appvm_default_boot_mode(view: View) -> PropertyValue:
    return view.subject.features.get("boot-mode.appvm-default") or "default"


def host_memory(view: View) -> PropertyValue:
    return view.runtime.host_memory_mib


def host_cpus(view: View) -> PropertyValue:
    return view.runtime.host_cpus


def start_time(view: View) -> PropertyValue:
    started = view.runtime.start_time
    return None if started is None else str(started)


def xid(view: View) -> PropertyValue:
    return view.runtime.xid


# network


def netvm(view: View) -> PropertyValue:
    """Templates stay off the network; they update through a proxy."""
    return None if view.subject.klass is Klass.TEMPLATEVM else view.globals.value("default_netvm")


def _address_number(view: View) -> int:
    """qid, or dispid of a disposable: what the address is made from."""
    qube = view.subject
    dispid = qube.properties.get("dispid")
    return dispid if has_address_of_disposables(qube) and isinstance(dispid, int) else qube.qid


def ip(view: View) -> PropertyValue:
    """IPv4 address from the number (agent-services §12): last byte never 0 or 255 above 254."""
    if not view.is_networked:
        return None
    net = _DISPOSABLES_NET if has_address_of_disposables(view.subject) else _QUBES_NET
    number = _address_number(view)
    if number < 255:
        return str(net + number)
    high, low = divmod(number - 1, 254)
    return str(net + high * 256 + low + 1)


def ip6(view: View) -> PropertyValue:
    if not view.is_networked or not view.feature_from_netvm("ipv6"):
        return None
    net = _DISPOSABLES_NET6 if has_address_of_disposables(view.subject) else _QUBES_NET6
    return str(ipaddress.IPv6Address(f"{net}{_address_number(view):x}"))


def visible_ip(view: View) -> PropertyValue:
    return view.feature_from_template("net.fake-ip") or view.value("ip")


def visible_ip6(view: View) -> PropertyValue:
    return view.value("ip6")


def gateway(view: View) -> PropertyValue:
    """Address under which clients of this net qube know it."""
    return view.value("visible_ip") if view.flag("provides_network") else None


def gateway6(view: View) -> PropertyValue:
    return view.value("visible_ip6") if view.flag("provides_network") else None


def visible_gateway(view: View) -> PropertyValue:
    fake = view.feature_from_template("net.fake-gateway")
    if fake:
        return fake
    return None if view.netvm is None else view.netvm.value("gateway")


def visible_gateway6(view: View) -> PropertyValue:
    if view.netvm is None or view.value("ip6") is None:
        return None
    return view.netvm.value("gateway6")


def visible_netmask(view: View) -> PropertyValue:
    fake = view.feature_from_template("net.fake-netmask")
    if fake:
        return fake
    return None if view.netvm is None else NETMASK


def dns(view: View) -> PropertyValue:
    return " ".join(DNS_SERVERS) if view.is_networked else None


# pools


def default_pool(view: View) -> PropertyValue:
    """The pool named ``default``, else the first by name."""
    pools = view.system.pools
    return "default" if "default" in pools else min(pools, default=None)
