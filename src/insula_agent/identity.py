"""Gives this machine the identity the host decided: who it is, what it keeps, which services it runs.

Called once at boot, before anything of the user's runs, with all keys of agent-services §11. What to do is decided by
``plan_*`` functions from the keys alone; :func:`apply` does it. A value from the host that would not be valid where it
goes is refused (the host is trusted, its mistakes are not hidden).
"""

from __future__ import annotations

import os

from insula_agent import persistence
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RUN = "/run/qubes"
RUN_SERVICES = "/run/qubes-service"
PROTECTED_FOLDERS = ("/etc/qubes/protected-files.d", "/rw/config/protected-files.d")
"""Files named in ``*.conf`` of these folders are the user's; identity leaves them alone (agent-services §11)."""

_COMMON = ("qubes-update-check", "meminfo-writer", "software-rendering")
DEFAULT_SERVICES = {
    "AppVM": (*_COMMON, "tracker", "evolution-data-server"),
    "TemplateVM": (*_COMMON, "tracker", "evolution-data-server", "updates-proxy-setup"),
    "NetVM": (*_COMMON, "network-manager", "qubes-network", "qubes-updates-proxy", "qubes-firewall"),
    "ProxyVM": (*_COMMON, "qubes-network", "qubes-firewall"),
}
"""Services that are on without a word from the host, by ``/qubes-vm-type`` (agent-services §11)."""

PERSISTENCE = ("full", "rw-only", "none")
MAX_HOSTNAME = 63  # HOST_NAME_MAX is 64 with the final NUL
SEED_MAX = 3072
"""Bytes of a key's value."""

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_SERVICE_LETTERS = _NAME_LETTERS | frozenset("+")
_ZONE_LETTERS = _NAME_LETTERS | frozenset("+")

_RNDADDENTROPY = 0x40085203  # <linux/random.h>: _IOW('R', 0x03, int[2])


class IdentityError(Exception):
    """A key has a value that cannot be meant, or is missing."""


class Identity:
    """What the keys say, checked."""

    __slots__ = ("hostname", "persistence", "run_files", "services", "timezone", "user", "vm_type")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """:raise IdentityError:"""
        self.hostname = _word(keys, "/name", _NAME_LETTERS)
        if not self.hostname or len(self.hostname) > MAX_HOSTNAME or self.hostname[0] in "-_.":
            raise IdentityError(f"not a host name: {self.hostname!r}")
        self.vm_type = _word(keys, "/qubes-vm-type", _NAME_LETTERS)
        if self.vm_type not in DEFAULT_SERVICES:
            raise IdentityError(f"unknown type of qube: {self.vm_type!r}")
        self.persistence = _word(keys, "/qubes-vm-persistence", _NAME_LETTERS)
        if self.persistence not in PERSISTENCE:
            raise IdentityError(f"unknown persistence: {self.persistence!r}")
        self.user = _word(keys, "/default-user", _NAME_LETTERS) or "user"
        self.timezone = plan_timezone(keys.get("/qubes-timezone", b""))
        self.services = plan_services(self.vm_type, keys)
        self.run_files = (f"this-is-{self.vm_type.lower()}", f"persistent-{self.persistence}")


def _word(keys: Mapping[str, bytes], name: str, letters: frozenset[str]) -> str:
    """A value made of these letters; empty if absent. :raise IdentityError:"""
    value = keys.get(name, b"").decode("ascii", "replace")
    if not letters.issuperset(value):
        raise IdentityError(f"{name} is not made of letters it may have: {value!r}")
    return value


def plan_timezone(value: bytes) -> str | None:
    """A zone name such as ``Europe/Rome``; None if there is none or it is no relative path of plain names."""
    zone = value.decode("ascii", "replace")
    parts = zone.split("/")
    if not zone or len(zone) > 64 or not all(part.strip(".") and _ZONE_LETTERS.issuperset(part) for part in parts):
        return None
    return zone


def plan_services(vm_type: str, keys: Mapping[str, bytes]) -> frozenset[str]:
    """Names of the services that are on: the type's defaults, changed by ``/qubes-service/NAME``.

    A name that is no file name, and a value other than 0 and 1, is left out.
    """
    services = set(DEFAULT_SERVICES[vm_type])
    prefix = "/qubes-service/"
    for key, value in keys.items():
        name = key[len(prefix) :]
        if not key.startswith(prefix) or not name or not _SERVICE_LETTERS.issuperset(name) or name[0] == ".":
            continue
        if value == b"1":
            services.add(name)
        elif value == b"0":
            services.discard(name)
    return frozenset(services)


