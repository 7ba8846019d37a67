"""A network card of a machine's own, in a whole PC with an IOMMU, which is emulated: the host has it no more.

The guest is a tiny one: a machine in a machine is slow. What a Debian net qube does with its card (DHCP, name servers)
has unit tests, and docs/decisions/022 says how it was tried as a whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from insula.hal.capabilities import Capability
from insula.hal.qemu.sandbox import VMM_UID_BASE
from insula.testing.emulated_pc import CARD, GATEWAY, run

pytestmark = pytest.mark.qemu

LIMIT_S = 900.0
"""40 to 60 s on an idle machine."""
PAGE = "a page of the world outside\n"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "page").write_text(PAGE)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{GATEWAY}:{server.server_address[1]}/page"
        server.shutdown()


def try_in_pc(url: str, *, with_iommu: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "insula.testing.card_trial", url]
    code, printed = run(command, limit_s=LIMIT_S, with_iommu=with_iommu)
    assert code == 0, printed
    found = json.loads(printed.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_machine_has_the_card_for_itself_and_the_host_has_none(url: str) -> None:
    found = try_in_pc(url, with_iommu=True)
    assert "refused" not in found, found
    assert Capability.PCI_PASSTHROUGH in found["capabilities"]
    assert (found["before"], found["after"]) == ("e1000e", "vfio-pci")
    assert found["interfaces"] == ["lo"]
    # Its own network, which nothing else in this PC is joined to.
    assert "inet addr:10.0.2." in found["address"]
    assert found["page"] == PAGE
    # The monitor is nobody special, and sees of all devices that one.
    uid, mode = found["node"]
    assert uid > VMM_UID_BASE
    assert mode == 0o600
    status = dict(line.split(":\t", 1) for line in found["vmm"].splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == {str(uid)}
    assert int(status["CapEff"], 16) == 0
    assert found["devices"] == [CARD]
    assert len(found["vfio"]) == 2


def test_without_iommu_the_card_stays_with_the_host(url: str) -> None:
    """MC-91: nothing is given away that could read all memory."""
    found = try_in_pc(url, with_iommu=False)
    assert "no IOMMU guards it" in found["refused"]
