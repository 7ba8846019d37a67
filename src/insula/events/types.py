"""What can be reported. One frozen class a fact; subject and published name as in admin-api §6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something that has happened.

    Kept as published name and text values because that is all any listener may rely on.
    """

    subject: str
    """Qube name; empty for the system itself."""
    name: str
    """Published event name, e.g. ``domain-start`` or ``property-set:label``."""
    kwargs: Mapping[str, str] = field(default_factory=dict)
