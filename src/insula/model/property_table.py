"""The tables of properties: every name of admin-api §4 with type, classes, default and help, once.

To add a property, add a line here; parsing, resolving, listing, storing and help follow. Rules that look at other
qubes or at running machines are in :mod:`insula.model.property_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from insula.model import property_defaults as default
from insula.model import property_parsing as parse
from insula.model.klass import LOCAL_KLASSES, Klass
from insula.model.property_defaults import Rule, constant, from_globals, from_template
from insula.model.property_parsing import Parser
from insula.model.property_types import GLOBAL_VM_PROPERTIES, VM_PROPERTIES, Access, PropertyType
from insula.model.qube import MAX_QID
from insula.model.system import MAX_DISPID


@dataclass(frozen=True)
class PropertyDef:
    name: str
    type: PropertyType
    classes: frozenset[Klass]
    """Classes of qubes that have it; empty for global properties."""
    help: str
    """One sentence for ``….Help``."""
    default: Rule | None = None
    """Value when not set; for read-only ones the value. None: always set, cannot be reset."""
    parser: Parser | None = None
    """For ``str`` and ``int``; the other types parse themselves."""
    access: Access = Access.READ_WRITE
    may_be_none: bool = True
    """For ``vm``: whether "no qube" may be set."""

    @property
    def is_global(self) -> bool:
        return not self.classes


_ALL = frozenset(Klass)
_L = LOCAL_KLASSES
_A = frozenset({Klass.ADMINVM})
_T = frozenset({Klass.TEMPLATEVM})
_P = frozenset({Klass.APPVM})
_S = frozenset({Klass.STANDALONEVM})
_D = frozenset({Klass.DISPVM})
_R = frozenset({Klass.REMOTEVM})
_GLOBAL: frozenset[Klass] = frozenset()

_STR, _INT, _BOOL, _VM, _LABEL = (
    PropertyType.STR,
    PropertyType.INT,
    PropertyType.BOOL,
    PropertyType.VM,
    PropertyType.LABEL,
)
_RO, _ONCE = Access.READ_ONLY, Access.WRITE_ONCE
_NONE = constant(None)
_FALSE = constant(False)
_EMPTY = constant("")
_TIMEOUT = parse.number(1)


def _indexed(*definitions: PropertyDef) -> Mapping[str, list[PropertyDef]]:
    index: dict[str, list[PropertyDef]] = {}
    for definition in definitions:
        index.setdefault(definition.name, []).append(definition)
    return MappingProxyType(index)


def _computed(name: str, type_: PropertyType, classes: frozenset[Klass], rule: Rule, text: str) -> PropertyDef:
    return PropertyDef(name, type_, classes, text, rule, access=_RO)


QUBE_PROPERTIES: Mapping[str, list[PropertyDef]] = _indexed(
    # identity; values are fields of Qube
    PropertyDef("name", _STR, _ALL, "Name of the qube.", access=_ONCE),
    PropertyDef("qid", _INT, _ALL, "Number of the qube on this host.", None, parse.number(0, MAX_QID), _ONCE),
    PropertyDef("uuid", _STR, _ALL, "Identifier that is never used again.", access=_ONCE),
    _computed("klass", _STR, _ALL, default.klass, "Class of the qube."),
    PropertyDef("label", _LABEL, _ALL, "Colour that says how much you trust the qube."),
    _computed("icon", _STR, _ALL, default.icon, "Name of the icon that stands for the qube."),
    PropertyDef(
        "include_in_backups", _BOOL, _ALL, "Whether backups contain it by default.", default.include_in_backups
    ),
    # what it is based on
    PropertyDef("template", _VM, _P, "Template whose root file system it starts from.", may_be_none=False),
    PropertyDef("template", _VM, _D, "App qube whose disposable it is.", may_be_none=False),
    PropertyDef("template_for_dispvms", _BOOL, _P | _S, "Whether disposables may be made from it.", _FALSE),
    PropertyDef("auto_cleanup", _BOOL, _D, "Remove the qube when it shuts down.", _FALSE),
    PropertyDef("dispid", _INT, _D, "Number of the disposable.", None, parse.number(0, MAX_DISPID), _ONCE),
    _computed("is_preload", _BOOL, _D, default.is_preload, "Whether it is kept ready for the next use."),
    PropertyDef(
        "default_dispvm", _VM, _A | _L, "Disposable template for what it opens elsewhere.", default.default_dispvm
    ),
    PropertyDef(
        "management_dispvm",
        _VM,
        _L,
        "Disposable template for managing it.",
        from_template("management_dispvm", from_globals("management_dispvm")),
    ),
    # user's side
    PropertyDef("guivm", _VM, _L, "Qube that shows its windows.", from_globals("default_guivm")),
    PropertyDef("audiovm", _VM, _L, "Qube that plays its sound.", from_globals("default_audiovm")),
    PropertyDef(
        "keyboard_layout",
        _STR,
        _A | _L,
        "Keyboard as LAYOUT+VARIANT+OPTIONS.",
        default.keyboard_layout,
        parse.keyboard_layout,
    ),
    PropertyDef("devices_denied", _STR, _A | _L, "Device interfaces it must not get.", _EMPTY, parse.denied_interfaces),
    _computed("updateable", _BOOL, _A | _L, default.updateable, "Whether installed software stays."),
    PropertyDef("autostart", _BOOL, _L, "Start it with the system.", _FALSE),
    PropertyDef("debug", _BOOL, _L, "Show more of what happens inside; for finding faults.", _FALSE),
    PropertyDef("installed_by_rpm", _BOOL, _L, "Belongs to a package; only that removes it.", _FALSE),
    PropertyDef("backup_timestamp", _INT, _L, "Unix time of its last backup.", _NONE, parse.number(0, 2**33)),
    PropertyDef(
        "default_user",
        _STR,
        _L,
        "User that commands run as.",
        from_template("default_user", constant("user")),
        parse.user_name,
    ),
    # machine
    PropertyDef(
        "memory",
        _INT,
        _L,
        "Memory at start, MiB.",
        from_template("memory", constant(400)),
        parse.number(1),
    ),
    PropertyDef(
        "maxmem",
        _INT,
        _L,
        "Most memory that balancing may give it, MiB; 0: it keeps what it starts with.",
        from_template("maxmem", constant(0)),
        parse.number(0),
    ),
    _computed("maxmem", _INT, _A, default.host_memory, "Memory of the host, MiB."),
    PropertyDef("stubdom_mem", _INT, _L, "Memory of the device model, MiB.", _NONE, parse.number(0)),
    PropertyDef(
        "vcpus", _INT, _L, "Number of virtual CPUs.", from_template("vcpus", constant(2)), parse.number(1, 128)
    ),
    PropertyDef(
        "virt_mode",
        _STR,
        _L,
        "Kind of virtualization: hvm, pv or pvh.",
        from_template("virt_mode", constant("pvh")),
        parse.choice("hvm", "pv", "pvh"),
    ),
    PropertyDef(
        "kernel",
        _STR,
        _L,
        "Kernel to boot; empty: the one on its own disk.",
        from_template("kernel", from_globals("default_kernel")),
        parse.kernel,
    ),
    PropertyDef(
        "kernelopts",
        _STR,
        _L,
        "Options for the kernel.",
        from_template("kernelopts", default.kernel_options),
        parse.kernel_options,
    ),
    PropertyDef("bootmode", _STR, _L, "Boot mode of the qube.", default.boot_mode, parse.boot_mode),
    PropertyDef(
        "appvm_default_bootmode",
        _STR,
        _T,
        "Boot mode of qubes based on it.",
        default.appvm_default_boot_mode,
        parse.boot_mode,
    ),
    PropertyDef(
        "start_mode",
        _STR,
        _L,
        "How to start: cold, warm (a fork of a frozen template), or auto.",
        from_template("start_mode", constant("auto")),
        parse.choice("warm", "cold", "auto"),
    ),
    PropertyDef(
        "qrexec_timeout",
        _INT,
        _L,
        "How long a start may take until the qube answers, seconds.",
        from_template("qrexec_timeout", from_globals("default_qrexec_timeout")),
        _TIMEOUT,
    ),
    PropertyDef(
        "shutdown_timeout",
        _INT,
        _L,
        "How long a shutdown may take, seconds.",
        from_template("shutdown_timeout", from_globals("default_shutdown_timeout")),
        _TIMEOUT,
    ),
    # network
    PropertyDef("netvm", _VM, _L, "Qube that gives it network; none: no network at all.", default.netvm),
    PropertyDef("provides_network", _BOOL, _L, "Whether other qubes may use it as their net qube.", _FALSE),
    PropertyDef(
        "uplink",
        _STR,
        _L,
        "Way out of a net qube that has no net qube itself: none, host (this computer's network), or a network card of"
        " its own like pci:0000:03:00.0.",
        constant("none"),
        parse.uplink,
    ),
    PropertyDef("mac", _STR, _L, "MAC address of its interface.", constant(default.DEFAULT_MAC), parse.mac_address),
    PropertyDef("ip", _STR, _L, "IPv4 address.", default.ip, parse.ipv4_address),
    PropertyDef("ip6", _STR, _L, "IPv6 address.", default.ip6, parse.ipv6_address),
    _computed("visible_ip", _STR, _L, default.visible_ip, "IPv4 address the qube itself sees."),
    _computed("visible_ip6", _STR, _L, default.visible_ip6, "IPv6 address the qube itself sees."),
    _computed("visible_gateway", _STR, _L, default.visible_gateway, "IPv4 gateway the qube sees."),
    _computed("visible_gateway6", _STR, _L, default.visible_gateway6, "IPv6 gateway the qube sees."),
    _computed("visible_netmask", _STR, _L, default.visible_netmask, "Netmask the qube sees."),
    _computed("gateway", _STR, _L, default.gateway, "IPv4 gateway its clients use."),
    _computed("gateway6", _STR, _L, default.gateway6, "IPv6 gateway its clients use."),
    _computed("dns", _STR, _L, default.dns, "Name servers the qube uses."),
    # running machine
    _computed("start_time", _STR, _L, default.start_time, "Unix time of the last start."),
    _computed("xid", _INT, _L, default.xid, "Number of the running machine, -1 when off."),
    _computed("stubdom_xid", _INT, _L, constant(-1), "Number of its device model's machine, -1 without."),
    _computed("stubdom_uuid", _STR, _L, _EMPTY, "Identifier of its device model's machine."),
    # qubes elsewhere
    PropertyDef("relayvm", _VM, _R, "Local qube that forwards calls to it.", _NONE),
    PropertyDef("transport_rpc", _STR, _R, "Service in the relay that forwards calls.", _NONE, parse.service),
    PropertyDef("remote_name", _STR, _R, "Its name on the other side.", _NONE, parse.remote_name),
)
"""Several definitions of one name are for different classes. Order: that of ``List``."""

_DEFAULT_POOL = from_globals("default_pool")

GLOBAL_PROPERTIES: Mapping[str, PropertyDef] = MappingProxyType(
    {
        definition.name: definition
        for definition in (
            PropertyDef("check_updates_vm", _BOOL, _GLOBAL, "New qubes look for updates.", constant(True)),
            PropertyDef("clockvm", _VM, _GLOBAL, "Qube that the time is taken from.", _NONE),
            PropertyDef("default_audiovm", _VM, _GLOBAL, "Qube that plays sound.", constant("dom0")),
            PropertyDef("default_guivm", _VM, _GLOBAL, "Qube that shows windows.", constant("dom0")),
            PropertyDef("default_dispvm", _VM, _GLOBAL, "Template for disposables.", _NONE),
            PropertyDef("management_dispvm", _VM, _GLOBAL, "Disposable template for management.", _NONE),
            PropertyDef("default_kernel", _STR, _GLOBAL, "Kernel that qubes boot.", _NONE, parse.kernel),
            PropertyDef("default_netvm", _VM, _GLOBAL, "Net qube of qubes that name none.", _NONE),
            PropertyDef("default_pool", _STR, _GLOBAL, "Pool for volumes.", default.default_pool, parse.pool),
            PropertyDef("default_pool_root", _STR, _GLOBAL, "Pool for root.", _DEFAULT_POOL, parse.pool),
            PropertyDef("default_pool_private", _STR, _GLOBAL, "Pool for private.", _DEFAULT_POOL, parse.pool),
            PropertyDef("default_pool_volatile", _STR, _GLOBAL, "Pool for volatile.", _DEFAULT_POOL, parse.pool),
            PropertyDef("default_pool_kernel", _STR, _GLOBAL, "Pool for kernels.", _DEFAULT_POOL, parse.pool),
            PropertyDef("default_qrexec_timeout", _INT, _GLOBAL, "Seconds a start may take.", constant(60), _TIMEOUT),
            PropertyDef(
                "default_shutdown_timeout", _INT, _GLOBAL, "Seconds a shutdown may take.", constant(60), _TIMEOUT
            ),
            PropertyDef("default_template", _VM, _GLOBAL, "Template of new app qubes.", _NONE),
            _computed("maxmem", _INT, _GLOBAL, default.host_memory, "Memory of the host, MiB."),
            _computed("no_cpus", _INT, _GLOBAL, default.host_cpus, "Number of CPUs of the host."),
            PropertyDef(
                "stats_interval", _INT, _GLOBAL, "Seconds between statistics.", constant(3), parse.number(1, 3600)
            ),
            PropertyDef("updatevm", _VM, _GLOBAL, "Qube that fetches updates of the host.", _NONE),
        )
    }
)

assert {n for n, ds in QUBE_PROPERTIES.items() if ds[0].type is _VM} == VM_PROPERTIES
assert {n for n, d in GLOBAL_PROPERTIES.items() if d.type is _VM} == GLOBAL_VM_PROPERTIES
