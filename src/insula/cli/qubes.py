"""Looking up one qube."""

from __future__ import annotations

from insula.admin.client import AdminClient, QubeRow


async def find_qube(client: AdminClient, name: str) -> QubeRow:
    """Name, class and state of one qube. :raise QubesVMNotFoundError:"""
    rows = await client.list_qubes(name)
    # Asked for dom0 the daemon lists all, dom0 first.
    return next((row for row in rows if row.name == name), rows[0])
