"""Runs the user's boot scripts, as root, last of all: ``/rw/config/rc.local.d/*.rc``, then ``/rw/config/rc.local``.

Only files that are executable (agent-services §14). Run by path with ``python3 -I -S`` from insula-rc-local.service; a
script that fails is reported and does not keep the next from running.
"""

from __future__ import annotations

import errno
import os
import sys

CONFIG = "/rw/config"


def plan_scripts(config: str) -> list[str]:
    """Paths of the scripts to run, in order."""
    folder = f"{config}/rc.local.d"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [f"{folder}/{name}" for name in names if name.endswith(".rc") and not name.startswith(".")]
    return [path for path in [*paths, f"{config}/rc.local"] if os.path.isfile(path) and os.access(path, os.X_OK)]


def is_needed(config: str = CONFIG) -> bool:
    """Whether there is more to run than the script of comments that every private disk starts with."""
    scripts = plan_scripts(config)
    if scripts != [f"{config}/rc.local"]:
        return bool(scripts)
    with open(scripts[0], "rb") as file:
        return any(line.strip() and not line.startswith(b"#") for line in file)


def run(path: str) -> bool:
    """Run one script; whether it succeeded."""
    try:
        pid = _spawn(path)
    except OSError as error:
        sys.stderr.write(f"{path}: {error}\n")
        return False
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        sys.stderr.write(f"{path}: exit status {code}\n")
    return code == 0


def _spawn(path: str) -> int:
    try:
        return os.posix_spawn(path, [path], dict(os.environ))
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # No "#!" line: what a shell does with such a file.
        return os.posix_spawn("/bin/sh", ["sh", path], dict(os.environ))


def main(config: str = CONFIG) -> int:
    results = [run(path) for path in plan_scripts(config)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
