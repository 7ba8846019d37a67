"""Which drivers there are. A new one is a folder or module in ``hal``, a line here, and a place in the contract
suite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from insula.hal.driver import Driver
from insula.hal.errors import DriverError
from insula.hal.fake import FakeDriver
from insula.hal.qemu.driver import QemuDriver

DEFAULT_DRIVER = "qemu"


async def _open_fake() -> Driver:
    return FakeDriver()


async def _open_qemu() -> Driver:
    return await QemuDriver.open()


DRIVERS: Mapping[str, Callable[[], Awaitable[Driver]]] = {"fake": _open_fake, "qemu": _open_qemu}


async def open_driver(name: str = DEFAULT_DRIVER) -> Driver:
    """Return the driver called ``name``, ready for use in the running loop.

    :raise DriverError: there is none of that name.
    """
    try:
        opener = DRIVERS[name]
    except KeyError as error:
        raise DriverError(f"no hypervisor driver {name!r}; there are {', '.join(sorted(DRIVERS))}") from error
    return await opener()
