"""The provider's end of links: interfaces that are plugged into a running machine and pulled out again.

A client's interface waits at a listening socket (``nic.sock``) from its start, so a client keeps its interface whatever
becomes of its net qube. What the daemon does is lay the *cable*: it connects to the client's socket and hands the
connection to the provider's VMM, where a new interface is plugged on it. From then on the two VMMs exchange frames (a
length of 4 bytes, then the frame) and the daemon has no part in it.

Pulling: first the network end goes (from that moment nothing passes), then the guest is asked to let go of the device.
A guest that does not keeps its port occupied, and nothing else.

Sources: QEMU 7.2 ``qapi/net.json``, ``net/stream.c``, ``net/socket.c``. The two kinds of network end have the same
framing. The provider's is of the older kind: only that one takes a connection by the name of a descriptor.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from insula.hal.driver import link_mac
from insula.hal.errors import DriverError
from insula.hal.qemu.command import LINK_PORT_BUS, NIC_BUS, NIC_DEVICE, NIC_NETDEV, interface, nic_netdev
from insula.hal.qemu.monitor import Monitor

_NETDEV = "link-net{}"
_DEVICE = "link{}"
_IS_DEVICE = re.compile(r"link([0-9]{1,4})")
_DESCRIPTOR = "cable{}"


async def links_of(monitor: Monitor) -> frozenset[int]:
    """Numbers of the links whose interface the guest has. :raise DriverError: MachineGone:"""
    names = (_IS_DEVICE.fullmatch(name) for name in await monitor.plugged_devices())
    return frozenset(int(name[1]) for name in names if name is not None)


async def plug_link(monitor: Monitor, number: int, cable: socket.socket) -> None:
    """Plug interface ``number``, which is free, on a connection to the client's; the caller closes its copy of it.

    :raise DriverError: QEMU refused; nothing was plugged.
    """
    netdev, name = _NETDEV.format(number), _DESCRIPTOR.format(number)
    await monitor.give(name, cable.fileno())
    await monitor.execute("netdev_add", {"type": "socket", "id": netdev, "fd": name})
    await _plug(monitor, interface(_DEVICE.format(number), netdev, LINK_PORT_BUS.format(number), link_mac(number)))


async def _plug(monitor: Monitor, device: Mapping[str, object]) -> None:
    try:
        await monitor.execute("device_add", device)
    except DriverError:
        await monitor.execute("netdev_del", {"id": device["netdev"]})
        raise


async def unplug_link(monitor: Monitor, number: int) -> None:
    """Cut link ``number`` and ask the guest to let go of its interface. Idempotent. :raise DriverError: MachineGone:"""
    await _unplug(monitor, _DEVICE.format(number), _NETDEV.format(number))


async def plug_nic(monitor: Monitor, listener: socket.socket, mac: str) -> None:
    """Give a running machine its own interface, waiting at ``listener``. :raise DriverError: it has one."""
    await monitor.give(NIC_NETDEV, listener.fileno())
    await monitor.execute("netdev_add", nic_netdev(NIC_NETDEV))
    await _plug(monitor, interface(NIC_DEVICE, NIC_NETDEV, NIC_BUS, mac))


async def unplug_nic(monitor: Monitor) -> None:
    """Cut off a machine's own interface and ask the guest to let go of it. Idempotent. :raise DriverError:"""
    await _unplug(monitor, NIC_DEVICE, NIC_NETDEV)


async def _unplug(monitor: Monitor, device: str, netdev: str) -> None:
    if device not in await monitor.plugged_devices():
        return
    try:
        await monitor.execute("netdev_del", {"id": netdev})
    except DriverError as error:
        if "not found" not in error.detail:
            raise
    try:
        await monitor.execute("device_del", {"id": device})
    except DriverError as error:
        # The guest was asked before, and has not answered yet.
        if "already in the process of unplug" not in error.detail:
            raise
