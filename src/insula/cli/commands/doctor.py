"""``insula doctor``: what this machine offers and what follows from it. Works without the daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_running_daemon
from insula.cli.failures import DEFAULT_TEMPLATE, REFUSED
from insula.cli.options import Json
from insula.cli.table import Cell, Column
from insula.cli.text import KIB, size_text
from insula.daemon.paths import Paths
from insula.daemon.prompt_program import session_environment
from insula.hal.hostinfo import HostInfo, probe
from insula.lifecycle.standby import FEATURE
from insula.manager import display
from insula.net import slirp
from insula.policy.store import PolicyStore
from insula.preload import trial
from insula.rpc.ask import CannotAsk
from insula.rpc.sockets import address
from insula.rpc.spawn import session_uid
from insula.sound import server
from insula.templates.errors import Unbuildable
from insula.templates.namespace import own_id_map

MIB = KIB * KIB
GIB = KIB * MIB
LITTLE_MEMORY = 2 * GIB
"""Four small qubes and the host's own needs."""
LITTLE_DISK = 10 * GIB
TOO_LITTLE_DISK = 3 * GIB
"""A template build needs about this while it works."""
PROBE_TIMEOUT_S = 2.0

PACKAGES = {
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "newuidmap": "uidmap",
}
"""Tools besides QEMU and bubblewrap → the Debian package they are in."""
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Searched besides PATH, on which an ordinary user does not have them (mkfs.ext4 is there)."""

app = typer.Typer(add_completion=False)


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    found: str
    follows: str
    """What that means for the user, a sentence."""


@dataclass(frozen=True)
class DaemonView:
    """What a running daemon says."""

    version: str
    driver: str
    templates: tuple[str, ...]
    waiting: int = 0
    """Machines in waiting."""
    waiting_kib: int = 0


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers and what follows from it; exit code 1 if something needed is missing."""
    paths = Paths.from_environment()
    findings = [
        *host_findings(probe()),
        session_finding(asyncio.run(trial.problem(session_uid(0)))),
        *disk_findings(paths.data, free_space(paths.data)),
        *tool_findings({name: find_tool(name) for name in PACKAGES}, is_root=os.geteuid() == 0),
        library_finding(),
        *id_findings(),
        policy_finding(paths),
        *daemon_findings(with_running_daemon(look_at_daemon), paths),
        sound_finding(server.describe()),
        prompt_finding(None if is_answered(paths.policy_agent_socket) else why_no_question()),
    ]
    show(findings, as_json=as_json)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(REFUSED)


def host_findings(host: HostInfo) -> Iterator[Finding]:
    accelerator = host.accelerator
    if accelerator.is_hardware:
        yield Finding("virtualization", Verdict.OK, "KVM", f"Qubes run on the CPU itself: {accelerator.reason}.")
    else:
        slow = f"Qubes run in software emulation, five to ten times slower: {accelerator.reason}."
        yield Finding("virtualization", Verdict.WARN, "software emulation", slow)
    if host.iommu_groups:
        follows = "Network and USB controllers can be given to qubes."
        yield Finding("IOMMU", Verdict.OK, f"{host.iommu_groups} groups", follows)
    else:
        follows = "Hardware cannot be given to qubes safely."
        yield Finding("IOMMU", Verdict.WARN, "none", follows)
    yield Finding("CPU", Verdict.OK, f"{host.cpu_count} × {host.cpu_model or 'unknown'}", "Qubes share these.")
    yield memory_finding(host)
    yield from program_findings(host)


def memory_finding(host: HostInfo) -> Finding:
    available = host.memory_available_mib * MIB
    found = f"{size_text(available)} of {size_text(host.memory_total_mib * MIB)} free"
    if available < LITTLE_MEMORY:
        return Finding("memory", Verdict.WARN, found, "Few qubes fit; a start without room for it is refused.")
    return Finding("memory", Verdict.OK, found, "Qubes are started as long as their memory fits in here.")


def program_findings(host: HostInfo) -> Iterator[Finding]:
    """QEMU, bubblewrap and the sandbox, without which no qube is started."""
    if not host.problems:
        found = f"QEMU {host.qemu.version_text}, bubblewrap {host.bwrap.version_text}"
        yield Finding("sandbox", Verdict.OK, found, "Every qube's machine is shut in a sandbox that works here.")
    for problem in host.problems:
        yield Finding("sandbox", Verdict.FAIL, "unusable", f"No qube can be started: {problem}.")
    user = "root" if host.daemon_is_root else "you"
    follows = (
        "Every qube's machine gets a host user of its own."
        if host.daemon_is_root
        else "All machines have your user id and are kept apart by their sandboxes."
    )
    yield Finding("user", Verdict.OK, user, follows)


def session_finding(problem: str) -> Finding:
    """Processes that talk to qubes make their sandbox themselves; not everywhere may they do what bubblewrap may."""
    if problem:
        return Finding("session sandbox", Verdict.FAIL, "unusable", f"No qube can be started: {problem}")
    return Finding(
        "session sandbox", Verdict.OK, "works", "What a qube says is read by a process that can reach nothing."
    )


def disk_findings(folder: Path, free: int) -> Iterator[Finding]:
    found = f"{size_text(free)} free in {folder}"
    if free < TOO_LITTLE_DISK:
        yield Finding("disk", Verdict.FAIL, found, f"A template needs {size_text(TOO_LITTLE_DISK)} to be built.")
    elif free < LITTLE_DISK:
        yield Finding("disk", Verdict.WARN, found, "Enough for a template and few qubes; watch it.")
    else:
        yield Finding("disk", Verdict.OK, found, "Templates and qubes have room; each qube takes what it wrote.")


