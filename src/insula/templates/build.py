"""Builds a template: ordered steps, each resumable, one atomic result.

Steps and what each needs::

    agent ─────────────┐
    bootstrap ─────────┴─► system ─► kernel ─► image ─► publish

Each step that takes time leaves its result in the work folder under a name that contains a *key*, the hash of its
inputs; a result is given its name only when it is complete, so a later run (after a failure, an interruption, a change
of the agent) does what is missing and nothing else. The template itself appears in the output folder by one rename,
under the key of all inputs together; building what is there already returns at once.

Two builds in the same work folder exclude each other by a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from insula.model.applications import MAX_LIST
from insula.templates import image, initramfs, kernel, namespace
from insula.templates.agent_package import agent_package, boot_package, build_package
from insula.templates.distribution import Distribution, OsInfo, Progress, Workroom, find_distribution
from insula.templates.errors import TemplateError, Unbuildable

SPACE_NEEDED = 3 << 30
"""Bytes a whole build takes in the work folder at its peak: downloads 0.2, archive 0.5, unpacked 0.6, image 0.6 GiB,
and room to spare."""
CMDLINE = (
    # The initramfs knows the root disk; these are for the kernel and systemd.
    "quiet loglevel=3 systemd.show_status=0 systemd.log_level=warning rd.systemd.show_status=0 "
    # The kernel's self-tests of its ciphers take 0.2 s of a boot under emulation and test Debian's build, not this VM.
    "cryptomgr.notests "
    # One console, names as the agent expects them (eth0), a panic ends the machine so that the host notices.
    "console=ttyS0 8250.nr_uarts=1 net.ifnames=0 panic=-1 "
    # The hypervisor is the entropy source and may be trusted as far as the memory it holds.
    "random.trust_cpu=on random.trust_bootloader=on"
)
"""Kernel options of every template. The host appends ``systemd.machine_id=`` and, without KVM, those of
:data:`insula.hal.capabilities.EMULATED_KERNEL_OPTIONS`."""

_STEPS = (("agent", 0.02), ("bootstrap", 0.75), ("system", 0.1), ("kernel", 0.05), ("image", 0.06), ("publish", 0.02))
"""Steps in order with their share of the time."""


@dataclass(frozen=True)
class BuildProgress:
    step: str
    fraction: float
    """Of the whole build, 0…1, never falling."""
    text: str
    """One line for the user."""


@dataclass(frozen=True)
class BuiltTemplate:
    """A published template; the files are never changed afterwards."""

    name: str
    root_image: Path
    """Raw ext4 file system, sparse."""
    kernel: Path
    """Uncompressed ELF, started through its PVH entry (``-kernel``)."""
    initrd: Path
    kernel_version: str
    cmdline: str
    content_key: str
    size: int
    """Bytes of the root volume."""
    os: OsInfo
    agent_version: str
    applications: Path | None = None
    """What it says of its applications (``qubes.GetAppmenus``); None: nothing, for it was built when nobody asked."""

    @property
    def distribution(self) -> str:
        return self.os.distribution

    @property
    def release(self) -> str:
        return self.os.version


async def build(
    name: str, work_dir: Path, out_dir: Path, progress: Callable[[BuildProgress], None] = lambda _event: None
) -> BuiltTemplate:
    """Build the template of a distribution, or return the one that is there already.

    ``work_dir`` and ``out_dir`` are created if absent. Cancelling is safe; the next call continues.

    :raise TemplateError: unknown name. :raise Unbuildable: this machine lacks something (the message says what).
    :raise BuildFailed: a step failed; its last output is in ``tail``.
    """
    return await build_distribution(find_distribution(name), work_dir, out_dir, progress)


async def build_distribution(
    distribution: Distribution,
    work_dir: Path,
    out_dir: Path,
    progress: Callable[[BuildProgress], None] = lambda _event: None,
) -> BuiltTemplate:
    """The same for a distribution that is not among the known ones."""
    out_dir.mkdir(parents=True, exist_ok=True)
    build_ = _Build(distribution, work_dir, out_dir, progress)
    existing = load(out_dir / build_.key)
    if existing is not None:
        return existing
    work_dir.mkdir(parents=True, exist_ok=True)
    with _locked(work_dir):
        return await build_.run()


def load(folder: Path) -> BuiltTemplate | None:
    """Read a published template; None if the folder holds none."""
    try:
        record = json.loads((folder / "template.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return BuiltTemplate(
        name=record["name"],
        root_image=folder / "root.img",
        kernel=folder / "vmlinux",
        initrd=folder / "initrd",
        kernel_version=record["kernel_version"],
        cmdline=record["cmdline"],
        content_key=record["content_key"],
        size=record["size"],
        os=OsInfo(**record["os"]),
        agent_version=record["agent_version"],
        applications=applications if (applications := folder / "applications").is_file() else None,
    )


async def clean(work_dir: Path) -> None:
    """Remove everything a build left in its work folder (downloads too), and the folder."""
    if not work_dir.is_dir():
        return
    with _locked(work_dir):
        room = Workroom(work_dir, namespace.own_id_map())
        namespace.hand_over(work_dir, room.ids)
        await image.remove(room, *(item.name for item in work_dir.iterdir() if item.name != _LOCK))
        shutil.rmtree(work_dir)


_LOCK = "lock"


@contextlib.contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    """Hold the work folder's lock. :raise TemplateError: another build has it."""
    fd = os.open(work_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemplateError(f"another template build is using {work_dir}") from None
        yield
    finally:
        os.close(fd)


def _hash(*parts: str) -> str:
    """Hex key of inputs, 128 bits: enough to tell builds apart, short enough for file names."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _source_of(module_file: str | None) -> str:
    """The source of a module whose code decides a result: a change of it is a change of inputs."""
    assert module_file is not None
    return Path(module_file).read_text(encoding="utf-8")


class _Build:
    def __init__(
        self, distribution: Distribution, work_dir: Path, out_dir: Path, progress: Callable[[BuildProgress], None]
    ) -> None:
        self._distribution = distribution
        self._out_dir = out_dir
        self._work_dir = work_dir
        self._report = progress
        self._fraction = 0.0
        self._agent = agent_package()
        self._boot = boot_package()
        self._bootstrap_key = _hash(
            distribution.name, self._boot.digest(), json.dumps(distribution.bootstrap_inputs(), sort_keys=True)
        )
        self._system_key = _hash(
            self._bootstrap_key, self._agent.digest(), distribution.adapt_script(), _source_of(image.__file__)
        )
        self.key = _hash(
            self._system_key,
            CMDLINE,
            _source_of(kernel.__file__),
            _source_of(initramfs.__file__),
        )

    async def run(self) -> BuiltTemplate:
        self._check_space()
        ids = namespace.own_id_map()
        room = Workroom(self._work_dir, ids)
        for folder in (room.path, room.path / "tmp", room.path / "archives"):
            folder.mkdir(exist_ok=True)
            namespace.hand_over(folder, ids)
        bootstrap, tree, applications, root_image = (
            f"bootstrap-{self._bootstrap_key}.tar",
            f"system-{self._system_key}",
            f"applications-{self._system_key}",
            f"root-{self._system_key}.img",
        )
        # What an interrupted or older build left and this one cannot use.
        usable = {_LOCK, "tmp", "archives", bootstrap, tree, applications, root_image}
        await image.remove(room, "tmp", *(item.name for item in room.path.iterdir() if item.name not in usable))
        (room.path / "tmp").mkdir()
        namespace.hand_over(room.path / "tmp", ids)

        self._step("agent")(0.0, "packing the agent")
        await asyncio.to_thread(self._build_packages, room)
        if not (room.path / bootstrap).exists():
            await self._distribution.bootstrap(room, bootstrap, self._step("bootstrap"))
        if not (room.path / tree).is_dir():
            part = f"{tree}.part"
            await image.make_tree(room, self._distribution, bootstrap, part, applications, self._step("system"))
            (room.path / part).rename(room.path / tree)
        with self._publication() as folder:
            version = await self._take_kernel(room.path / tree, folder)
            if not (room.path / root_image).exists():
                part = f"{root_image}.part"
                await image.make_image(room, tree, part, self._system_key, self._step("image"))
                (room.path / part).rename(room.path / root_image)
            self._step("publish")(0.0, "publishing")
            _copy_list(room.path / applications, folder / "applications")
            await asyncio.to_thread(self._publish, room.path / root_image, folder, version)
        await image.remove(room, tree, applications, root_image)
        self._step("publish")(1.0, "done")
        built = load(self._out_dir / self.key)
        assert built is not None
        return built

    def _check_space(self) -> None:
        for folder in (self._work_dir, self._out_dir):
            free = shutil.disk_usage(folder).free
            if free < SPACE_NEEDED:
                raise Unbuildable(
                    f"building a template takes {SPACE_NEEDED >> 20} MiB in {folder}, there are {free >> 20} MiB"
                )

    def _build_packages(self, room: Workroom) -> None:
        for package, name in ((self._agent, image.AGENT), (self._boot, "insula-boot.deb")):
            build_package(package, room.path).replace(room.path / name)

    async def _take_kernel(self, tree: Path, folder: Path) -> str:
        progress = self._step("kernel")
        progress(0.0, "unpacking the kernel")
        files = await asyncio.to_thread(kernel.find_kernel, tree)
        await asyncio.to_thread(_unpack_kernel, tree / files.image, folder / "vmlinux")
        progress(0.8, "making the initramfs")
        archive = await asyncio.to_thread(initramfs.build_initramfs, tree / "usr/bin/busybox", tree / files.modules)
        (folder / "initrd").write_bytes(archive)
        return files.version

    @contextlib.contextmanager
    def _publication(self) -> Iterator[Path]:
        """A folder that becomes the template if the block succeeds, and is removed if not."""
        part = self._out_dir / f".{self.key}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            part.rename(self._out_dir / self.key)
            _sync(self._out_dir)
        finally:
            if part.is_dir():
                shutil.rmtree(part)

    def _publish(self, root_image: Path, folder: Path, kernel_version: str) -> None:
        target = folder / "root.img"
        try:
            root_image.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Another file system: copied with its holes, by a tool that knows how.
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(root_image), str(target)], check=True)
        if os.geteuid() == 0:
            os.chown(target, 0, 0)
        target.chmod(0o444)
        record = {
            "name": self._distribution.name,
            "kernel_version": kernel_version,
            "cmdline": CMDLINE,
            "content_key": self.key,
            "size": image.SIZE,
            "os": asdict(self._distribution.os),
            "agent_version": self._agent.version,
        }
        (folder / "template.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            _sync(path)

    def _step(self, step: str) -> Progress:
        """Progress function of one step: turns its fraction into that of the whole."""
        names = [name for name, _ in _STEPS]
        before = sum(share for _, share in _STEPS[: names.index(step)])
        share = dict(_STEPS)[step]

        def report(fraction: float, text: str) -> None:
            self._fraction = max(self._fraction, min(before + share * fraction, 1.0))
            self._report(BuildProgress(step, self._fraction, text))

        return report


def _copy_list(untrusted_list: Path, target: Path) -> None:
    """Take what the system says of its applications, if it says anything and no more than is listened to."""
    if untrusted_list.is_file() and untrusted_list.stat().st_size <= MAX_LIST:
        target.write_bytes(untrusted_list.read_bytes())


def _unpack_kernel(packed: Path, target: Path) -> None:
    target.write_bytes(kernel.unpack_bzimage(packed.read_bytes()))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
