"""Which commands there are: name → section of the help. The module of each is loaded only when it is used.

A command is a module ``insula.cli.commands.NAME`` with a Typer object ``app``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "ls": "Qubes",
        "create": "Qubes",
        "clone": "Qubes",
        "remove": "Qubes",
        "start": "Life of a qube",
        "stop": "Life of a qube",
        "kill": "Life of a qube",
        "pause": "Life of a qube",
        "unpause": "Life of a qube",
        "run": "Life of a qube",
        "cp": "Life of a qube",
        "apps": "Life of a qube",
        "menu": "Life of a qube",
        "mic": "Life of a qube",
        "screenshot": "Life of a qube",
        "console": "Life of a qube",
        "prefs": "Settings",
        "features": "Settings",
        "tags": "Settings",
        "service": "Settings",
        "label": "Settings",
        "firewall": "Settings",
        "forward": "Settings",
        "net": "Settings",
        "policy": "Settings",
        "prompt": "Settings",
        "volume": "Storage and templates",
        "pool": "Storage and templates",
        "template": "Storage and templates",
        "update": "Storage and templates",
        "top": "This machine",
        "events": "This machine",
        "calls": "This machine",
        "doctor": "This machine",
        "down": "This machine",
    }
)
"""In the order of the help."""
