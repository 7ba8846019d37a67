"""What this machine offers to a hypervisor: gathered once, kept as a frozen value, explained in sentences.

:func:`probe` does all the reading (blocking, a few tens of milliseconds); :class:`HostInfo` and what follows from it
are pure. ``insula doctor`` prints both; the QEMU driver decides by it.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from insula.hal.qemu.accel import Accelerator, KvmNode, choose
from insula.hal.qemu.sandbox import ROOT_LINKS, VMM_FILES_LIMIT, SandboxFacts, is_visible_inside, sandbox_argv, vmm_uid

QEMU_PROGRAM = "qemu-system-x86_64"
BWRAP_PROGRAM = "bwrap"
PRLIMIT_PROGRAM = "prlimit"

OLDEST_QEMU = (7, 2)
"""Older ones lack JSON for ``-device`` (6.2) or ``i8042=off`` (7.0); 7.2 is the oldest that was tried."""
OLDEST_BWRAP = (0, 8)
"""``--disable-userns`` came with 0.8."""

TOOL_LIMIT_S = 10.0
"""Longest time for a tool to tell its version or to enter an empty sandbox."""

_KVM_GET_API_VERSION = 0xAE00
"""linux/kvm.h, _IO(KVMIO, 0x00)."""
_KVM_API_VERSION = 12
"""The only one since Linux 2.6.22 (Documentation/virt/kvm/api.rst §4.1)."""

PROBE_QID = 0
"""No qube has it: the sandbox is tried with a host uid that nobody else uses."""


@dataclass(frozen=True)
class Tool:
    """An external program."""

    path: str | None
    """None: not installed."""
    version: tuple[int, ...] = ()

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version) or "unknown"


@dataclass(frozen=True)
class HostInfo:
    qemu: Tool
    bwrap: Tool
    prlimit: Tool
    files_limit: int
    """See :class:`SandboxFacts`."""
    sandbox_problem: str
    """Why VMMs cannot be sandboxed here; empty if they can."""
    kvm: KvmNode
    kvm_group: int | None
    """Group that a VMM under a root daemon must have to open ``/dev/kvm``; None if it needs none."""
    cpu_count: int
    cpu_model: str
    cpu_flags: frozenset[str]
    memory_total_mib: int
    memory_available_mib: int
    iommu_groups: int
    daemon_is_root: bool
    root_links: dict[str, str | None] = field(default_factory=dict)
    """See :class:`SandboxFacts`."""

    @property
    def accelerator(self) -> Accelerator:
        return choose(self.kvm, self.cpu_flags)

    @property
    def vmm_groups(self) -> tuple[int, ...]:
        """Supplementary groups of a VMM under a root daemon."""
        return () if self.kvm_group is None or not self.accelerator.is_hardware else (self.kvm_group,)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why no qube can run here; empty if they can."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.qemu.path is None:
            yield f"{QEMU_PROGRAM} is not installed (Debian: apt-get install qemu-system-x86)"
        elif not is_visible_inside(PurePosixPath(self.qemu.path)):
            yield f"{self.qemu.path} is outside /usr, the only folder that the sandbox shows"
        elif self.qemu.version < OLDEST_QEMU:
            yield f"QEMU {self.qemu.version_text} is too old, 7.2 or newer is needed"
        if self.bwrap.path is None:
            yield "bubblewrap is not installed (Debian: apt-get install bubblewrap)"
        elif self.bwrap.version < OLDEST_BWRAP:
            yield f"bubblewrap {self.bwrap.version_text} is too old, 0.8 or newer is needed"
        elif self.prlimit.path is None:
            yield "prlimit is not installed (Debian: apt-get install util-linux)"
        elif self.sandbox_problem:
            yield f"the sandbox cannot be made, and without it no qube is started: {self.sandbox_problem}"

    @property
    def consequences(self) -> tuple[str, ...]:
        """What follows for the user, a sentence each."""
        return tuple(self._consequences())

    def _consequences(self) -> Iterator[str]:
        yield from self.problems
        accelerator = self.accelerator
        if accelerator.is_hardware:
            yield f"Qubes run on the CPU itself: {accelerator.reason}."
        else:
            yield f"Qubes run in software emulation, five to ten times slower: {accelerator.reason}."
        if self.iommu_groups:
            yield f"The IOMMU is on ({self.iommu_groups} groups): network and USB controllers can be given to qubes."
        else:
            yield ("There is no IOMMU: hardware cannot be given to qubes safely.")
        if self.daemon_is_root:
            yield "The daemon runs as root: every qube's VMM gets a host user of its own."
        else:
            yield "The daemon runs as you: all VMMs have your user id and are kept apart by their sandboxes."

    def sandbox_facts(self) -> SandboxFacts:
        """:raise ValueError: a tool is missing (see :attr:`problems`)."""
        return _facts(self.bwrap, self.prlimit, self.files_limit, self.root_links, kvm=self.accelerator.is_hardware)


def _facts(
    bwrap: Tool, prlimit: Tool, files_limit: int, root_links: Mapping[str, str | None], *, kvm: bool
) -> SandboxFacts:
    if bwrap.path is None or prlimit.path is None:
        raise ValueError("bubblewrap or prlimit is missing")
    return SandboxFacts(bwrap.path, prlimit.path, files_limit, root_links, kvm=kvm)


def probe() -> HostInfo:
    """Look at this machine. Blocking, bounded by two times :data:`TOOL_LIMIT_S`; raises nothing."""
    is_root = os.geteuid() == 0
    bwrap = _tool(BWRAP_PROGRAM)
    root_links = _root_links()
    model, flags = parse_cpuinfo(_read("/proc/cpuinfo"))
    memory = parse_meminfo(_read("/proc/meminfo"))
    kvm, kvm_group = _kvm(is_root=is_root)
    prlimit = _tool(PRLIMIT_PROGRAM)
    files_limit = min(VMM_FILES_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return HostInfo(
        qemu=_tool(QEMU_PROGRAM),
        bwrap=bwrap,
        prlimit=prlimit,
        files_limit=files_limit,
        sandbox_problem=_try_sandbox(bwrap, prlimit, files_limit, root_links, is_root=is_root),
        kvm=kvm,
        kvm_group=kvm_group,
        cpu_count=os.cpu_count() or 1,
        cpu_model=model,
        cpu_flags=flags,
        memory_total_mib=memory.get("MemTotal", 0) // 1024,
        memory_available_mib=memory.get("MemAvailable", 0) // 1024,
        iommu_groups=_count(Path("/sys/kernel/iommu_groups")),
        daemon_is_root=is_root,
        root_links=root_links,
    )


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first CPU in ``/proc/cpuinfo``; empty where the line is missing."""
    fields = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text.partition("\n\n")[0], re.MULTILINE))
    return fields.get("model name", ""), frozenset(fields.get("flags", "").split())


