"""Properties as the Admin API writes them (admin-api §2 Properties, §3)."""

from __future__ import annotations

from insula.model.property_types import Resolved
from insula.model.qube import PropertyValue


def value_text(value: PropertyValue) -> str:
    """``True``, ``400``, a name; empty for None."""
    return "" if value is None else str(value)


def get_text(resolved: Resolved) -> str:
    """Answer of ``….Get``: ``default=True type=int 400``; a trailing space where there is no value."""
    return f"default={resolved.is_default} type={resolved.type} {value_text(resolved.value)}"


def default_text(resolved: Resolved | None) -> str:
    """Answer of ``….GetDefault``: ``type=int 400``, empty if there is no default."""
    return "" if resolved is None else f"type={resolved.type} {value_text(resolved.value)}"


def list_line(name: str, resolved: Resolved) -> str:
    """One line of ``….GetAll``, newline included; backslash and newline after the name are escaped."""
    text = get_text(resolved).replace("\\", "\\\\").replace("\n", "\\n")
    return f"{name} {text}\n"
