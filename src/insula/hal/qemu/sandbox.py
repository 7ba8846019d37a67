"""The sandbox around a VMM as a pure function: a bubblewrap command line (decision 003).

Inside there are user, pid, network, IPC, UTS and cgroup namespaces of its own; ``/usr`` read-only; a fresh ``/proc``
and a minimal ``/dev``; nothing else of the host, and no path that can be written to. What belongs to the qube (disks,
sockets, kernel) comes as open descriptors. The VMM is process 1 of its namespace: when it ends, everything in there
has ended.

There is no ``--die-with-parent``: machines outlive the daemon.

The VMM stays in the daemon's session where that has no terminal that could be reached from inside: Linux may schedule
by session (autogroup, sched(7)), and then a VMM's low priority counts only against its own session; four busy guests in
sessions of their own kept the daemon from the CPU for up to 300 ms. Its process group is its own in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Names in ``/`` through which programs and the dynamic loader reach ``/usr``."""

VMM_UID_BASE = 0x7000_0000
"""Under a root daemon the VMM of qube ``qid`` has host uid and gid ``VMM_UID_BASE + qid``: outside the ranges that
distributions hand out, and one of its own for each qube, so that no qube's VMM may signal or trace another's."""

VMM_FILES_LIMIT = 1024
"""RLIMIT_NOFILE of the VMM: its descriptors at start plus those hot-plugged later."""


def vmm_uid(qid: int) -> int:
    return VMM_UID_BASE + qid


@dataclass(frozen=True)
class HostDevices:
    """Devices of the host that the VMM gives its guest."""

    nodes: tuple[str, ...]
    """Device nodes: VFIO's own and one for each IOMMU group."""
    folders: Mapping[str, str]
    """Address → the device's folder in sysfs."""
    locked_memory: int
    """Bytes that stay where they are because a device writes there: RLIMIT_MEMLOCK."""


@dataclass(frozen=True)
class SandboxFacts:
    """What the sandbox must know of this host."""

    bwrap: str
    """Absolute path of bubblewrap."""
    prlimit: str
    """Absolute path of util-linux's prlimit."""
    files_limit: int
    """RLIMIT_NOFILE: :data:`VMM_FILES_LIMIT`, or less where the host allows less."""
    root_links: Mapping[str, str | None]
    """For each of :data:`ROOT_LINKS` that exists: its target if it is a link (``usr/lib``), None if a folder."""
    kvm: bool = False
    """Whether the VMM needs ``/dev/kvm``."""
    devices: HostDevices | None = None


def sandbox_argv(
    facts: SandboxFacts,
    command: Sequence[str],
    *,
    info_fd: int | None = None,
    status_fd: int | None = None,
    new_session: bool = True,
) -> tuple[str, ...]:
    """Wrap ``command``.

    :param info_fd: gets one JSON object with ``child-pid``, the command's pid as seen by the caller, before it runs.
    :param status_fd: the same, as JSON lines, the last with the exit code.
    :param new_session: may be False only if the caller has no controlling terminal.
    """
    return (
        *_limits(facts),
        facts.bwrap,
        *_namespaces(new_session=new_session),
        *_files(facts),
        *_reports(info_fd, status_fd),
        "--",
        *command,
    )


def _limits(facts: SandboxFacts) -> Iterator[str]:
    # A program of its own, because limits set from outside later need rights that even a root daemon may lack.
    yield facts.prlimit
    # No core dumps: they would hold the guest's memory.
    yield "--core=0:0"
    yield f"--nofile={facts.files_limit}:{facts.files_limit}"
    if facts.devices is not None:
        yield f"--memlock={facts.devices.locked_memory}:{facts.devices.locked_memory}"
    yield "--"


def _namespaces(*, new_session: bool) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
    yield "--unshare-cgroup-try"
    # No user namespaces inside: they are the usual way to reach kernel code that only root could reach.
    yield "--disable-userns"
    yield from ("--cap-drop", "ALL")
    yield from ("--hostname", "vmm")
    if new_session:
        yield "--new-session"
    yield "--clearenv"
    yield "--as-pid-1"
    yield from ("--chdir", "/")


def _files(facts: SandboxFacts) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name, target in facts.root_links.items():
        path = f"/{name}"
        if target is None:
            yield from ("--ro-bind", path, path)
        else:
            yield from ("--symlink", target, path)
    yield from ("--proc", "/proc")
    yield from ("--dev", "/dev")
    if facts.kvm:
        yield from ("--dev-bind", "/dev/kvm", "/dev/kvm")
    if facts.devices is not None:
        for node in facts.devices.nodes:
            yield from ("--dev-bind", node, node)
        for address, folder in facts.devices.folders.items():
            # Of sysfs, QEMU sees what is said of these devices and nothing else.
            yield from ("--ro-bind", folder, f"/sys/bus/pci/devices/{address}")
    # The two file systems made above live in memory; nobody needs to fill it.
    yield from ("--remount-ro", "/dev", "--remount-ro", "/")


def _reports(info_fd: int | None, status_fd: int | None) -> Iterator[str]:
    if info_fd is not None:
        yield from ("--info-fd", str(info_fd))
    if status_fd is not None:
        yield from ("--json-status-fd", str(status_fd))


def is_visible_inside(path: PurePosixPath) -> bool:
    """Whether a program at ``path`` of the host can be run inside."""
    return path.is_absolute() and path.parts[1:2] == ("usr",) and ".." not in path.parts
