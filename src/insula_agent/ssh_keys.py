"""SSH host keys of this qube's own, where its template has an SSH server.

A template's keys would be those of all its qubes. So keys belong to a machine id, which is noted beside them; those of
another are replaced. A qube whose root is thrown away keeps its own in ``/rw/config/ssh-host-keys``; one that keeps
nothing has new ones at each start. Where the user keeps ``/etc/ssh`` itself (bind-dirs), the note is kept with it.

Run by path with ``python3 -I -S`` from insula-ssh-keys.service, before the server and after the identity.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from insula_agent import files, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SSH = "/etc/ssh"
KEPT = "/rw/config/ssh-host-keys"
KEEPER = "/run/qubes/persistent-rw-only"
"""Exists in a qube that keeps /rw and not its root."""
NOTE = "insula-machine-id"
MAKE_KEYS = ("ssh-keygen", "-A")
PREFIX = "ssh_host_"


def plan(machine_id: str, here: str, kept: str, *, is_keeper: bool) -> list[str]:
    """What to do: ``restore`` the kept keys, ``make`` new ones, ``keep`` those that are there now.

    :param here: machine id noted in the system's folder. :param kept: the one noted in the private folder.
    """
    if here == machine_id:
        return []
    if is_keeper and kept == machine_id:
        return ["restore"]
    return ["make", "keep"] if is_keeper else ["make"]


def _names(folder: str) -> list[str]:
    return [name for name in sorted(os.listdir(folder)) if name.startswith(PREFIX)]


def _copy(source: str, target: str, machine_id: str) -> None:
    """Host keys only, each with the mode it has; the note last: what was interrupted counts as not done."""
    os.makedirs(target, mode=0o755, exist_ok=True)
    for name in _names(target):
        os.unlink(f"{target}/{name}")
    for name in _names(source):
        mode = os.stat(f"{source}/{name}").st_mode & 0o777
        files.write(f"{target}/{name}", files.read(f"{source}/{name}"), mode)
    files.write(f"{target}/{NOTE}", machine_id)


def _make(folder: str, make_keys: Sequence[str], machine_id: str) -> None:
    for name in _names(folder):
        os.unlink(f"{folder}/{name}")
    programs.run(make_keys)
    files.write(f"{folder}/{NOTE}", machine_id)


def apply(machine_id: str, ssh: str, kept: str, make_keys: Sequence[str], *, is_keeper: bool) -> None:
    """:raise OSError, ProgramFailed: there may be no keys; the server does not start then."""
    for step in plan(machine_id, files.read(f"{ssh}/{NOTE}"), files.read(f"{kept}/{NOTE}"), is_keeper=is_keeper):
        if step == "restore":
            _copy(kept, ssh, machine_id)
        elif step == "make":
            _make(ssh, make_keys, machine_id)
        else:
            _copy(ssh, kept, machine_id)


if __name__ == "__main__":
    apply(files.read("/etc/machine-id").strip(), SSH, KEPT, MAKE_KEYS, is_keeper=os.path.exists(KEEPER))
