"""What a definition of a property consists of, and what rules see when they compute a value.

The definitions themselves are the tables in :mod:`insula.model.property_table`; this module has no table so that
parsers, default rules and :class:`insula.model.system.System` can all import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from insula.model.frozen import freeze

if TYPE_CHECKING:
    from insula.model.qube import PropertyValue

VM_PROPERTIES = frozenset({"template", "netvm", "default_dispvm", "management_dispvm", "guivm", "audiovm", "relayvm"})
"""Properties of qubes whose value is a qube; the table is checked against this."""
GLOBAL_VM_PROPERTIES = frozenset(
    {
        "clockvm",
        "default_audiovm",
        "default_guivm",
        "default_dispvm",
        "management_dispvm",
        "default_netvm",
        "default_template",
        "updatevm",
    }
)
"""Global properties whose value is a qube; the table is checked against this."""


class PropertyType(StrEnum):
    """Types known to clients; they fail on any other (admin-api §3)."""

    STR = "str"
    INT = "int"
    BOOL = "bool"
    VM = "vm"
    LABEL = "label"


class Access(StrEnum):
    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    """Computed."""
    WRITE_ONCE = "write-once"
    """Given at creation."""


@dataclass(frozen=True)
class Runtime:
    """What the model cannot know by itself: facts of the host, and of the machine of the qube asked about."""

    start_time: float | None = None
    """Unix time of the last start; None: it does not run."""
    xid: int = -1
    """The hypervisor's number of the machine; -1: it does not run."""
    host_memory_mib: int = 0
    host_cpus: int = 1
    kernel_options: Mapping[str, str] = field(default_factory=dict)
    """Kernel version → default options that came with it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_options", freeze(self.kernel_options))

    def host_only(self) -> Runtime:
        """The same host, without a machine."""
        return Runtime(
            host_memory_mib=self.host_memory_mib, host_cpus=self.host_cpus, kernel_options=self.kernel_options
        )


@dataclass(frozen=True)
class Resolved:
    """A property's value with where it came from."""

    value: PropertyValue
    """None for ``vm``: no qube; for other types: no value (shown empty)."""
    is_default: bool
    type: PropertyType