def tool_findings(tools: dict[str, str | None], *, is_root: bool) -> Iterator[Finding]:
    purpose = {"qemu-img": "No volume can be made", "newuidmap": "No template can be built as an ordinary user"}
    for name, path in tools.items():
        if path is not None:
            yield Finding(name, Verdict.OK, path, "")
        elif name == "newuidmap" and is_root:
            yield Finding(name, Verdict.OK, "not installed", "Not needed as root.")
        else:
            follows = f"{purpose.get(name, 'No template can be built')}: apt-get install {PACKAGES[name]}."
            yield Finding(name, Verdict.FAIL, "not installed", follows)


def library_finding() -> Finding:
    try:
        slirp.load()
    except OSError as error:
        follows = f"No net qube reaches this computer's network: apt-get install {slirp.PACKAGE}."
        return Finding("libslirp", Verdict.FAIL, str(error), follows)
    return Finding("libslirp", Verdict.OK, slirp.LIBRARY, "Net qubes can be led to this computer's network.")


def id_findings() -> Iterator[Finding]:
    try:
        own_id_map()
    except Unbuildable as error:
        yield Finding("user ids", Verdict.FAIL, "none to hand on", f"{str(error)[:1].upper()}{str(error)[1:]}.")
    else:
        yield Finding("user ids", Verdict.OK, "can be mapped", "Templates are built without rights on this machine.")


def policy_finding(paths: Paths) -> Finding:
    """A policy with a problem denies every call, which must not be found out by calls that do not work."""
    if not paths.policy.exists() and not paths.database.exists():
        return Finding("policy", Verdict.OK, "not there yet", "insulad makes it, with rules that ask or deny.")
    policy = PolicyStore(paths.policy).load()
    if policy.problems:
        found = f"{len(policy.problems)} problems, the first: {policy.problems[0]}"
        return Finding("policy", Verdict.FAIL, found, "EVERY call between qubes is denied: insula policy check.")
    return Finding("policy", Verdict.OK, f"{len(policy.rules)} rules", f"Who may call whom: {paths.policy}.")


def daemon_findings(daemon: DaemonView | None, paths: Paths) -> Iterator[Finding]:
    if daemon is None:
        yield Finding("insulad", Verdict.OK, "not running", "It starts by itself when a command needs it.")
        yield Finding("templates", Verdict.OK, "not asked", "insulad knows them; it does not run now.")
        return
    yield Finding(
        "insulad", Verdict.OK, f"{daemon.version}, driver {daemon.driver}", f"Its log: {paths.logs / 'insulad.log'}."
    )
    if daemon.templates:
        yield Finding("templates", Verdict.OK, ", ".join(daemon.templates), "Qubes can be made from them.")
    else:
        follows = f"No app qube can be made yet: insula template build {DEFAULT_TEMPLATE}."
        yield Finding("templates", Verdict.WARN, "none", follows)
    yield waiting_finding(daemon)


def waiting_finding(daemon: DaemonView) -> Finding:
    """What is spent on quick starts, and how to spend nothing on them."""
    if not daemon.waiting:
        follows = f"The next start forks or boots; dom0's feature {FEATURE} says how many should wait."
        return Finding("machines in waiting", Verdict.OK, "none", follows)
    found = f"{daemon.waiting} with {size_text(daemon.waiting_kib * KIB)}"
    follows = f"The next start takes one. To have none: insula features dom0 {FEATURE} 0."
    return Finding("machines in waiting", Verdict.OK, found, follows)


def prompt_finding(problem: str | None) -> Finding:
    """``problem``: why no question can be asked from here."""
    if problem is None:
        return Finding("questions", Verdict.OK, "asked", "A call with a rule that says ask waits for your answer.")
    follows = f"Calls with a rule that says ask are denied unless insulad finds a desktop: {problem}."
    return Finding("questions", Verdict.WARN, "nobody asks", follows)


def sound_finding(place: str | None) -> Finding:
    """``place``: where a sound server listens."""
    if place is None:
        return Finding("sound", Verdict.WARN, "no sound server", "Nothing is heard of qubes on this desktop.")
    return Finding("sound", Verdict.OK, place, "What qubes play is heard, each under its name in the mixer.")


def why_no_question() -> str | None:
    """Why nobody would ask for a daemon in this environment; None: it starts who does."""
    try:
        display.check(session_environment(os.environ, {}, os.geteuid()))
    except (CannotAsk, display.NoDisplay) as error:
        return str(error)
    return None


def is_answered(path: Path) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            with address(path) as where:
                probe.connect(where)
        except OSError:
            return False
        return True


async def look_at_daemon(client: AdminClient) -> DaemonView:
    status = await client.status()
    templates = tuple(row.name for row in await client.list_qubes() if row.klass == "TemplateVM")
    waiting = [seed["waiting"] for seed in await client.seeds()]
    return DaemonView(
        str(status.get("version", "?")),
        str(status.get("driver", "?")),
        templates,
        sum(entry["machines"] for entry in waiting),
        sum(entry["memory_kib"] for entry in waiting),
    )


def find_tool(name: str) -> str | None:
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    return shutil.which(name, path=search)


def free_space(folder: Path) -> int:
    """Bytes an ordinary user may still write where the folder is or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "ok": all(finding.verdict is not Verdict.FAIL for finding in findings),
                "findings": [asdict(finding) for finding in findings],
            }
        )
        return
    output.print_table(
        [Column("CHECK"), Column(""), Column("FOUND"), Column("WHAT FOLLOWS")],
        [
            [
                Cell(finding.check, "bold"),
                Cell(finding.verdict, STYLES[finding.verdict]),
                finding.found,
                finding.follows,
            ]
            for finding in findings
        ],
    )
