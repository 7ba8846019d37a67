"""What a private disk holds after its first start: configuration, /usr/local, the user's home.

Everything is made under names that begin with a dot, brought to the disk by one sync, and then given its names by
renaming: a machine that is killed half-way has none of them, never an empty file below one. Made here and not by cp(1)
and chown(1): the two would take longer to start than all of this.
"""

from __future__ import annotations

import os

from insula_agent import programs, syscalls
from insula_agent.log import log

RW = "/rw"
SKELETON = "/etc/skel"
LOCAL_ORIGIN = "/usr/local.orig"
"""What /usr/local starts from; put there when the template is built."""

RC_LOCAL = """\
#!/bin/sh
# Runs as root at the end of each boot of this qube, as long as this file is executable.
"""
FIREWALL_SCRIPT = """\
#!/bin/sh
# Runs as root when the firewall of this qube has been set up, as long as this file is executable.
"""
SUSPEND_BLACKLIST = """\
# Kernel modules that are removed before the host sleeps and loaded afterwards, one a line.
"""
CONFIG_FILES = (
    ("rc.local", RC_LOCAL, 0o755),
    ("qubes-firewall-user-script", FIREWALL_SCRIPT, 0o755),
    ("suspend-module-blacklist", SUSPEND_BLACKLIST, 0o644),
)


class LayoutError(Exception):
    """The user's home cannot be made."""


def lay_out(user: str, rw: str = RW, *, is_kept: bool = True) -> None:
    """Make what is missing. ``is_kept``: the disk outlives this run, so it is worth waiting for it.

    :raise LayoutError, OSError:
    """
    made: list[tuple[str, str]] = []
    if not os.path.isdir(f"{rw}/config"):
        made.append((_make_config(f"{rw}/.config.new"), f"{rw}/config"))
    if not os.path.isdir(f"{rw}/usrlocal") and os.path.isdir(LOCAL_ORIGIN):
        new = fresh_folder(f"{rw}/.usrlocal.new")
        copy_into(LOCAL_ORIGIN, new)
        made.append((new, f"{rw}/usrlocal"))
    if not os.path.isdir(f"{rw}/home/{user}"):
        if not os.path.isdir(f"{rw}/home"):
            os.mkdir(f"{rw}/home", 0o755)
        made.append((_make_home(user, f"{rw}/home/.{user}.new"), f"{rw}/home/{user}"))
    if made and is_kept:
        syscalls.sync_file_system(rw)
    for new, final in made:
        os.rename(new, final)


def _make_config(new: str) -> str:
    fresh_folder(new)
    for name, text, mode in CONFIG_FILES:
        with open(f"{new}/{name}", "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(f"{new}/{name}", mode)
    return new


def _make_home(user: str, new: str) -> str:
    import pwd  # noqa: PLC0415 - only at the first boot

    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise LayoutError(f"this template has no user {user!r}") from None
    fresh_folder(new)
    if os.path.isdir(SKELETON):
        copy_into(SKELETON, new, (account.pw_uid, account.pw_gid))
    os.chown(new, account.pw_uid, account.pw_gid)
    os.chmod(new, 0o700)
    return new


def fresh_folder(path: str) -> str:
    """Make an empty folder, with what an interrupted boot left there removed."""
    if os.path.lexists(path):
        programs.run(["rm", "-rf", "--one-file-system", path])
    os.mkdir(path, 0o755)
    return path


def copy_into(source: str, target: str, owner: tuple[int, int] | None = None) -> None:
    """Copy a folder's files, folders and links, and its own owner and mode, into an existing one.

    :param owner: user and group of the copies; None: as they are.
    """
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
                _own(path, entry.stat(follow_symlinks=False), owner)
                continue
            if entry.is_dir():
                os.mkdir(path)
                copy_into(entry.path, path, owner)
                continue
            if not entry.is_file():
                log(f"{entry.path} is neither file nor folder nor link, and was not copied")
                continue
            with open(entry.path, "rb") as original, open(path, "xb") as copy:
                copy.write(original.read())
            _own(path, entry.stat(), owner)
            os.chmod(path, entry.stat().st_mode & 0o7777)
    facts = os.stat(source)
    _own(target, facts, owner)
    os.chmod(target, facts.st_mode & 0o7777)


def _own(path: str, facts: os.stat_result, owner: tuple[int, int] | None) -> None:
    uid, gid = owner or (facts.st_uid, facts.st_gid)
    os.chown(path, uid, gid, follow_symlinks=False)