def parse_meminfo(text: str) -> dict[str, int]:
    """``/proc/meminfo`` as name → KiB; lines of another form are left out."""
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def parse_version(text: str) -> tuple[int, ...]:
    """First dotted number in the text, ``(7, 2, 22)``; empty if there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def _tool(program: str) -> Tool:
    found = shutil.which(program)
    if found is None:
        return Tool(None)
    path = str(Path(found).resolve())
    try:
        done = subprocess.run(
            [path, "--version"], check=False, capture_output=True, encoding="utf-8", timeout=TOOL_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return Tool(path)
    return Tool(path, parse_version(done.stdout))


def _root_links() -> dict[str, str | None]:
    links: dict[str, str | None] = {}
    for name in ROOT_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_dir():
            links[name] = None
    return links


def _kvm(*, is_root: bool) -> tuple[KvmNode, int | None]:
    """Whether a VMM may use ``/dev/kvm``, and the group it needs for that under a root daemon."""
    try:
        node = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return KvmNode(False, f"/dev/kvm cannot be opened: {error.strerror}"), None
    try:
        version = fcntl.ioctl(node, _KVM_GET_API_VERSION)
        status = os.fstat(node)
    except OSError as error:
        return KvmNode(False, f"/dev/kvm does not answer: {error.strerror}"), None
    finally:
        os.close(node)
    if version != _KVM_API_VERSION:
        return KvmNode(False, f"/dev/kvm speaks version {version} of its interface, not {_KVM_API_VERSION}"), None
    # The VMM of a root daemon is nobody special: root's own right to the node does not help it.
    rw_others, rw_group = stat.S_IROTH | stat.S_IWOTH, stat.S_IRGRP | stat.S_IWGRP
    if not is_root or status.st_mode & rw_others == rw_others:
        return KvmNode(True), None
    if status.st_mode & rw_group == rw_group and status.st_gid != 0:
        return KvmNode(True), status.st_gid
    return KvmNode(False, "/dev/kvm is for root alone, and no VMM runs as root"), None


def _try_sandbox(
    bwrap: Tool, prlimit: Tool, files_limit: int, root_links: dict[str, str | None], *, is_root: bool
) -> str:
    """Run ``true`` in the sandbox; why that failed, or nothing."""
    identity = vmm_uid(PROBE_QID) if is_root else None
    try:
        facts = _facts(bwrap, prlimit, files_limit, root_links, kvm=False)
        done = subprocess.run(
            sandbox_argv(facts, ["/usr/bin/true"]),
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TOOL_LIMIT_S,
            user=identity,
            group=identity,
            extra_groups=[] if is_root else None,
        )
    except (ValueError, OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"bwrap ended with status {done.returncode}")
