"""Which desktop windows of qubes were shown on last, as :mod:`insula.daemon.windows` has written it down."""

from __future__ import annotations

import logging
from pathlib import Path

from insula.model.desktop import Desktop, parse_desktop
from insula.model.errors import QubesException

log = logging.getLogger("insula.daemon")


def noted_desktop(note: Path) -> Desktop | None:
    """Where windows were shown last; None if nowhere yet."""
    try:
        return parse_desktop(note.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, QubesException) as error:
        log.warning("%s: %s", note, error)
        return None
