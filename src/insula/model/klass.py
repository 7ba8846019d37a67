"""The classes of qubes under their published names (admin-api §2), and what each may have."""

from __future__ import annotations

from enum import StrEnum


class Klass(StrEnum):
    APPVM = "AppVM"
    """Root from a template, a private volume of its own."""
    TEMPLATEVM = "TemplateVM"
    """Owns the root that others start from."""
    STANDALONEVM = "StandaloneVM"
    """Owns all of its volumes, lends them to nobody."""
    DISPVM = "DispVM"
    """Everything from an app qube, nothing kept."""
    ADMINVM = "AdminVM"
    """The control side, ``dom0``; exactly one."""
    REMOTEVM = "RemoteVM"
    """Stands for a qube on another machine; has no machine here."""

    @property
    def has_template(self) -> bool:
        """Whether qubes of this class are based on another qube (property ``template``)."""
        return self in (Klass.APPVM, Klass.DISPVM)

    @property
    def has_machine(self) -> bool:
        """Whether qubes of this class can be started here; they have volumes and the full set of properties."""
        return self not in (Klass.ADMINVM, Klass.REMOTEVM)

    @property
    def is_updateable(self) -> bool:
        """Whether software installed in such a qube stays (property ``updateable``)."""
        return not self.has_template and self is not Klass.REMOTEVM

    @property
    def is_persistent(self) -> bool:
        """Whether anything written in such a qube outlives its shutdown."""
        return self is not Klass.DISPVM


LOCAL_KLASSES = frozenset(klass for klass in Klass if klass.has_machine)
"""The ``L`` of admin-api §4: classes with a machine on this host."""
