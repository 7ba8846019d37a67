"""Colours of labels, asked for only where the built-in ones do not do."""

from __future__ import annotations

from collections.abc import Set

from insula.admin.client import AdminClient
from insula.model.labels import BUILTIN_LABELS


async def label_colors(client: AdminClient, wanted: Set[str]) -> dict[str, str]:
    """Label → ``0xRRGGBB`` for at least the wanted ones that exist."""
    colors = {label.name: label.color_text for label in BUILTIN_LABELS.values()}
    return colors if wanted <= colors.keys() else {**colors, **await client.list_labels()}
