"""From a program and its arguments to what the agent is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from insula_proto import vmexec
from insula_proto.errors import LocalProtocolError


def command_line(words: Sequence[str | bytes | os.PathLike[str]], service: str = "qubes.VMExec") -> str:
    """A ``qubes.VMExec`` call that keeps every argument as it is, without a shell (agent-services §2).

    :param service: another one of the same kind.

    :raise TypeError: one string instead of a list.
    :raise ValueError: no program, a NUL, or too long: about 60 000 letters and digits; others count thrice.
    """
    if isinstance(words, str | bytes):
        raise TypeError("a command is a list of words; for a shell line use ['sh', '-c', LINE]")
    try:
        encoded = vmexec.encode([os.fsencode(word) for word in words])
    except LocalProtocolError as error:
        raise ValueError(f"{error} (long texts can be given as input)") from error
    return f"QUBESRPC {service}+{encoded.decode('ascii')} dom0"
