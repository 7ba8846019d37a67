"""Debian stable: bootstrapped by mmdebstrap, trimmed for a virtual machine that nobody sits at.

What is installed is the list :data:`PACKAGES`; what is left out of packages is :data:`LEFT_OUT` (dpkg's own
path-exclude, kept in the template so that updates stay trimmed too; nothing is diverted or deleted behind dpkg's
back). What does not start is :data:`MASKED_UNITS`, and none of systemd's generators runs: they look for file
systems, terminals and init scripts that a template does not have, and take a second under software emulation.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from insula.templates import namespace
from insula.templates.apt_sources import KEYRING, machine_mirrors, machine_proxies
from insula.templates.distribution import APPLICATIONS, Distribution, OsInfo, Progress, Workroom
from insula.templates.errors import Unbuildable

PACKAGES = (
    # the system
    "systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "kmod", "util-linux-extra", "procps",
    # disks: e2fsprogs makes, checks and grows the private volume; busybox-static is the initramfs
    "e2fsprogs", "busybox-static",
    # the agent and what updates run
    "python3", "ca-certificates", "zstd",
    # network: addresses and routes are set by the agent; nftables is the firewall of net qubes
    "iproute2", "nftables",
    # the time of the network, in the qube that the others take it from (insula-clocksync.service)
    "systemd-timesyncd",
    # roles of net qubes: their programs run only where the role is (docs/decisions/023)
    "wireguard-tools", "openvpn", "tor",
    # services: documents and images become pixels (docs/decisions/012); keys of GnuPG and SSH stay in a vault
    "poppler-utils", "python3-pil", "gpg", "gpg-agent", "openssh-client",
    # windows: the X server of a qube, what its agent speaks X with; a terminal, a file manager, a browser, fonts
    "xvfb", "python3-xcffib", "xterm", "xfe", "dillo", "fonts-dejavu-core",
    # sound: its server, started by the first program that plays (docs/decisions/030)
    "pulseaudio", "pulseaudio-utils",
    # people
    "sudo", "less", "nano",
)  # fmt: skip
"""Beyond mmdebstrap's minbase. Other parts of the project extend it through :class:`DebianRelease`.``packages``."""

_MODULES = "/lib/modules/*/kernel"
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    # Kernel modules for what a virtual machine never has: built-in graphics, tuners, laptops' sound chips, sensors,
    # host adapters of servers, cluster file systems. Kept: everything that may be passed through (network, wireless,
    # USB, HD audio, NVMe), usbip, virtio, nftables, wireguard, overlay, device mapper, common file systems.
    *(
        f"{_MODULES}/{path}/*"
        for path in (
            "drivers/accessibility", "drivers/atm", "drivers/comedi", "drivers/edac", "drivers/firewire",
            "drivers/gpu/drm/amd", "drivers/gpu/drm/gma500", "drivers/gpu/drm/i915", "drivers/gpu/drm/nouveau",
            "drivers/gpu/drm/radeon", "drivers/gpu/drm/vmwgfx", "drivers/hwmon", "drivers/iio", "drivers/infiniband",
            "drivers/isdn", "drivers/media/dvb-frontends", "drivers/media/i2c", "drivers/media/pci",
            "drivers/media/radio", "drivers/media/rc", "drivers/media/test-drivers", "drivers/media/tuners",
            "drivers/mtd", "drivers/pcmcia", "drivers/platform", "drivers/scsi/*", "drivers/staging", "drivers/target",
            "drivers/ufs", "drivers/w1", "drivers/watchdog", "fs/afs", "fs/ceph", "fs/dlm", "fs/gfs2", "fs/jffs2",
            "fs/nilfs2", "fs/ocfs2", "fs/orangefs", "fs/ubifs", "net/atm", "net/batman-adv", "net/can", "net/ceph",
            "net/rds", "net/smc", "net/tipc", "sound/firewire", "sound/soc",
        )
    ),
)  # fmt: skip

