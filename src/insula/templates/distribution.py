"""What a distribution must offer to become a template, and how the known ones are found.

A distribution only knows how to fill a folder with a system and how to adapt it; the steps around that (agent,
kernel, initramfs, image, publishing) are the same for all and live in ``build.py``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.templates import distributions
from insula.templates.errors import TemplateError
from insula.templates.namespace import IdMap

Progress = Callable[[float, str], None]
"""Called with the finished part of the step (0…1) and one line for the user."""

APPLICATIONS = ".insula-applications"
"""File in the root of an adapted system, which is no part of the image: its applications, as ``qubes.GetAppmenus``."""


@dataclass(frozen=True)
class OsInfo:
    """What the system is, in the words of os-release(5); becomes the features of §6 of agent-services."""

    distribution: str
    like: str
    version: str
    eol: str
    """Last day of support, YYYY-MM-DD."""


@dataclass(frozen=True)
class Workroom:
    """Where a build works. Folders inside belong to the root of the namespace."""

    path: Path
    ids: IdMap


class Distribution(Protocol):
    @property
    def name(self) -> str:
        """As the user types it, such as ``debian-12``; also the name of the template."""

    @property
    def os(self) -> OsInfo: ...

    def bootstrap_inputs(self) -> Mapping[str, str]:
        """Everything that decides what :meth:`bootstrap` makes, except what mirrors currently serve."""

    async def bootstrap(self, room: Workroom, target: str, progress: Progress) -> None:
        """Write the system, without our agent, as a tar archive named ``target`` in the room.

        Packages must be checked against keys that came with this machine's own system.
        :raise TemplateError: nothing usable is left at ``target``.
        """

    def adapt_script(self) -> str:
        """A ``/bin/sh -e`` script run as the namespace's root; ``$1`` is the folder of the unpacked system,
        ``$2`` our agent as a Debian package. It installs the agent and makes the system start quickly."""


def known_distributions() -> dict[str, Distribution]:
    """All distributions by name, in order of their names."""
    found: dict[str, Distribution] = {}
    for module in pkgutil.iter_modules(distributions.__path__):
        for item in importlib.import_module(f"{distributions.__name__}.{module.name}").DISTRIBUTIONS:
            found[item.name] = item
    return dict(sorted(found.items()))


def find_distribution(name: str) -> Distribution:
    """:raise TemplateError: unknown name; the message lists the known ones."""
    known = known_distributions()
    if name not in known:
        raise TemplateError(f"no template recipe named {name!r}; there are: {', '.join(known)}")
    return known[name]
