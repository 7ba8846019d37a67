"""Which desktop windows are shown and sound is played on: a few variables of the environment of whoever asked."""

from __future__ import annotations

import json
from collections.abc import Mapping

from insula.model.errors import QubesValueError

VARIABLES = ("DISPLAY", "PULSE_SERVER", "QT_QPA_PLATFORM", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR")
"""What says which desktop a program is on, and where it plays."""
MAX_VARIABLE = 4096
"""Characters of a value: paths."""

Desktop = Mapping[str, str]
"""Some of :data:`VARIABLES`."""


def desktop_of(environment: Mapping[str, str]) -> Desktop:
    """The desktop of a program with this environment."""
    return {name: environment[name] for name in VARIABLES if environment.get(name)}


def parse_desktop(untrusted_payload: bytes) -> Desktop:
    """A JSON object of variables. :raise QubesValueError: anything else."""
    try:
        values = json.loads(untrusted_payload)
    except ValueError as error:
        raise QubesValueError("A desktop is a JSON object of variables") from error
    if not isinstance(values, dict) or not set(values) <= set(VARIABLES):
        raise QubesValueError(f"A desktop is a JSON object of some of {', '.join(VARIABLES)}")
    for value in values.values():
        if not isinstance(value, str) or len(value) > MAX_VARIABLE or "\0" in value:
            raise QubesValueError("A variable of a desktop has a text as value")
    return values