MASKED_UNITS = (
    # boards and disks a qube does not have
    "systemd-pstore.service", "systemd-repart.service", "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
    "cryptsetup.target", "integritysetup.target", "veritysetup.target", "modprobe@drm.service",
    # the first-boot questions, users and machine-id are settled by the build and by the agent
    "systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-sysusers.service",
    # the host gives entropy (virtio-rng, vmgenid, a seed through the agent): a saved seed would be the template's
    "systemd-random-seed.service",
    # nobody logs in on a terminal; the debug console has its own unit
    "getty.target", "systemd-ask-password-console.path", "systemd-ask-password-wall.path",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-initctl.socket",
    # file systems nobody asked for; programs that need one mount it
    "dev-hugepages.mount", "proc-sys-fs-binfmt_misc.automount", "systemd-binfmt.service",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount",
    # the journal stays in memory (see journald.conf.d of the agent)
    "systemd-journal-flush.service", "systemd-journald-audit.socket",
    # roles of net qubes have units of their own
    "tor.service", "tor@default.service", "openvpn.service",
    # maintenance: root file systems are thrown away or updated under the host's control
    "apt-daily.timer", "apt-daily-upgrade.timer", "apt-daily.service", "apt-daily-upgrade.service",
    "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
)  # fmt: skip

BOOT_PACKAGE = "insula-boot.deb"
"""Name of that package in the room."""

DEFAULT_USER = "user"
DEFAULT_USER_ID = 1000

SHELL_START = (
    # Who is root can be asked without a program.
    ("/etc/profile", 's|"$(id -u)" -eq 0|-O /|'),
    # Nobody writes to a terminal that is none.
    ("/root/.profile", "s/^mesg n/[ ! -t 0 ] || mesg n/"),
)
"""Edits by sed of what every login shell reads, and so every command of the host: each program it starts takes 20 to
60 ms of the command's time under software emulation. dpkg never writes these files again."""

_ADAPT = """\
# $1: folder of the unpacked system, $2: our agent as a Debian package
root=$1
units=$root/etc/systemd/system

# Packages configured from here on must not start anything.
printf '#!/bin/sh\\nexit 101\\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cp "$2" "$root/tmp/agent.deb"
mkdir -p "$root/proc" "$root/dev"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
chroot "$root" useradd --create-home --uid {uid} --shell /bin/bash --comment "" {user}
chroot "$root" dpkg --install /tmp/agent.deb
# What programs with windows would each find out about fonts for themselves, a second under software emulation. It holds
# as long as folders have the times they have now, of which an image keeps whole seconds.
find "$root/usr/share/fonts" -type d | while read -r folder; do
    touch --date="@$(stat --format=%Y "$folder")" "$folder"
done
chroot "$root" sh /etc/qubes/post-install.d/20-insula-fonts.sh
# For the host's menus, which hear of it otherwise when packages change.
chroot "$root" /etc/qubes-rpc/qubes.GetAppmenus > "$root/{applications}"
umount "$root/proc"
umount --lazy "$root/dev"
rm "$root/tmp/agent.deb" "$root/usr/sbin/policy-rc.d"

mkdir -p "$units" "$root/etc/systemd/system-generators"
for unit in {units}; do
    ln -sfn /dev/null "$units/$unit"
done
for generator in "$root"/usr/lib/systemd/system-generators/*; do
    ln -sfn /dev/null "$root/etc/systemd/system-generators/${{generator##*/}}"
done
ln -sfn /usr/lib/systemd/system/multi-user.target "$units/default.target"
# The clock is the host's; insula-clocksync.service starts it where it is the network's.
rm -f "$units/sysinit.target.wants/systemd-timesyncd.service"

# What must be each qube's own, and not the template's.
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
echo localhost > "$root/etc/hostname"
: > "$root/etc/fstab"
rm -f "$root/etc/resolv.conf"
: > "$root/etc/resolv.conf"

{shell_start}

# As of the first boot /usr/local and /home come from the private volume; this is what they start from.
rm -rf "$root/usr/local.orig"
cp -a "$root/usr/local" "$root/usr/local.orig"
mkdir -p "$root/rw"

# Rebuilt on demand; nothing of it belongs into an image.
find "$root/var/log" "$root/var/cache/apt" "$root/var/lib/apt/lists" -type f -delete
find "$root/boot" -name 'initrd*' -delete
"""


