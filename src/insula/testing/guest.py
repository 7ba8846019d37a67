"""Real guests for tests and benchmarks: the template, built once and cached by content, and commands in qubes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from insula.admin.client import AdminClient
from insula.cli.commands.template import as_image
from insula.lifecycle.standby import FEATURE
from insula.rpc.client import run_collect
from insula.templates.build import BuildProgress, BuiltTemplate, build
from insula.testing.daemon import DaemonProcess

TEMPLATE = "debian-12"
WAITING_TIMEOUT_S = 120.0
"""For machines to be made and to rehearse, on a busy machine."""
WAITING_POLL_S = 0.1
RUN_TIMEOUT_S = 180.0
"""For one command; software emulation on a busy machine is slow. What ends is not waited for longer than it takes."""


def cache_folder() -> Path:
    """Where built templates stay between runs (``INSULA_TEST_CACHE``, else below the user's cache)."""
    home_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("INSULA_TEST_CACHE") or Path(home_cache) / "insula-tests")


async def build_template() -> BuiltTemplate:
    """The template, from the cache if nothing it is made of has changed."""
    last = ""

    def show(progress: BuildProgress) -> None:
        nonlocal last
        if progress.step != last:
            last = progress.step
            print(f"template {TEMPLATE}: {progress.step}", file=sys.stderr, flush=True)

    folder = cache_folder()
    return await build(TEMPLATE, folder / "work", folder / "out", show)


async def install(client: AdminClient, built: BuiltTemplate) -> None:
    """Make the template known to a daemon."""
    payload = json.dumps(as_image(built)).encode()
    await client.call("insula.template.Install", arg=TEMPLATE, payload=payload)


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode().strip()


async def run(
    daemon: DaemonProcess,
    qube: str,
    command: str,
    *,
    user: str = "user",
    stdin: bytes = b"",
    timeout_s: float = RUN_TIMEOUT_S,
) -> Result:
    """Run a shell command in a running qube."""
    async with asyncio.timeout(timeout_s):
        code, out, err = await run_collect(
            daemon.paths.rpc_socket(qube), command, user=user, stdin=stdin, timeout=timeout_s
        )
    return Result(code, out, err)


async def sh(daemon: DaemonProcess, qube: str, command: str, *, user: str = "user") -> str:
    """Run a shell command that must succeed; its output without the last newline."""
    result = await run(daemon, qube, command, user=user)
    assert result.code == 0, f"{command!r} in {qube} ended with {result.code}: {result.err!r}"
    return result.text


async def create_app_qube(client: AdminClient, name: str, label: str = "red") -> None:
    await client.create_qube("AppVM", name, label, template=TEMPLATE)


async def settle(client: AdminClient) -> None:
    """Have nothing made in the background: the template's seed is there, and none of its machines waits."""
    await client.build_seed(TEMPLATE)
    await hold_in_waiting(client, 0)


async def hold_in_waiting(client: AdminClient, count: int, seed: str = "") -> None:
    """Have ``count`` machines of a seed wait to become qubes, of any if it has no name; returns when they do."""
    await client.set_feature("dom0", FEATURE, str(count))
    async with asyncio.timeout(WAITING_TIMEOUT_S):
        while count != sum([s["waiting"]["machines"] for s in await client.seeds() if seed in ("", s["name"])]):
            await asyncio.sleep(WAITING_POLL_S)


if __name__ == "__main__":
    print(f"template ready: {asyncio.run(build_template()).content_key}", file=sys.stderr)
