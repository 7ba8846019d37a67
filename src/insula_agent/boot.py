"""What systemd starts: finds the byte channel's device and becomes the agent.

Run by path with ``python3 -I -S``, before udev: the name ``/dev/virtio-ports/insula.rpc`` does not exist yet, the
kernel's own ``/dev/vportNpM`` does, and sysfs says which is which.
"""

from __future__ import annotations

import os
import sys

CHANNEL = "insula.rpc"
PORTS = "/sys/class/virtio-ports"


def find_device(name: str, ports: str = PORTS) -> str:
    """Device of the virtio port with this name. :raise FileNotFoundError: there is none."""
    for port in sorted(os.listdir(ports)):
        with open(f"{ports}/{port}/name", encoding="ascii", errors="replace") as file:
            if file.read().strip() == name:
                return f"/dev/{port}"
    raise FileNotFoundError(f"no virtio port named {name}")


if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from insula_agent.main import main

    sys.exit(main(["--device", find_device(CHANNEL), *sys.argv[1:]]))