@dataclass(frozen=True)
class DebianRelease:
    """One release of Debian."""

    version: str
    codename: str
    eol: str
    packages: tuple[str, ...] = PACKAGES
    kernel_package: str = "linux-image-amd64"
    """The generic flavour: the cloud one lacks usbip and sound."""

    @property
    def name(self) -> str:
        return f"debian-{self.version}"

    @property
    def os(self) -> OsInfo:
        return OsInfo("debian", "", self.version, self.eol)

    def bootstrap_inputs(self) -> Mapping[str, str]:
        return {"codename": self.codename, "options": "\n".join(self._options())}

    async def bootstrap(self, room: Workroom, target: str, progress: Progress) -> None:
        if shutil.which("mmdebstrap") is None:
            raise Unbuildable("mmdebstrap is missing; install the package mmdebstrap")
        if not KEYRING.is_file():
            raise Unbuildable(f"{KEYRING} is missing; install the package debian-archive-keyring")
        part = f"{target}.part"
        watcher = _PackageCounter(progress)
        proxies = [word for option in machine_proxies() for word in ("--aptopt", option)]
        await namespace.run(
            [
                "mmdebstrap",
                "--verbose",
                *self._options(),
                *proxies,
                self.codename,
                str(namespace.INSIDE / part),
                *self._sources(),
            ],
            work_dir=room.path,
            ids=room.ids,
            on_line=watcher.line,
        )
        (room.path / part).rename(room.path / target)

    def _options(self) -> list[str]:
        archives = namespace.INSIDE / "archives"
        return [
            # "unshare" for an id 0 only unshares mounts: the user namespace is ours already.
            "--mode=unshare", "--variant=minbase", "--format=tar", "--architectures=amd64",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            '--aptopt=Acquire::Languages "none"',
            # Downloads are kept outside, so that a build that was interrupted does not start over.
            "--skip=download/empty", "--skip=essential/unlink",
            f'--setup-hook=mkdir -p {archives}/partial "$1/var/cache/apt/archives"',
            f'--setup-hook=mount --bind {archives} "$1/var/cache/apt/archives"',
            '--customize-hook=umount "$1/var/cache/apt/archives"',
            # linux-image wants some initramfs generator; ours runs on the host (initramfs.py), so a package that
            # says so takes the place of initramfs-tools.
            f'--essential-hook=cp {namespace.INSIDE}/{BOOT_PACKAGE} "$1/tmp/"',
            f'--essential-hook=chroot "$1" dpkg --install /tmp/{BOOT_PACKAGE}',
            f'--essential-hook=rm "$1/tmp/{BOOT_PACKAGE}"',
            f"--include={','.join((*self.packages, self.kernel_package))}",
        ]  # fmt: skip

    def _sources(self) -> list[str]:
        mirrors = machine_mirrors()
        signed = f"[signed-by={KEYRING}]"
        return [
            f"deb {signed} {mirrors.archive} {self.codename} main",
            f"deb {signed} {mirrors.archive} {self.codename}-updates main",
            f"deb {signed} {mirrors.security} {self.codename}-security main",
        ]

    def adapt_script(self) -> str:
        edits = [f'sed -i {shlex.quote(edit)} "$root{path}"' for path, edit in SHELL_START]
        return _ADAPT.format(
            applications=APPLICATIONS,
            units=" ".join(MASKED_UNITS),
            user=DEFAULT_USER,
            uid=DEFAULT_USER_ID,
            shell_start="\n".join(edits),
        )


class _PackageCounter:
    """Turns mmdebstrap's and apt's output into progress: there are about ``EXPECTED`` lines that count."""

    EXPECTED = 700
    """Get, Unpacking and Setting up, about 235 packages of each."""
    COUNTED = ("Get:", "Unpacking ", "Setting up ")

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def line(self, line: str) -> None:
        if line.startswith(self.COUNTED):
            self._count += 1
            self._progress(min(self._count / self.EXPECTED, 0.95), line[:100])
        elif line.startswith("I: "):
            self._progress(min(self._count / self.EXPECTED, 0.99), line[3:100])


DISTRIBUTIONS: tuple[Distribution, ...] = (DebianRelease("12", "bookworm", "2028-06-30"),)
