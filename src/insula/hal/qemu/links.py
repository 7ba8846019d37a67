"""Links of a machine: its own interface, and those for its clients, plugged and pulled out while it runs.

A client's interface waits at a listening socket (``nic.sock``) from its start, so a client keeps its interface whatever
becomes of its net qube. What the daemon does is lay the *cable*: it connects to the client's socket and hands the
connection to the provider's VMM, where a new interface is plugged on it. From then on the two VMMs exchange frames (a
length of 4 bytes, then the frame) and the daemon has no part in it.

QEMU 7.2 leaves a connection that it accepted blocking. Frames that nobody takes would then hold its whole process,
monitor and all, for as long as a provider pleases (MC-117). The daemon makes the open socket non-blocking, which it
shares with QEMU for a moment (pidfd_getfd(2)); QEMU then keeps what does not fit, and takes no more of the guest's.

A machine that leads outside has a process at the other end of its interface (:mod:`insula.hal.qemu.outside`). It is
watched here: when it is lost another one is started, and the guest's interface stays what it was.

The daemon keeps a copy of the far end, for a cable that is no longer used is cut before it ends
(:mod:`insula.hal.qemu.cable`).

Pulling: first the network end goes (from that moment nothing passes), then the guest is asked to let go of the device.
A guest that does not keeps its port occupied, and nothing else.

Sources: QEMU 7.2 ``qapi/net.json``, ``net/stream.c``, ``net/socket.c``. The two kinds of network end have the same
framing. The provider's is of the older kind: only that one takes a connection by the name of a descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable

from insula.hal.driver import MachineSpec, link_mac
from insula.hal.errors import DriverError, HalError, MachineGone
from insula.hal.qemu import outside
from insula.hal.qemu.cable import Cable
from insula.hal.qemu.command import (
    LINK_PORT_BUS,
    NIC_BUS,
    NIC_DEVICE,
    NIC_NETDEV,
    interface,
    is_station,
)
from insula.hal.qemu.descriptors import NIC_SOCKET, connect
from insula.hal.qemu.monitor import Monitor
from insula.hal.qemu.outside import WayOut
from insula.hal.qemu.process import HostUser, VmmProcess

CABLE_LIMIT_S = 10.0
"""For QEMU to notice that the last cable is gone, on a busy host."""
CABLE_POLL_S = 0.002
TURNS = 2
"""Questions to QEMU until what was ready before has had its turn: it answers from the loop that writes frames."""
UNPLUG_LIMIT_S = 10.0
"""For a guest to let go of a device that was unplugged; half a second under emulation, on a busy host several."""
UNPLUG_POLL_S = 0.05
OUTSIDE_DELAY_S = 0.25
"""Until a lost way out is replaced; twice as long each time it does not last."""
OUTSIDE_MAX_DELAY_S = 16.0
OUTSIDE_STABLE_S = 60.0
"""A way out that lasted so long starts the delays anew."""

_NETDEV = "link-net{}"
_DEVICE = "link{}"
_IS_DEVICE = re.compile(r"link([0-9]{1,4})")
_DESCRIPTOR = "cable{}"


class MachineLinks:
    """Of one machine that runs. All methods raise MachineGone once it has ended."""

    def __init__(
        self, spec: MachineSpec, monitor: Monitor, user: HostUser | None, process: Callable[[], VmmProcess]
    ) -> None:
        """
        :param user: of the machine's processes, where the daemon is root.
        :param process: its VMM.
        """
        self._spec = spec
        self._process = process
        self._monitor = monitor
        self._user = user
        self._plugging = asyncio.Lock()
        self._is_nic_going = False
        """Whether its guest was asked to let go of its interface, and may not have yet."""
        self._cable: Cable | None = None
        """What its interface was linked with last; None: nothing, or an earlier daemon did it."""
        self._served: dict[int, Cable] = {}
        """Those of its clients, by number of the link."""
        self._leading: asyncio.Task[None] | None = None
        self._log = logging.getLogger(f"{__name__}.{spec.name}")

    async def close(self) -> None:
        """Stop watching; nothing is parted. Idempotent."""
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
        if self._cable is not None:
            self._cable.close()

    def ended(self) -> None:
        """Its VMM is gone."""
        for cable in self._served.values():
            cable.cut()
        self._served.clear()

    # its clients

    async def numbers(self) -> frozenset[int]:
        """Links that are plugged, or whose interface the guest still holds. :raise DriverError:"""
        names = (_IS_DEVICE.fullmatch(name) for name in await self._monitor.plugged_devices())
        return frozenset(int(name[1]) for name in names if name is not None)

    async def plug(self, number: int, client: MachineLinks) -> None:
        """See :meth:`insula.hal.driver.Driver.link`."""
        name = self._spec.name
        if not 0 <= number < self._spec.links:
            raise DriverError(f"machine {name!r} has no link {number}")
        async with self._plugging:
            if number in await self.numbers():
                raise DriverError(f"link {number} of {name!r} is in use, or its guest still holds it")
            cable = await client.open_cable()
            try:
                await self._plug(number, cable)
            except BaseException:
                cable.cut()
                raise
            self._served[number] = cable

    async def _plug(self, number: int, cable: Cable) -> None:
        netdev, descriptor = _NETDEV.format(number), _DESCRIPTOR.format(number)
        await self._monitor.give(descriptor, cable.fileno())
        await self._monitor.execute("netdev_add", {"type": "socket", "id": netdev, "fd": descriptor})
        try:
            device = interface(_DEVICE.format(number), netdev, LINK_PORT_BUS.format(number), link_mac(number))
            await self._monitor.execute("device_add", device)
        except DriverError:
            await self._monitor.execute("netdev_del", {"id": netdev})
            raise

    async def unplug(self, number: int) -> None:
        """See :meth:`insula.hal.driver.Driver.unlink`."""
        async with self._plugging:
            if number not in await self.numbers():
                return
            try:
                await self._monitor.execute("netdev_del", {"id": _NETDEV.format(number)})
            except DriverError as error:
                # It was cut before, and the guest still holds the interface.
                if "not found" not in error.detail:
                    raise
            if number in self._served:
                self._served.pop(number).cut()
            await self._ask_to_let_go(_DEVICE.format(number))

    # its own

    async def open_cable(self) -> Cable:
        """Connect to its interface. Whoever lets go of what is returned cuts it.

        :raise DriverError: it has none, or it is linked.
        """
        name = self._spec.name
        if self._is_nic_going or not await self.has_nic():
            raise DriverError(f"machine {name!r} has no network interface")
        await self._end_cut_cable()
        deadline = asyncio.get_running_loop().time() + CABLE_LIMIT_S
        while True:
            try:
                cable = Cable(connect(self._spec.runtime_dir / NIC_SOCKET, is_named=True))
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise DriverError(f"the interface of machine {name!r} is linked already") from None
            except OSError as error:
                raise DriverError(f"the interface of machine {name!r} refused", str(error)) from error
            await asyncio.sleep(CABLE_POLL_S)
        try:
            await self._unblock_other_end(cable)
        except BaseException:
            cable.close()
            raise
        self._cable = cable
        return cable

    async def _end_cut_cable(self) -> None:
        """End the one before, once QEMU has heard that nothing is taken any more."""
        if self._cable is None or not self._cable.is_cut:
            return
        for _ in range(TURNS):
            await self._monitor.plugged_devices()
        self._cable.close()
        self._cable = None

    async def _unblock_other_end(self, cable: Cable) -> None:
        name, process = self._spec.name, self._process()
        deadline = asyncio.get_running_loop().time() + CABLE_LIMIT_S
        while True:
            try:
                other_end = process.socket_to(cable.name)
            except OSError as error:
                raise DriverError(f"the interface of machine {name!r} would block its VMM", str(error)) from error
            if other_end is not None:
                with other_end:
                    os.set_blocking(other_end.fileno(), False)
                return
            if asyncio.get_running_loop().time() > deadline:
                raise DriverError(f"the interface of machine {name!r} takes no connection")
            await asyncio.sleep(CABLE_POLL_S)

    async def has_nic(self) -> bool:
        """Whether its guest has an interface, or holds one that was taken away. :raise DriverError:"""
        return NIC_DEVICE in await self._monitor.plugged_devices()

    async def plug_nic(self, mac: str) -> None:
        """See :meth:`insula.hal.driver.Driver.plug_nic`."""
        if not is_station(mac):
            raise DriverError(f"{mac!a} is no interface's address")
        async with self._plugging:
            if await self.has_nic() and not self._is_nic_going:
                return
            await self._wait_for_nic_to_go()
            await self._monitor.execute("device_add", interface(NIC_DEVICE, NIC_NETDEV, NIC_BUS, mac))

    async def _wait_for_nic_to_go(self) -> None:
        deadline = asyncio.get_running_loop().time() + UNPLUG_LIMIT_S
        while await self.has_nic():
            if asyncio.get_running_loop().time() > deadline:
                raise DriverError(f"the guest of {self._spec.name!r} holds the interface that was taken away from it")
            await asyncio.sleep(UNPLUG_POLL_S)
        self._is_nic_going = False

    async def unplug_nic(self) -> None:
        """See :meth:`insula.hal.driver.Driver.unplug_nic`."""
        async with self._plugging:
            if await self.has_nic():
                self._is_nic_going = True
                await self._ask_to_let_go(NIC_DEVICE)

    async def join_outside(self) -> None:
        """See :meth:`insula.hal.driver.Driver.link_outside`."""
        async with self._plugging:
            if self._leading is None or self._leading.done():
                way = WayOut.find(self._spec.runtime_dir) or await self._lead_outside()
                self._leading = asyncio.create_task(self._keep_leading(way), name=f"way out of {self._spec.name}")

    async def _lead_outside(self) -> WayOut:
        cable = await self.open_cable()
        try:
            return await outside.join(self._spec.runtime_dir, cable.fileno(), self._user)
        except BaseException:
            cable.cut()
            raise

    async def _keep_leading(self, way: WayOut | None) -> None:
        """Replace a way out that is lost, as long as the machine lives."""
        loop = asyncio.get_running_loop()
        delay_s = OUTSIDE_DELAY_S
        while True:
            if way is not None:
                since = loop.time()
                try:
                    why = await way.lost()
                    await way.end()
                finally:
                    way.close()
                if self._cable is not None:
                    self._cable.cut()
                if loop.time() - since > OUTSIDE_STABLE_S:
                    delay_s = OUTSIDE_DELAY_S
                self._log.warning("its way to the network is lost (%s)", why)
                way = None
            # A machine that ends takes its way out along, and is seen to be gone only a moment later.
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, OUTSIDE_MAX_DELAY_S)
            try:
                way = await self._lead_outside()
            except MachineGone:
                return
            except HalError as error:
                self._log.error("it has no way to the network: %s; tried again in %g s", error, delay_s)
            else:
                self._log.info("it has a way to the network again")

    async def _ask_to_let_go(self, device: str) -> None:
        try:
            await self._monitor.execute("device_del", {"id": device})
        except DriverError as error:
            # The guest was asked before, and has not answered yet.
            if "already in the process of unplug" not in error.detail:
                raise
