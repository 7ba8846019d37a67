"""What applications qubes have, as they told it last: a file for each qube that did.

They are claims of guests, already taken apart and bounded (:mod:`insula.model.applications`); here they only outlive
the daemon. A list belongs to a qube's UUID, so a new qube of an old name starts without one (MC-20).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from uuid import UUID

import msgspec

from insula.model.applications import Application
from insula.model.names import QubeName
from insula.model.qube import Qube
from insula.model.system import System

SUFFIX = ".json"


class ApplicationLists:
    """``folder`` is ours alone; it need not be there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, qube: UUID, applications: Collection[Application]) -> None:
        """:raise OSError: nothing was changed."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._folder / f".{qube}.new"
        temporary.write_bytes(msgspec.json.encode(list(applications)))
        temporary.replace(self._folder / f"{qube}{SUFFIX}")

    def forget_all_but(self, known: Collection[UUID]) -> None:
        """Remove lists of qubes that are not there any more."""
        names = {f"{qube}{SUFFIX}" for qube in known}
        for path in self._folder.glob("*") if self._folder.exists() else ():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def told_by(self, qube: UUID) -> tuple[Application, ...]:
        """What it told last; nothing if it told nothing, or the file is damaged: it will tell again."""
        try:
            data = (self._folder / f"{qube}{SUFFIX}").read_bytes()
            return msgspec.json.decode(data, type=tuple[Application, ...])
        except (OSError, msgspec.DecodeError):
            return ()

    def of(self, system: System, qube: Qube) -> tuple[Application, ...]:
        """What can be started in a qube: its own, and those of the systems it is made from; its own come first."""
        found: dict[str, Application] = {}
        here: Qube | None = qube
        while here is not None:
            for application in self.told_by(here.uuid):
                found.setdefault(application.id, application)
            here = system.qubes.get(QubeName(here.template)) if here.template else None
        return tuple(sorted(found.values(), key=lambda application: (application.name.casefold(), application.id)))