def plan_hosts(text: str, hostname: str) -> str:
    """/etc/hosts in which 127.0.1.1 (Debian's address for the own name) is this host and nothing else changed."""
    lines = [line for line in text.splitlines() if line.split()[:1] != ["127.0.1.1"]]
    if not any(line.split()[:1] == ["127.0.0.1"] for line in lines):
        lines.insert(0, "127.0.0.1\tlocalhost")
    lines.append(f"127.0.1.1\t{hostname}")
    return "\n".join(lines) + "\n"


def plan_machine_id(cmdline: str) -> str | None:
    """The 32 hex digits of ``systemd.machine_id=`` on the kernel command line; None without."""
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name == "systemd.machine_id":
            digits = value.replace("-", "").lower()
            if len(digits) == 32 and frozenset("0123456789abcdef").issuperset(digits) and digits.strip("0"):
                return digits
    return None


def parse_protected(text: str) -> set[str]:
    """Paths in a protected-files fragment: one a line, ``#`` begins a comment line."""
    return {line.strip() for line in text.splitlines() if line.strip().startswith("/")}


# --- acting --------------------------------------------------------------------------------------------------------


def apply(keys: Mapping[str, bytes]) -> None:
    """Make it so. :raise IdentityError, PersistenceError, OSError: this machine must not run anything of the user."""
    identity = Identity(keys)
    _mix_seed(keys.get("/qubes-random-seed", b""))
    _set_hostname(identity.hostname)
    _make_empty_files(RUN, identity.run_files)
    _make_empty_files(RUN_SERVICES, sorted(identity.services))
    # First what the user keeps: it may say which files are protected.
    persistence.apply(identity.persistence, identity.user)
    protected = _read_protected()
    _write_unless(protected, "/etc/hostname", identity.hostname + "\n")
    _write_unless(protected, "/etc/hosts", plan_hosts(_read("/etc/hosts"), identity.hostname))
    machine_id = plan_machine_id(_read("/proc/cmdline"))
    if machine_id is not None:
        _write_unless(protected, "/etc/machine-id", machine_id + "\n")
    if identity.timezone is not None:
        _set_timezone(protected, identity.timezone)
    log(f"identity {identity.hostname}, {identity.vm_type}, persistence {identity.persistence}")


def _mix_seed(encoded: bytes) -> None:
    """Mix the host's seed into the kernel's pool and let it count: it is fresh and nobody else has it."""
    if not encoded or len(encoded) > SEED_MAX:
        return
    import binascii  # noqa: PLC0415 - imports of a boot are counted
    import fcntl  # noqa: PLC0415
    import struct  # noqa: PLC0415

    try:
        seed = binascii.a2b_base64(encoded)
    except binascii.Error as error:
        raise IdentityError("the random seed is not base64") from error
    # struct rand_pool_info: entropy in bits, size in bytes, then the bytes.
    info = struct.pack(f"ii{len(seed)}s", 8 * len(seed), len(seed), seed)
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, info)
    finally:
        os.close(fd)


def _set_hostname(name: str) -> None:
    import _socket  # noqa: PLC0415 - the public module costs an import of enum and selectors

    _socket.sethostname(name)


def _make_empty_files(folder: str, names: Iterable[str]) -> None:
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for name in names:
        os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _read(path: str) -> str:
    """A text file; empty if absent."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _read_protected() -> set[str]:
    found: set[str] = set()
    for folder in PROTECTED_FOLDERS:
        for path in persistence.fragments(folder):
            found |= parse_protected(_read(path))
    return found


def _write_unless(protected: set[str], path: str, text: str) -> None:
    """Write a file in place, if that changes it: the file may itself be bound from /rw and cannot be replaced."""
    if path in protected or _read(path) == text:
        return
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _set_timezone(protected: set[str], zone: str) -> None:
    """Point /etc/localtime to the zone; a zone this system does not know is left alone."""
    link, target = "/etc/localtime", f"/usr/share/zoneinfo/{zone}"
    if link in protected or not os.path.isfile(target):
        return
    if os.path.islink(link) and os.readlink(link) == target:
        return
    temporary = link + ".insula"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    _write_unless(protected, "/etc/timezone", zone + "\n")
