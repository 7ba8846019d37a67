"""A call from qube to qube: A asks, policy allows, B (which runs) answers at once with exit code 0.

The qubes are scripts in processes of their own that speak the agent's side of the channel; the sessions, the broker and
its policy (the default one, in front of the rule for this call) are the product's. So what is measured is *the control
side*: the CPU time that the process of the broker and the session processes use for one call, call by call, with
calls one after the other; 200 calls at once; and the latency of calls of C to D alone and while A floods.

With ``--guests`` the same from a real guest to a real guest: the whole call, how long the control side took to answer
(as the log of calls has it), and its CPU time for one call on average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from insula.daemon.calls import default_policy
from insula.policy.store import PolicyStore
from insula.testing.call_world import call_world
from insula.testing.daemon import DaemonProcess
from insula.testing.guest import build_template, create_app_qube, install, run, sh
from insula.testing.scripted_guest import Answer, ScriptedGuest, Served
from report import Case, percentile, publish
from run_latency import descendants

CALLS = 400
WARM_UP = 30
AT_ONCE = 200
LATENCY_CALLS = 300
GUEST_CALLS = 40
BAR_P50_S = 0.003
BAR_P99_S = 0.010
BAR_NEIGHBOUR = 1.2
RULES = "test.True * a b allow\ntest.True * c d allow\n"
NAMES = ("a", "b", "c", "d")


def cpu_seconds(pids: list[int]) -> float:
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def in_child(work: Callable[[int], Coroutine[Any, Any, None]]) -> tuple[int, int]:
    """Run it in a process of its own; returns that, and a descriptor to tell it to begin and to end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        asyncio.run(work(theirs.detach()))
        os._exit(0)
    theirs.close()
    return pid, ours.detach()


async def until_closed(control: int) -> None:
    """Say that all is ready, wait for the other side."""
    os.write(control, b"r")
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(control, ended.set)
    await ended.wait()
    loop.remove_reader(control)


def control_side(channels: dict[str, socket.socket]) -> Callable[[int], Coroutine[Any, Any, None]]:
    async def serve(control: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="insula-b-"))
        try:
            async with call_world(folder) as world:
                shutil.copytree(default_policy(), world.policy_folder, dirs_exist_ok=True)
                world.rules(RULES)
                for name, channel in channels.items():
                    await world.attach(name, channel)
                await until_closed(control)
        finally:
            shutil.rmtree(folder)

    return serve


