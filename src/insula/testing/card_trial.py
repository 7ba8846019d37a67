"""Run inside :mod:`insula.testing.emulated_pc`: a machine is given the PC's network card and fetches a page with it.

Prints one JSON object: what the card was before and after, and what the machine's guest and the PC then saw.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from insula.hal import pci
from insula.hal.errors import DriverError
from insula.hal.hostinfo import probe
from insula.hal.qemu.driver import QemuDriver
from insula.model.pci import PciAddress
from insula.testing import hypervisors, tiny_guest
from insula.testing.emulated_pc import CARD, CARD_MODULES
from insula.testing.hypervisors import QemuWorld, run_in_guest
from insula.testing.tiny_guest import GENERIC_KERNEL, Behaviour

NESTED_LIMIT_S = 900.0
"""An emulated machine in an emulated PC on a busy machine."""
_UDHCPC = "/tmp/bound"
_SCRIPT = f"""mkdir -p /tmp
printf '#!/bin/busybox sh\\n[ "$1" = bound ] && ifconfig $interface $ip netmask $subnet\\n:\\n' > {_UDHCPC}
chmod +x {_UDHCPC}
ifconfig eth0 up
udhcpc -i eth0 -n -q -t 20 -s {_UDHCPC} >/dev/null 2>&1
"""


async def trial(url: str) -> dict[str, object]:
    """:raise DriverError: the card is not given."""
    address = PciAddress.parse(CARD)
    before = pci.look_up(address)
    assert before is not None
    hypervisors.GUEST_LIMIT_S = NESTED_LIMIT_S
    guest = tiny_guest.build(kernel_package=GENERIC_KERNEL, more_modules=CARD_MODULES)
    with TemporaryDirectory() as folder:
        # (A VMM's user looks at nothing in there: all its files are open descriptors.)
        world = QemuWorld(Path(folder), probe(), guest)
        driver = world.driver()
        assert isinstance(driver, QemuDriver)
        machine = await driver.define(replace(world.spec("net", Behaviour.SHELL), devices=(address,)))
        try:
            await machine.start_paused()
            after = pci.look_up(address)
            assert after is not None
            owner = after.node.stat()
            await machine.resume()
            await world.act(machine)
            pid = machine.record()["pid"]
            return {
                "capabilities": sorted(driver.capabilities),
                "before": before.driver,
                "after": after.driver,
                "node": [owner.st_uid, owner.st_mode & 0o777],
                "vmm": Path(f"/proc/{pid}/status").read_text(encoding="ascii"),
                "devices": sorted(path.name for path in Path(f"/proc/{pid}/root/sys/bus/pci/devices").iterdir()),
                "vfio": sorted(path.name for path in Path(f"/proc/{pid}/root/dev/vfio").iterdir()),
                "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
                "address": (await run_in_guest(machine, f"{_SCRIPT}ifconfig eth0")).decode(),
                "page": (await run_in_guest(machine, f"wget -q -O - {url}")).decode(),
            }
        finally:
            await machine.kill()
            await driver.close()


def main() -> int:
    try:
        found = asyncio.run(trial(sys.argv[1]))
    except DriverError as error:
        found = {"refused": str(error), "detail": error.detail}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
