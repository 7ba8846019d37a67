"""What changed between two systems, as the events clients are told (admin-api §6). Pure.

Handlers commit a new system and this says what to publish, so that no handler can forget an event, and what
follows a change (tags that follow ``guivm``, a feature that follows ``provides_network``) is reported as well.
Creation and removal of qubes and pools are reported by lifecycle, which does them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from insula.events.types import Event
from insula.model.qube import PropertyValue, Qube
from insula.model.system import System


@dataclass(frozen=True)
class Announcements:
    """Events of one commit."""

    before: tuple[Event, ...]
    """To be published before the change is made (``…-pre-…``)."""
    after: tuple[Event, ...]


def announcements(old: System, new: System) -> Announcements:
    """Events for everything that differs in global properties and in qubes that both systems have."""
    pairs = list(_properties("", old.properties, new.properties))
    for name, qube in new.qubes.items():
        known = old.qubes.get(name)
        if known is not None and known is not qube:
            pairs += _qube(known, qube)
    return Announcements(
        before=tuple(event for event, _ in pairs if event is not None),
        after=tuple(event for _, event in pairs),
    )


Pair = tuple[Event | None, Event]
"""What is published before and after."""


def _qube(old: Qube, new: Qube) -> Iterator[Pair]:
    subject = new.name
    yield from _properties(subject, {"label": old.label, **old.properties}, {"label": new.label, **new.properties})
    for feature in old.features.keys() - new.features.keys():
        yield (
            Event(subject, f"domain-feature-pre-delete:{feature}", {"feature": feature}),
            Event(subject, f"domain-feature-delete:{feature}", {"feature": feature}),
        )
    for feature, value in new.features.items():
        if old.features.get(feature) != value:
            kwargs = {"feature": feature, "value": value}
            if feature in old.features:
                kwargs["oldvalue"] = old.features[feature]
            yield (
                Event(subject, f"domain-feature-pre-set:{feature}", kwargs),
                Event(subject, f"domain-feature-set:{feature}", kwargs),
            )
    for tag in sorted(old.tags - new.tags):
        yield None, Event(subject, f"domain-tag-delete:{tag}", {"tag": tag})
    for tag in sorted(new.tags - old.tags):
        yield None, Event(subject, f"domain-tag-add:{tag}", {"tag": tag})


def _properties(subject: str, old: Mapping[str, PropertyValue], new: Mapping[str, PropertyValue]) -> Iterator[Pair]:
    for name in old.keys() - new.keys():
        kwargs = {"name": name, "oldvalue": str(old[name])}
        # Older clients know a reset as "del"; both are sent, as published.
        for verb in ("reset", "del"):
            yield (
                Event(subject, f"property-pre-{verb}:{name}", kwargs),
                Event(subject, f"property-{verb}:{name}", kwargs),
            )
    for name, value in new.items():
        if name not in old or old[name] != value:
            kwargs = {"name": name, "newvalue": str(value)}
            if name in old:
                kwargs["oldvalue"] = str(old[name])
            yield (
                Event(subject, f"property-pre-set:{name}", kwargs),
                Event(subject, f"property-set:{name}", kwargs),
            )