def flooder(channel: socket.socket, victim: socket.socket) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Qubes A and B. A asks for what is allowed and what is not, as fast as it can, once told to."""

    async def flood(control: int) -> None:
        guest, served = ScriptedGuest(channel), ScriptedGuest(victim)
        served.services["test.True"] = true
        await guest.ready.wait()
        await served.ready.wait()
        os.write(control, b"r")
        await asyncio.to_thread(os.read, control, 1)

        async def ask(service: str) -> None:
            while True:
                await guest.call(service, "b")

        async def ask_blindly() -> None:
            while True:
                await (await guest.ask("test.None", "b"))

        tasks = [asyncio.create_task(ask("test.True")) for _ in range(32)]
        tasks += [asyncio.create_task(ask_blindly()) for _ in range(64)]
        await asyncio.to_thread(os.read, control, 1)
        os._exit(0)

    return flood


async def true(call: Served) -> Answer:
    return Answer(0)


async def call(guest: ScriptedGuest, target: str) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    result = await guest.call("test.True", target)
    assert result is not None
    assert result.code == 0
    return time.perf_counter() - begin


async def drive(guests: dict[str, socket.socket], control_pid: int, flood: int) -> list[Case]:
    c, d = ScriptedGuest(guests["c"]), ScriptedGuest(guests["d"])
    for guest in (c, d):
        await guest.ready.wait()
        guest.services["test.True"] = true
    processes = [control_pid, *descendants(control_pid)]
    for _ in range(WARM_UP):
        await call(c, "d")
    costs, alone = [], []
    for _ in range(CALLS):
        before = cpu_seconds(processes)
        alone.append(await call(c, "d"))
        costs.append(cpu_seconds(processes) - before)
    begin = time.perf_counter()
    await asyncio.gather(*(call(c, "d") for _ in range(AT_ONCE)))
    at_once = time.perf_counter() - begin
    quiet = [await call(c, "d") for _ in range(LATENCY_CALLS)]
    os.write(flood, b"g")
    await asyncio.sleep(2)
    flooded = [await call(c, "d") for _ in range(LATENCY_CALLS)]
    os.write(flood, b"e")
    for guest in (c, d):
        await guest.close()
    p50, p99 = statistics.median(costs), percentile(costs, 99)
    whole = statistics.median(alone)
    what = "the whole call, scripts in place of guests"
    neighbour, before_flood = statistics.median(flooded), statistics.median(quiet)
    return [
        Case("rpc_latency: CPU of the control side, p50", p50, "s", whole, what,
             f"≤ {BAR_P50_S * 1000:g} ms", p50 <= BAR_P50_S, CALLS),
        Case("rpc_latency: CPU of the control side, p99", p99, "s", whole, what,
             f"≤ {BAR_P99_S * 1000:g} ms", p99 <= BAR_P99_S, CALLS),
        Case(f"rpc_latency: {AT_ONCE} calls at once, all succeed", at_once, "s", AT_ONCE * whole,
             "as many one after the other", "all succeed", True, 1),
        Case("rpc_latency: another qube's call while one floods", neighbour, "s", before_flood, "without the flood",
             f"≤ {BAR_NEIGHBOUR} ×", neighbour <= BAR_NEIGHBOUR * before_flood, LATENCY_CALLS),
    ]  # fmt: skip


def scripted() -> list[Case]:
    pairs = {name: socket.socketpair() for name in NAMES}
    control_pid, control = in_child(control_side({name: pair[0] for name, pair in pairs.items()}))
    for pair in pairs.values():
        pair[0].close()
    flood_pid, flood = in_child(flooder(pairs["a"][1], pairs["b"][1]))
    for name in "ab":
        pairs[name][1].close()
    guests = {name: pairs[name][1] for name in "cd"}
    try:
        return asyncio.run(drive(guests, control_pid, flood))
    finally:
        for descriptor in (control, flood):
            os.close(descriptor)
        for pid in (control_pid, flood_pid):
            os.waitpid(pid, 0)


async def guests() -> list[Case]:
    built = await build_template()
    async with DaemonProcess() as daemon:
        await install(daemon.client, built)
        for name in ("a", "b"):
            await create_app_qube(daemon.client, name)
            await daemon.client.start(name)
        PolicyStore(daemon.paths.policy).replace("20-bench", RULES.encode(), "new")
        folder = "/usr/local/etc/qubes-rpc"
        await sh(daemon, "b", f"mkdir -p {folder} && ln -s /bin/true {folder}/test.True", user="root")
        assert daemon.process is not None
        loop = (
            "import subprocess, time\n"
            f"for n in range({GUEST_CALLS}):\n"
            " t = time.perf_counter()\n"
            " subprocess.run(['qrexec-client-vm', 'b', 'test.True'], stdin=subprocess.DEVNULL, check=True)\n"
            " print(time.perf_counter() - t)\n"
        )
        await run(daemon, "a", "qrexec-client-vm b test.True < /dev/null")
        processes = [daemon.process.pid, *descendants(daemon.process.pid)]
        processes = [pid for pid in processes if is_control_side(pid)]
        before = cpu_seconds(processes)
        printed = await sh(daemon, "a", f'python3 -c "{loop}"')
        cpu = (cpu_seconds(processes) - before) / GUEST_CALLS
        records = [json.loads(line) for line in daemon.paths.calls_log.read_text().splitlines()]
    whole = statistics.median(map(float, printed.split()))
    answers = [record["answered_after_s"] for record in records if record["service"] == "test.True"][1:]
    late = percentile(answers, 99)
    what = "the whole call, guest to guest"
    return [
        Case("rpc_latency: guest to guest, /bin/true", whole, "s", None, "", "reported", None, GUEST_CALLS),
        Case("rpc_latency: guest to guest, CPU of the control side, mean", cpu, "s", whole, what,
             f"≤ {BAR_P50_S * 1000:g} ms", cpu <= BAR_P50_S, GUEST_CALLS),
        Case("rpc_latency: guest to guest, until the broker has answered, p99", late, "s", whole, what,
             f"≤ {BAR_P99_S * 1000:g} ms", late <= BAR_P99_S, GUEST_CALLS),
    ]  # fmt: skip


def is_control_side(pid: int) -> bool:
    """The daemon and its sessions; not the machines."""
    return b"qemu" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="as every benchmark prints it; the default")
    parser.add_argument("--guests", action="store_true", help="with real guests too")
    cases = scripted()
    if parser.parse_args().guests:
        cases += asyncio.run(guests())
    publish("rpc_latency", cases)


if __name__ == "__main__":
    main()
