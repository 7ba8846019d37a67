"""Gives this machine the identity the host decided: who it is, what it keeps, which services it runs.

Called once at boot, or once in a fork, before anything of the user's runs, with all keys of agent-services §11. What to
do is decided by ``plan_*`` functions from the keys alone; three others act, so that a first command waits for nothing
it does not need: :func:`apply` does what must be first and what can fail for a reason of the user's; :func:`finish`,
which the host need not wait for, whatever a command could see; :func:`complete` the rest, before other programs start.
A value from the host that would not be valid where it goes is refused (the host is trusted, its mistakes are not
hidden).
"""

from __future__ import annotations

import os

from insula_agent import files, persistence, rc_local, renewal, seed
from insula_agent.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RUN = "/run/qubes"
APPLIED = "/run/insula/identity"
"""Exists once this machine is somebody; an agent that was restarted sets no clock again."""
BOOT_SCRIPTS = "/run/insula/boot-scripts"
"""Exists if the user has boot scripts that do something (condition of insula-rc-local.service)."""
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

_SAMPLE = {
    "/name": b"sample",
    "/qubes-vm-type": b"AppVM",
    "/qubes-vm-persistence": b"rw-only",
    "/qubes-timezone": b"Etc/UTC",
    "/qubes-random-seed": b"AAAA",
    "/insula-clock": b"1800000000000000000",
    "/insula-machine-id": b"0123456789abcdef" * 2,
}

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_SERVICE_LETTERS = _NAME_LETTERS | frozenset("+")
_ZONE_LETTERS = _NAME_LETTERS | frozenset("+")


class IdentityError(Exception):
    """A key has a value that cannot be meant, or is missing."""


class Identity:
    """What the keys say, checked."""

    __slots__ = (
        "clock",
        "entropy",
        "hostname",
        "machine_id",
        "persistence",
        "run_files",
        "services",
        "timezone",
        "user",
        "vm_type",
    )

    def __init__(self, keys: Mapping[str, bytes], cmdline: str = "") -> None:
        """:raise IdentityError, RenewalError:"""
        self.entropy = renewal.plan_entropy(keys.get(renewal.SEED_KEY, b""))
        self.clock = renewal.plan_clock(keys.get(renewal.CLOCK_KEY, b""))
        self.machine_id = renewal.plan_machine_id(keys, cmdline)
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


def parse_protected(text: str) -> set[str]:
    """Paths in a protected-files fragment: one a line, ``#`` begins a comment line."""
    return {line.strip() for line in text.splitlines() if line.strip().startswith("/")}


# --- acting --------------------------------------------------------------------------------------------------------


def apply(keys: Mapping[str, bytes]) -> Identity:
    """Become who the keys say.

    :raise IdentityError, RenewalError, PersistenceError, LayoutError, ProgramFailed, OSError: this machine must not run
        anything of the user.
    """
    identity = Identity(keys, files.read("/proc/cmdline"))
    if identity.entropy is not None:
        # First: nothing that is drawn at random from here on may come from what forks share.
        renewal.mix_entropy(identity.entropy)
    if identity.clock is not None and not os.path.exists(APPLIED):
        renewal.set_clock(identity.clock)
    _set_hostname(identity.hostname)
    persistence.apply(identity.persistence, identity.user)
    return identity


def finish(identity: Identity) -> None:
    """What must be in place before the first command. :raise OSError:"""
    os.makedirs(seed.RUN, mode=0o755, exist_ok=True)
    if seed.is_gated():
        renewal.renew_boot_id()
    _make_empty_files(RUN, identity.run_files)
    _make_empty_files(RUN_SERVICES, sorted(identity.services))
    protected = _read_protected()
    _write_unless(protected, "/etc/hostname", identity.hostname + "\n")
    _write_unless(protected, "/etc/hosts", plan_hosts(files.read("/etc/hosts"), identity.hostname))
    if identity.machine_id is not None:
        _write_unless(protected, "/etc/machine-id", identity.machine_id + "\n")
    if identity.timezone is not None:
        _set_timezone(protected, identity.timezone)
    files.touch(APPLIED)


def complete(identity: Identity) -> None:
    """What must be in place before the system goes on booting. :raise OSError:"""
    persistence.start_swap()
    if rc_local.is_needed():
        files.touch(BOOT_SCRIPTS)
    log(f"identity {identity.hostname}, {identity.vm_type}, persistence {identity.persistence}")


def rehearse() -> None:
    """In a seed: do what comes to nothing, so that no fork has to load a library or map a page for it."""
    Identity(_SAMPLE)
    renewal.mix_entropy(renewal.NO_ENTROPY)
    _set_hostname(os.uname().nodename)
    _read_protected()
    plan_hosts(files.read("/etc/hosts"), "localhost")
    for name in (persistence.PRIVATE, persistence.VOLATILE):
        persistence.find_disk(name)


def _set_hostname(name: str) -> None:
    import _socket  # noqa: PLC0415 - the public module costs an import of enum and selectors

    _socket.sethostname(name)


def _make_empty_files(folder: str, names: Iterable[str]) -> None:
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for name in names:
        files.touch(f"{folder}/{name}")


def _read_protected() -> set[str]:
    found: set[str] = set()
    for folder in PROTECTED_FOLDERS:
        for path in persistence.fragments(folder):
            found |= parse_protected(files.read(path))
    return found


def _write_unless(protected: set[str], path: str, text: str) -> None:
    """Write a file in place, if that changes it: the file may itself be bound from /rw and cannot be replaced."""
    if path in protected or files.read(path) == text:
        return
    files.change(path, text)


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
