"""The way out for one machine: ``passt`` at the other end of its interface (decision 013).

passt turns the guest's frames into ordinary sockets of an ordinary program: no interface, route or rule of the host is
touched, no root is needed. The VMM keeps its sandbox without any network; only passt, which sandboxes itself (own
namespaces, empty root, seccomp), has the host's. It ends when the machine does, and outlives the daemon as machines do.

What it may not do is told on its command line: no port of the host leads in (``--tcp-ports none``), and the gateway's
address leads nowhere (``--no-map-gw``; by default it would be the host's loopback, MC-88).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from insula.hal.errors import DriverError
from insula.hal.qemu.process import HostUser, ProcessIdentity, ReapedChild, read_output, sealed_output
from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_DNS, OUTSIDE_GATEWAY, OUTSIDE_NETMASK

PASST = "passt"
NOTE = "outside.pid"
"""In the run-time folder: which process it is, for a later daemon."""
SETTLE_S = 0.2
"""Whoever lives so long has understood its command line and shut itself in, which takes some 10 ms; one that ends later
leaves the machine without network, as a pulled cable would."""
MTU = 1500


def passt_argv(program: str, cable: int, uid: int | None) -> Iterator[str]:
    """
    :param cable: number of a descriptor connected to the machine's interface.
    :param uid: user and group it becomes; None: it stays who it is.
    """
    yield from (program, "--foreground", "--quiet", "--fd", str(cable))
    yield from ("--address", OUTSIDE_ADDRESS, "--netmask", OUTSIDE_NETMASK, "--gateway", OUTSIDE_GATEWAY)
    # Questions to that address go to the first resolver of the host; one given by --dns would take its place.
    yield from ("--dns-forward", OUTSIDE_DNS, "--mtu", str(MTU))
    # IPv4 alone: a net qube passes no other family on unless it is told to, and then it is told by its own uplink.
    yield from ("--ipv4-only", "--no-map-gw", "--no-dhcp-search", "--no-dhcp-dns")
    yield from ("--tcp-ports", "none", "--udp-ports", "none")
    if uid is not None:
        yield from ("--runas", f"{uid}:{uid}")


def is_joined(folder: Path) -> bool:
    """Whether the passt noted in a run-time folder lives."""
    try:
        noted = ProcessIdentity.from_record(json.loads((folder / NOTE).read_bytes()))
    except (OSError, ValueError, AttributeError):
        return False
    return noted is not None and ProcessIdentity.of(noted.pid) == noted


async def join(folder: Path, cable: socket.socket, user: HostUser | None) -> None:
    """Start passt on a connection to a machine's interface; the caller closes its copy of ``cable``.

    :param folder: the machine's run-time folder.
    :param user: who it is to be, where the daemon is root.
    :raise DriverError: passt is missing or ended at once.
    """
    program = shutil.which(PASST)
    if program is None:
        raise DriverError("passt is missing: install the Debian package passt, which leads net qubes to the network")
    # passt sends the rest of a frame that did not fit by waiting; told not to wait, it loses the rest and with it where
    # frames begin, and the VMM hangs up.
    cable.setblocking(True)
    output = sealed_output()
    try:
        process = _popen(tuple(passt_argv(program, cable.fileno(), None if user is None else user.uid)), cable, output)
        child = ReapedChild(process)
        try:
            async with asyncio.timeout(SETTLE_S):
                await child.reaped.wait()
        except TimeoutError:
            pass
        else:
            raise DriverError("passt, the way to the network, ended at once", read_output(output))
    finally:
        os.close(output)
    identity = ProcessIdentity.of(child.pid)
    if identity is not None:
        (folder / NOTE).write_text(json.dumps(identity.record()), encoding="ascii")


def _popen(argv: tuple[str, ...], cable: socket.socket, output: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={},
            pass_fds=(cable.fileno(),),
            # Not the daemon's: what a terminal sends to the daemon's group is not for what outlives it.
            process_group=0,
        )
    except OSError as error:
        raise DriverError("passt cannot be started", str(error)) from error
