"""The daemon: opens the rooms in order, serves the Admin API, closes them in reverse.

It has no networking code and never reads a byte a guest wrote except through the typed messages of the session
processes. SIGTERM and SIGINT end the daemon and leave the machines running (the next daemon adopts them);
``insula.Shutdown`` stops the machines first.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import resource
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

from insula import __version__
from insula.admin import api, updates
from insula.admin.application_lists import ApplicationLists
from insula.admin.call import Context
from insula.admin.dispatch import Dispatcher
from insula.admin.server import AdminServer, LocalIdentity
from insula.admin.uploads import Uploads
from insula.daemon.calls import open_calls
from insula.daemon.control import Control, Templates, host_runtime
from insula.daemon.paths import Paths
from insula.daemon.windows import Windows
from insula.events.bus import EventBus
from insula.gui.launcher import GuiLauncher
from insula.hal.registry import open_driver
from insula.lifecycle.host import Host
from insula.lifecycle.kernels import Kernels
from insula.lifecycle.manager import LifecycleEngine
from insula.lifecycle.seed_keeper import SeedKeeper
from insula.lifecycle.seeds import SeedStore
from insula.model.system import PoolConfig, System
from insula.rpc.launcher import SessionLauncher
from insula.sound.launcher import SOUND_PROGRAM
from insula.storage.pool import Pool, StorageError
from insula.storage.registry import open_pool
from insula.store.store import Store

log = logging.getLogger("insula.daemon")

DEFAULT_POOL = "default"
KERNEL_POOL = "linux-kernel"
MAX_FILES = 16384
"""Descriptors: ten a qube, two for each of the connections that the sockets take."""


@contextmanager
def single_instance(paths: Paths) -> Iterator[bool]:
    """Hold the lock of the one daemon; yields False if another one has it."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield True
    finally:
        os.close(fd)


def with_builtin_pools(system: System, paths: Paths) -> System:
    """The system with the two pools every installation has."""
    builtin = (
        PoolConfig(DEFAULT_POOL, "qcow2", {"dir_path": str(paths.default_pool)}),
        PoolConfig(KERNEL_POOL, "linux-kernel", {"dir_path": str(paths.kernels)}),
    )
    for pool in builtin:
        if pool.name not in system.pools:
            system = system.with_pool(pool)
    if "default_pool_kernel" not in system.properties:
        system = system.with_property("default_pool_kernel", KERNEL_POOL)
    return system


def usable_pools(system: System) -> Iterator[Pool]:
    """Open the pools. One that cannot be used (its disk is not there) keeps only its own volumes from being used."""
    for config in system.pools.values():
        try:
            yield open_pool(config)
        except StorageError as error:
            log.warning("pool %s cannot be used, nor can its volumes: %s", config.name, error)


def raise_file_limit() -> None:
    """Ask for as many descriptors as :data:`MAX_FILES`: the usual 1024 are too few for full tables of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def leave_terminal() -> None:
    """Have no controlling terminal, so that nothing started from here can reach one by the name ``/dev/tty``.

    What was opened before (the log on stderr) stays, and the terminal's keys still reach our process group.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # there is none
        return
    # A session's leader takes the terminal from the whole session, which is told by a signal (tty_ioctl(4)).
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)
    finally:
        signal.signal(signal.SIGHUP, handler)
        os.close(terminal)


async def serve(paths: Paths) -> None:
    """Run until told to end. :raise StoreError, DriverError, OSError: something the daemon needs is not there."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as rooms:
        store = rooms.enter_context(Store.open(paths.database))
        store.commit(with_builtin_pools(store.system, paths))
        bus = EventBus()
        driver = await open_driver()
        rooms.push_async_callback(driver.close)
        launch_session = await rooms.enter_async_context(SessionLauncher([SOUND_PROGRAM]))
        host = Host(
            store=store,
            bus=bus,
            driver=driver,
            kernels=Kernels(paths.kernels),
            launch_session=launch_session,
            runtime_folder=paths.qube,
            console_folder=paths.logs,
        )
        for pool in usable_pools(store.system):
            host.pools[pool.name] = pool
            rooms.push_async_callback(pool.aclose)
        engine = LifecycleEngine(host, paths.runtime / "qubes", SeedKeeper(host, SeedStore(paths.seeds)))
        rooms.push_async_callback(engine.leave)
        templates = Templates(host, engine)
        context = Context(
            store=store,
            engine=engine,
            bus=bus,
            daemon=Control(host, engine, stop),
            templates=templates,
            host=lambda: host_runtime(host),
            rpc_socket=paths.rpc_socket,
            uploads=rooms.enter_context(Uploads(paths.data / "uploads")),
            applications=ApplicationLists(paths.applications),
        )
        # Before there are sessions: what their qubes ask for is decided there.
        calls = await rooms.enter_async_context(open_calls(context, paths, launch_session.parent))
        launch_session.requests = calls.broker
        launch_gui = await rooms.enter_async_context(GuiLauncher(calls.may_paste, calls.prompts.tell))
        host.windows = Windows(store, launch_gui, paths.desktop_note, calls.prompts.tell, os.environ)
        rooms.push_async_callback(host.windows.close)
        await engine.recover()
        await context.leases.recover(context)
        await updates.recover(context)
        await templates.complete()
        context.applications.forget_all_but([qube.uuid for qube in store.system.qubes.values()])
        for path, methods in ((paths.admin_socket, api.METHODS), (paths.internal_socket, api.INTERNAL_METHODS)):
            await rooms.enter_async_context(AdminServer(Dispatcher(context, methods), path, LocalIdentity()))
        log.info("insulad %s is ready: %s, %d qubes", __version__, host.driver.name, len(store.system.qubes) - 1)
        autostart = asyncio.create_task(engine.autostart(), name="autostart")
        await stop.wait()
        autostart.cancel()
        await asyncio.gather(autostart, return_exceptions=True)
        log.info("ending")


def main() -> None:
    """Entry point of ``insulad``."""
    parser = argparse.ArgumentParser(description="The Insula daemon; started by the insula command when needed.")
    parser.add_argument("--verbose", action="store_true", help="log details")
    parser.add_argument("--version", action="version", version=f"insulad {__version__}")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # The QMP library reports each disconnect with a traceback; the driver says what matters.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    os.umask(0o077)
    leave_terminal()
    raise_file_limit()
    paths = Paths.from_environment()
    paths.make()
    with single_instance(paths) as alone:
        if not alone:
            log.info("another insulad serves %s", paths.admin_socket)
            return
        asyncio.run(serve(paths))


if __name__ == "__main__":
    main()
