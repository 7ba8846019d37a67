"""A template without network is updated through a net qube's proxy, as a whole or not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from insula.rpc.client import run_collect
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import TEMPLATE, build_template, create_app_qube, install

LIMIT_S = 300.0


@pytest.fixture
async def installation() -> AsyncIterator[DaemonProcess]:
    """A template of its own, for it is changed here, and the net qube that the default policy names."""
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        await create_app_qube(daemon.client, "sys-net")
        for prop, value in (("provides_network", "True"), ("netvm", ""), ("uplink", "host")):
            await daemon.client.call("admin.vm.property.Set", "sys-net", arg=prop, payload=value.encode())
        yield daemon


async def insula(daemon: DaemonProcess, *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("insula")), *arguments, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=daemon.environment,
    )  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


async def in_template(daemon: DaemonProcess, command: str) -> str:
    code, stdout, stderr = await run_collect(daemon.paths.rpc_socket(TEMPLATE), command, user="root")
    assert code == 0, stderr.decode()
    return stdout.decode()


async def test_template_is_updated_through_the_net_qube_or_left_as_it_was(installation: DaemonProcess) -> None:
    daemon = installation
    # Whoever begins an update and goes leaves nothing of it (MC-96).
    async with aclosing(daemon.client.stream("insula.update.Open", TEMPLATE)) as stream:
        await anext(stream)
        assert (await in_template(daemon, "ls /sys/class/net")).split() == ["lo"]
        await in_template(daemon, "touch /half-an-update; sync")
    async with asyncio.timeout(LIMIT_S):
        while "insula-updating" in await daemon.client.list_features(TEMPLATE):
            await asyncio.sleep(0.1)
    code, output = await insula(daemon, "update", TEMPLATE)
    assert code == 0, output
    log = (daemon.paths.logs / f"update-{TEMPLATE}.log").read_text()
    assert "nothing to update" in output or "updated in" in output
    assert "Get:" in log or "Hit:" in log
    await daemon.client.start(TEMPLATE)
    assert (await in_template(daemon, "ls / | grep -c half || true")).strip() == "0"
    # The lists are there, so the update was kept.
    assert (await in_template(daemon, "ls /var/lib/apt/lists | grep -c Packages")).strip() != "0"
    # No other place is reached than repositories, and nothing without the proxy.
    code, stdout, _ = await run_collect(
        daemon.paths.rpc_socket(TEMPLATE),
        "python3 -c 'import urllib.request as r; "
        'r.install_opener(r.build_opener(r.ProxyHandler({"http": "http://127.0.0.1:8082"}))); '
        'print(r.urlopen("http://example.org/", timeout=30))\'',
        user="root",
    )
    assert code != 0, stdout


async def test_update_without_a_way_out_fails_and_says_so(installation: DaemonProcess) -> None:
    daemon = installation
    await daemon.client.call("admin.vm.property.Set", "sys-net", arg="uplink", payload=b"none")
    code, output = await insula(daemon, "update", TEMPLATE)
    assert code != 0
    assert "is as before" in output
    assert "update-debian-12.log" in output
