"""A qube as rules and readers see it: every property with its effective value.

``View(system, qube, runtime, lookup)`` is made by :func:`insula.model.properties.view`. Rules for defaults get a view
and ask it for other properties, the template's, the net qube's or the system's; so a chain of defaults is written as
what it is, and the table of definitions needs no import of the code that reads the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.property_types import Runtime
from insula.model.qube import PropertyValue, Qube
from insula.model.system import System


@dataclass(frozen=True)
class View:
    system: System
    qube: Qube | None
    """None: the system itself."""
    runtime: Runtime
    lookup: Callable[[View, str], PropertyValue]

    def value(self, name: str) -> PropertyValue:
        """Effective value. :raise QubesNoSuchPropertyError:"""
        return self.lookup(self, name)

    # The four below exist for types: a property of the table has the type it says.

    def text(self, name: str) -> str:
        """Value of a ``str`` or ``label`` property; no value is the empty string."""
        value = self.value(name)
        assert value is None or isinstance(value, str)
        return value or ""

    def number(self, name: str) -> int:
        """Value of an ``int`` property that always has one."""
        value = self.value(name)
        assert isinstance(value, int)
        return value

    def flag(self, name: str) -> bool:
        value = self.value(name)
        assert isinstance(value, bool)
        return value

    def vm(self, name: str) -> QubeName | None:
        value = self.value(name)
        assert value is None or isinstance(value, str)
        return None if value is None else QubeName(value)

    # other views

    @property
    def subject(self) -> Qube:
        """The qube; asked only by rules of qubes' properties."""
        assert self.qube is not None
        return self.qube

    def of(self, name: str) -> View:
        """The same system seen from another qube. :raise QubesVMNotFoundError:"""
        return View(self.system, self.system.get(name), self.runtime.host_only(), self.lookup)

    @property
    def globals(self) -> View:
        return View(self.system, None, self.runtime.host_only(), self.lookup)

    @property
    def template(self) -> View | None:
        template = self.subject.template
        return None if template is None else self.of(template)

    @property
    def netvm(self) -> View | None:
        if not self.subject.klass.has_machine:
            return None
        name = self.vm("netvm")
        return None if name is None else self.of(name)

    def along(self, step: Callable[[View], View | None]) -> Iterator[View]:
        """This view, then what ``step`` leads to, until the end or a qube seen before."""
        seen: set[QubeName] = set()
        here: View | None = self
        while here is not None and here.subject.name not in seen:
            seen.add(here.subject.name)
            yield here
            here = step(here)

    @property
    def is_networked(self) -> bool:
        """Whether the qube has an address: it uses a network or provides one."""
        return self.subject.klass.has_machine and (self.flag("provides_network") or self.vm("netvm") is not None)

    def feature_from_template(self, name: str) -> str | None:
        """Own feature, else the template's, else the template's template's."""
        for here in self.along(lambda view: view.template):
            if name in here.subject.features:
                return here.subject.features[name]
        return None

    def feature_from_netvm(self, name: str) -> str | None:
        """Own feature, else the one of the nearest net qube that has it."""
        for here in self.along(lambda view: view.netvm):
            if name in here.subject.features:
                return here.subject.features[name]
        return None


def has_address_of_disposables(qube: Qube) -> bool:
    """Whether the qube's address is of the disposables' range (agent-services §12)."""
    return qube.klass is Klass.DISPVM and isinstance(qube.properties.get("dispid"), int)
