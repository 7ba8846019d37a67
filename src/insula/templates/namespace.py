"""Runs programs as "root" of a user namespace of their own: how templates are built without being root.

Building a system needs an id 0 that may chown and chroot, not power over this machine. So every such step runs
in new user, mount, pid, ipc and UTS namespaces (the network stays: packages are downloaded), whose ids are mapped

* for an ordinary user: 0 to the user, 1…65535 to the range of ``/etc/subuid`` and ``/etc/subgid`` (through the
  setuid helpers ``newuidmap`` and ``newgidmap``);
* for root: 0…65535 to :data:`ROOT_RANGE`, ids nobody on this machine has. What packages run while they are
  installed is then less than an ordinary user here, and no ``/etc/subuid`` entry for root is needed (``newuidmap``,
  and with it ``mmdebstrap --mode=unshare``, would want one).

Inside, the work folder is bound to :data:`INSIDE`: it is reachable however private the folders above it are, and
every step sees the same path. The homes of people are covered by empty folders. The namespaces, and with them
every process and mount in them, end when the helper ends or its caller is cancelled.

The other side, which sets the namespaces up from within, is ``namespace_init.py``.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from insula.templates.errors import BuildFailed, Unbuildable
from insula.templates.namespace_init import INSIDE as _INSIDE

INSIDE = Path(_INSIDE)
"""Where the work folder is seen by programs in the namespace; a folder every Linux system has."""
ROOT_RANGE = 0x6FFE0000
"""First of the host ids used when the caller is root: the top of what systemd reserves for containers
(524288…1879048191, https://systemd.io/UIDS-GIDS), below the ids of running qubes."""
IDS = 65536
"""Ids mapped: what Debian's policy (9.2) assigns, ``nobody`` included."""
TAIL_LINES = 40
"""Lines of output kept for the error message."""
LINE_LIMIT = 65536
"""Bytes of one output line; longer ones are cut."""

_INIT = Path(__file__).with_name("namespace_init.py")


@dataclass(frozen=True)
class IdRange:
    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@dataclass(frozen=True)
class IdMap:
    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @property
    def root_uid(self) -> int:
        """Host uid of the namespace's root."""
        return self.uids[0].outside

    @property
    def root_gid(self) -> int:
        return self.gids[0].outside


def parse_subordinate_ids(text: str, name: str, number: int) -> tuple[int, int] | None:
    """First range (start, count) of at least ``IDS`` − 1 ids that subuid(5) text gives the user; None without."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) != 3 or fields[0] not in (name, str(number)):
            continue
        if fields[1].isdecimal() and fields[2].isdecimal() and int(fields[2]) >= IDS - 1:
            return int(fields[1]), int(fields[2])
    return None


def plan_id_map(uid: int, gid: int, name: str, subuid: str, subgid: str) -> IdMap:
    """Decide the mapping for a caller. :raise Unbuildable: an ordinary user without subordinate ids."""
    if uid == 0:
        whole = (IdRange(0, ROOT_RANGE, IDS),)
        return IdMap(whole, whole)
    uids = parse_subordinate_ids(subuid, name, uid)
    gids = parse_subordinate_ids(subgid, name, uid)
    if uids is None or gids is None:
        raise Unbuildable(
            f"user {name} has no range of subordinate ids, so no template can be built; "
            f"as root run: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        )
    return IdMap(
        (IdRange(0, uid, 1), IdRange(1, uids[0], IDS - 1)),
        (IdRange(0, gid, 1), IdRange(1, gids[0], IDS - 1)),
    )


def own_id_map() -> IdMap:
    """The mapping for this process. :raise Unbuildable:"""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    uid, gid = os.geteuid(), os.getegid()
    name = pwd.getpwuid(uid).pw_name
    return plan_id_map(uid, gid, name, read("/etc/subuid"), read("/etc/subgid"))


def hand_over(path: Path, ids: IdMap) -> None:
    """Make the namespace's root the owner of a file or folder of ours (no-op for an ordinary user)."""
    if os.geteuid() == 0:
        os.chown(path, ids.root_uid, ids.root_gid)


async def run(
    argv: Sequence[str],
    *,
    work_dir: Path,
    ids: IdMap,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    """Run a program in the namespace with ``work_dir`` as :data:`INSIDE` (also its current folder).

    Lines of its output go to ``on_line`` as they come.

    :raise BuildFailed: it did not exit with 0. :raise Unbuildable: the kernel refuses user namespaces.
    """
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(_INIT), str(ready_write), str(go_read), *argv,
            cwd=work_dir,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            limit=LINE_LIMIT,
            pass_fds=(ready_write, go_read),
            env=_environment(env or {}),
            start_new_session=True,
        )  # fmt: skip
    except BaseException:
        os.close(ready_read)
        os.close(go_write)
        raise
    finally:
        os.close(ready_write)
        os.close(go_read)
    try:
        with os.fdopen(go_write, "wb", buffering=0) as go:
            with os.fdopen(ready_read, "rb", buffering=0) as ready:
                answer = await asyncio.to_thread(ready.read, 1)
            if answer:
                await _write_maps(process.pid, ids)
                go.write(b"g")
        tail = await _follow(process, on_line)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not answer:
        raise Unbuildable(f"this kernel allows no user namespaces: {tail.strip() or 'no reason given'}")
    if status != 0:
        raise BuildFailed(f"{Path(argv[0]).name} failed (exit status {status})", tail)


async def _follow(process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> str:
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    while True:
        try:
            raw = await process.stdout.readuntil()
        except asyncio.IncompleteReadError as end:
            raw = end.partial
        except asyncio.LimitOverrunError:
            raw = await process.stdout.read(LINE_LIMIT)
        if not raw:
            return "\n".join(tail)
        line = raw.decode(errors="replace").rstrip()
        tail.append(line)
        on_line(line)


async def _write_maps(pid: int, ids: IdMap) -> None:
    if os.geteuid() == 0:
        Path(f"/proc/{pid}/uid_map").write_text("\n".join(map(str, ids.uids)), encoding="ascii")
        Path(f"/proc/{pid}/gid_map").write_text("\n".join(map(str, ids.gids)), encoding="ascii")
        return
    for tool, ranges in (("newuidmap", ids.uids), ("newgidmap", ids.gids)):
        if shutil.which(tool) is None:
            raise Unbuildable(f"{tool} is missing; install the package uidmap")
        words = [word for item in ranges for word in str(item).split()]
        helper = await asyncio.create_subprocess_exec(
            tool, str(pid), *words, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
        )
        _, errors = await helper.communicate()
        if helper.returncode != 0:
            raise Unbuildable(f"{tool} refused the id range: {errors.decode(errors='replace').strip()}")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A fixed environment, so that builds do not depend on who runs them; proxies are passed on."""
    kept = {key: value for key, value in os.environ.items() if key.lower() in ("http_proxy", "https_proxy", "no_proxy")}
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/nonexistent",
        "TMPDIR": str(INSIDE / "tmp"),
        **kept,
        **extra,
    }
