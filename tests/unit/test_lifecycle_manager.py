"""The engine with a fake hypervisor, fake sessions, and a real store and pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.hal.driver import MachineState
from insula.hal.errors import DriverError
from insula.lifecycle.engine import CreateRequest
from insula.model.block import VolumeSpec
from insula.model.errors import (
    QubesException,
    QubesMemoryError,
    QubesValueError,
    QubesVMInUseError,
    QubesVMNotHaltedError,
    QubesVMNotPausedError,
    QubesVMNotRunningError,
    QubesVMNotStartedError,
    QubesVMShutdownTimeoutError,
    StoragePoolException,
)
from insula.model.names import QubeName
from insula.model.properties import set_property
from insula.model.qubesdb_keys import CLOCK_KEY
from insula.model.state import PowerState
from insula.storage.pool import NoSpace
from insula.store.errors import StoreError
from insula.store.store import Store
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench
from insula_agent.persistence import parse_ext


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with engine_bench(tmp_path) as made:
        yield made


async def test_start_publishes_its_events_in_the_published_order(bench: Bench) -> None:
    await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    assert bench.names_of("work") == [
        "domain-pre-start",
        "domain-pre-spawn",
        "property-reset:xid",
        "property-reset:stubdom_xid",
        "property-reset:start_time",
        "domain-spawn",
        "domain-qdb-create",
        "domain-pre-unpaused",
        "domain-unpaused",
        "domain-start",
    ]
    assert bench.sessions.of("work").keys["/name"] == "work"


async def test_cd_is_in_the_machine_that_starts_with_it_and_in_no_other(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "rescue.iso"
    image.write_bytes(bytes(2048))
    with pytest.raises(QubesException, match="not from a CD"):
        await bench.engine.start(WORK, image)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_property("kernel", "")))
    await bench.engine.start(WORK, image)
    cd = bench.guest("work").spec.cd
    assert cd is not None
    assert cd.layers[0].path == image
    with pytest.raises(QubesVMNotHaltedError, match="a CD is put in"):
        await bench.engine.start(WORK, image)
    await bench.engine.kill(WORK)
    await bench.engine.start(WORK)
    assert bench.guest("work").spec.cd is None


async def test_a_thousand_starts_at_once_make_one_machine(bench: Bench) -> None:
    """MC-56"""
    await asyncio.gather(*(bench.engine.start(WORK) for _ in range(1000)))
    assert len(bench.computer.guests) == 1
    await bench.engine.start(WORK)
    assert len(bench.computer.guests) == 1


@pytest.mark.parametrize("step", ["define", "start_paused", "open_channel", "resume"])
async def test_start_that_fails_at_any_step_leaves_nothing(bench: Bench, step: str) -> None:
    """MC-62, MC-100"""
    bench.computer.script.fail_next(step)
    with pytest.raises(QubesException, match="Could not start work"):
        await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    assert bench.names_of("work")[-1] == "domain-start-failed"
    assert bench.leftovers() == []
    assert bench.host.store.machines() == {}
    assert all(guest.exit is not None for guest in bench.computer.guests.values())
    await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_words_of_the_hypervisor_go_to_the_log_and_the_error_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.computer.script.fail_next("start_paused", DriverError("QEMU did not start", "qemu: line one\nline two"))
    with pytest.raises(QubesException, match=r"QEMU did not start \(the daemon's log says more\)$"):
        await bench.engine.start(WORK)
    assert "line two" in caplog.text


async def test_start_without_session_process_is_undone(bench: Bench) -> None:
    bench.sessions.fail_next = OSError("no more processes")
    with pytest.raises(QubesException, match=r"session process.*no more processes"):
        await bench.engine.start(WORK)
    assert bench.leftovers() == []


async def test_agent_that_never_answers_times_out_and_its_console_is_kept(bench: Bench) -> None:
    """MC-98"""
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_property("qrexec_timeout", 1)))
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    while not bench.sessions.launched:
        await asyncio.sleep(0)
    bench.guest("work").print(b"Kernel panic? no, just slow\n")
    with pytest.raises(QubesException, match="did not answer within 1 s"):
        await starting
    assert (bench.folder / "logs" / "work.console.log").read_bytes() == b"Kernel panic? no, just slow\n"
    assert bench.leftovers() == []


async def test_machine_that_dies_before_its_agent_answers_fails_the_start_at_once(bench: Bench) -> None:
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    while not bench.sessions.launched or bench.guest("work").state is not MachineState.RUNNING:
        await asyncio.sleep(0)
    bench.guest("work").panic()
    with pytest.raises(QubesException, match="before its agent answered"):
        await starting


async def test_start_beyond_the_hosts_memory_is_refused_with_figures(bench: Bench) -> None:
    bench.available_mib = 800
    with pytest.raises(QubesMemoryError, match=r"needs 400 MiB, 288 MiB can be given"):
        await bench.engine.start(WORK)
    assert bench.computer.guests == {}


async def test_kill_during_a_start_undoes_it_and_tells_who_waits(bench: Bench) -> None:
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    while not bench.sessions.launched:
        await asyncio.sleep(0)
    await bench.engine.kill(WORK)
    with pytest.raises(QubesException, match="ended by a kill"):
        await starting
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    assert bench.leftovers() == []


async def test_client_that_goes_away_does_not_stop_a_start(bench: Bench) -> None:
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    while not bench.sessions.launched:
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    bench.sessions.of("work").ready.set()
    await bench.until(PowerState.RUNNING)


async def test_guest_that_powers_off_is_halted_and_committed(bench: Bench) -> None:
    await bench.engine.start(WORK)
    before = len(await bench.engine.volume_revisions(WORK, "private"))
    bench.guest("work").power_off()
    await bench.until(PowerState.HALTED)
    assert bench.names_of("work")[-1] == "domain-shutdown"
    assert len(await bench.engine.volume_revisions(WORK, "private")) == before + 1
    assert bench.host.store.machines() == {}
    assert bench.leftovers() == []


async def test_killed_template_commits_nothing_and_killed_app_qube_its_home(bench: Bench) -> None:
    """MC-96"""
    for name, volume, kept in ((TEMPLATE, "root", 0), (WORK, "private", 1)):
        await bench.engine.start(name)
        before = len(await bench.engine.volume_revisions(name, volume))
        await bench.engine.kill(name)
        assert len(await bench.engine.volume_revisions(name, volume)) == before + kept


async def test_shutdown_that_is_ignored_times_out_and_the_qube_stays_on(bench: Bench) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_property("shutdown_timeout", 1)))
    await bench.engine.start(WORK)
    bench.guest("work").powers_off_when_asked = False
    with pytest.raises(QubesVMShutdownTimeoutError):
        await bench.engine.shutdown(WORK, force=False, wait=True)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    bench.guest("work").powers_off_when_asked = True
    await bench.engine.shutdown(WORK, force=False, wait=True)
    assert bench.engine.power_state(WORK) is PowerState.HALTED


async def test_paused_qube_refuses_a_shutdown_without_force(bench: Bench) -> None:
    await bench.engine.start(WORK)
    with pytest.raises(QubesVMNotPausedError):
        await bench.engine.unpause(WORK)
    await bench.engine.pause(WORK)
    assert bench.engine.power_state(WORK) is PowerState.PAUSED
    with pytest.raises(QubesVMNotRunningError):
        await bench.engine.shutdown(WORK, force=False, wait=True)
    await bench.engine.shutdown(WORK, force=True, wait=True)
    assert bench.engine.power_state(WORK) is PowerState.HALTED


async def test_qube_killed_while_it_is_unpaused_is_off_and_both_are_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.start(WORK)
    await bench.engine.pause(WORK)

    async def is_told_late(path: str, value: bytes) -> None:
        await bench.engine.kill(WORK)

    monkeypatch.setattr(bench.sessions.of("work"), "set_key", is_told_late)
    with pytest.raises(QubesException, match="ended"):
        await bench.engine.unpause(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_halted_qube_cannot_be_stopped_or_paused(bench: Bench) -> None:
    for call in (bench.engine.kill(WORK), bench.engine.pause(WORK), bench.engine.unpause(WORK)):
        with pytest.raises(QubesVMNotStartedError):
            await call
    with pytest.raises(QubesVMNotStartedError):
        await bench.engine.shutdown(WORK, force=True, wait=True)


async def test_running_qube_and_template_in_use_cannot_be_removed(bench: Bench) -> None:
    """MC-59"""
    with pytest.raises(QubesVMInUseError, match="work"):
        await bench.engine.remove(TEMPLATE)
    await bench.engine.start(WORK)
    with pytest.raises(QubesVMInUseError, match="running"):
        await bench.engine.remove(WORK)
    await bench.engine.kill(WORK)
    await bench.engine.remove(WORK)
    await bench.engine.remove(TEMPLATE)
    assert await bench.host.pools["default"].volumes() == []


async def test_volumes_of_a_running_qube_are_not_replaced(bench: Bench) -> None:
    await bench.engine.start(WORK)
    for call in (
        bench.engine.volume_clear(WORK, "private"),
        bench.engine.volume_revert(WORK, "private", "x"),
        bench.engine.volume_clone((TEMPLATE, "private"), (WORK, "private")),
        bench.engine.volume_set(WORK, "private", "rw", value=False),
    ):
        with pytest.raises(QubesVMNotHaltedError):
            await call
    size = bench.host.store.system.get(WORK).volumes["private"].size
    await bench.engine.volume_resize(WORK, "private", size * 2)
    assert bench.guest("work").disk_sizes["private"] == size * 2
    (session,) = [session for name, session in bench.sessions.launched if name == WORK]
    assert session.told == [("qubes.ResizeDisk", b"private\n")]
    with pytest.raises(StoragePoolException, match="shrinking"):
        await bench.engine.volume_resize(WORK, "private", size)


async def test_next_daemon_finds_running_qubes_again(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.reopen()
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    assert bench.engine.start_time(WORK) is not None
    assert len(bench.computer.guests) == 1
    bench.guest("work").power_off()
    await bench.until(PowerState.HALTED)
    assert len(await bench.engine.volume_revisions(WORK, "private")) == 1


async def test_qube_that_ended_without_a_daemon_is_settled_by_the_next(bench: Bench) -> None:
    """MC-99"""
    await bench.engine.start(WORK)
    await bench.engine.start(TEMPLATE)
    await bench.crash()
    for name in ("work", "template"):
        bench.guest(name).die()
    await bench.open()
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    assert len(await bench.engine.volume_revisions(WORK, "private")) == 1
    assert await bench.engine.volume_revisions(TEMPLATE, "root") == []
    assert bench.host.store.machines() == {}
    assert bench.leftovers() == []
    await bench.engine.start(WORK)
    await bench.engine.start(TEMPLATE)


async def test_start_interrupted_by_a_crash_is_undone_by_the_next_daemon(bench: Bench) -> None:
    """MC-62: the machine that was being started runs nowhere afterwards."""
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    while not bench.sessions.launched:
        await asyncio.sleep(0)
    record = bench.host.store.machines()["work"]
    guest = bench.guest("work")
    source = next(disk.source for disk in guest.spec.disks if disk.name == "private")
    # What a SIGKILL leaves: the record and the machine, and nobody to undo anything.
    undo, guest.end = guest.end, lambda ending: None
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert source.layers
    await bench.crash()
    guest.end = undo
    with Store.open(bench.folder / "system.db") as store:
        store.put_machine("work", record)
    bench.sessions.answers = True
    await bench.open()
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    assert bench.host.store.machines() == {}
    assert await bench.engine.volume_revisions(WORK, "private") == []
    await bench.engine.start(WORK)


async def test_session_that_dies_is_replaced_until_it_keeps_dying(bench: Bench) -> None:
    await bench.engine.start(WORK)
    first = bench.sessions.of("work")
    first.die("kill -9")
    async with asyncio.timeout(120):
        while bench.sessions.of("work") is first:
            await asyncio.sleep(0.01)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_stop_all_shuts_down_and_kills_what_does_not_follow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.start(WORK)
    await bench.engine.start(TEMPLATE)
    bench.guest("work").powers_off_when_asked = False
    work = bench.engine._supervisors[WORK]
    wait_ended = work.wait_ended

    async def wait_for_the_other_first(timeout_s: float) -> None:
        # However long that one takes to keep what it wrote.
        await bench.until(PowerState.HALTED, TEMPLATE)
        await wait_ended(timeout_s / 1000)

    monkeypatch.setattr(work, "wait_ended", wait_for_the_other_first)
    assert await bench.engine.stop_all(timeout_s=60) == ["work"]
    assert bench.engine.power_state(TEMPLATE) is PowerState.HALTED
    assert bench.engine.power_state(WORK) is PowerState.HALTED


async def test_stop_all_does_not_miss_a_qube_that_is_removed_while_its_client_stops(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = QubeName("net")
    await bench.engine.create(CreateRequest("AppVM", net, "red", template=TEMPLATE))
    for name in (net, WORK):
        await bench.engine.start(name)
    monkeypatch.setattr(bench.engine, "_net_qube_of", {WORK: net}.get)
    shutdown = bench.engine._supervisors[WORK].shutdown

    async def remove_the_other_first(*, force: bool) -> None:
        await bench.engine.kill(net)
        await bench.engine.remove(net)
        await shutdown(force=force)

    monkeypatch.setattr(bench.engine._supervisors[WORK], "shutdown", remove_the_other_first)
    assert await bench.engine.stop_all() == []
    assert bench.engine.power_state(WORK) is PowerState.HALTED


async def test_volumes_that_no_qube_names_are_removed_by_the_next_daemon(bench: Bench) -> None:
    store = bench.host.store
    store.commit(store.system.without_qube(WORK))
    await bench.reopen()
    assert await bench.host.pools["default"].volumes() == ["qubes/template/private", "qubes/template/root"]


async def test_creation_that_fails_leaves_no_volume(bench: Bench) -> None:
    with pytest.raises(QubesException):
        await bench.engine.create(CreateRequest("AppVM", QubeName("other"), "no-such-label", template=TEMPLATE))
    assert not any("other" in vid for vid in await bench.host.pools["default"].volumes())


async def test_volumes_without_a_qube_stay_where_the_state_came_from_a_copy(bench: Bench) -> None:
    """MC-63: a state file that was lost must not take people's volumes with it."""
    before = await bench.host.pools["default"].volumes()
    store = bench.host.store
    store.commit(store.system.without_qube(WORK))
    await bench.crash()
    (bench.folder / "system.db").write_bytes(b"not a database, and long enough to be looked at" * 100)
    await bench.open()
    assert bench.host.store.recovery is not None
    assert await bench.host.pools["default"].volumes() == before


async def test_unnamed_disposable_is_removed_when_it_ends(bench: Bench) -> None:
    name = QubeName("disp7")
    store = bench.host.store
    store.commit(set_property(store.system, WORK, "template_for_dispvms", True, bench.engine.power_state))
    await bench.engine.create(CreateRequest("DispVM", name, "red", template=WORK))
    store.commit(store.system.with_qube(store.system.get(name).with_property("auto_cleanup", True)))
    assert isinstance(store.system.get(name).properties["dispid"], int)
    await bench.engine.start(name)
    await bench.engine.kill(name)
    assert name not in bench.host.store.system.qubes
    assert bench.names_of("")[-2:] == ["domain-pre-delete", "domain-delete"]


async def test_failed_start_does_not_discard_what_somebody_else_left_open(bench: Bench) -> None:
    """A volume that is still active from before is refused, not thrown away."""
    volume = bench.host.store.system.get(WORK).volumes["private"]
    pool = bench.host.pools["default"]
    await pool.activate(volume)
    with pytest.raises(QubesException, match="activating volume private"):
        await bench.engine.start(WORK)
    await pool.deactivate(volume, commit=True)
    assert len(await bench.engine.volume_revisions(WORK, "private")) == 1


async def test_creation_over_a_volume_that_exists_does_not_remove_it(bench: Bench) -> None:
    spec = VolumeSpec("private", "default", "qubes/other/private", 512, save_on_stop=True)
    pool = bench.host.pools["default"]
    await pool.create(spec)
    with pytest.raises(StoragePoolException):
        await bench.engine.create(CreateRequest("AppVM", QubeName("other"), "red", template=TEMPLATE))
    assert spec.vid in await pool.volumes()
    assert QubeName("other") not in bench.host.store.system.qubes


async def test_machine_that_stops_by_itself_is_shown_paused_and_goes_on_when_told(bench: Bench) -> None:
    """A hypervisor stops a guest whose disk the host cannot extend any more."""
    await bench.engine.start(WORK)
    bench.guest("work").state = MachineState.PAUSED
    assert bench.engine.power_state(WORK) is PowerState.PAUSED
    await bench.engine.unpause(WORK)
    assert bench.guest("work").state is MachineState.RUNNING
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_unpaused_qube_is_told_the_time(bench: Bench) -> None:
    await bench.engine.start(WORK)
    await bench.engine.pause(WORK)
    before = time.time_ns()
    await bench.engine.unpause(WORK)
    assert before <= int(bench.sessions.of("work").keys[CLOCK_KEY]) <= time.time_ns()


async def test_qube_without_a_session_is_unpaused_nevertheless(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.engine.start(WORK)
    await bench.engine.pause(WORK)
    bench.sessions.of("work").die("crashed")
    await bench.engine.unpause(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    assert "its clock is late" in caplog.text


async def test_volumes_that_cannot_be_settled_are_settled_before_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = bench.host.pools["default"]
    deactivate = pool.deactivate

    async def full(volume: VolumeSpec, *, commit: bool) -> None:
        raise NoSpace("the disk is full")

    await bench.engine.start(WORK)
    before = len(await bench.engine.volume_revisions(WORK, "private"))
    monkeypatch.setattr(pool, "deactivate", full)
    bench.guest("work").power_off()
    await bench.until(PowerState.HALTED)
    assert "work" in bench.host.store.machines()
    with pytest.raises(QubesException, match="the disk is full"):
        await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    monkeypatch.setattr(pool, "deactivate", deactivate)
    await bench.engine.start(WORK)
    assert len(await bench.engine.volume_revisions(WORK, "private")) == before + 1


async def test_record_that_cannot_be_removed_does_not_keep_the_qube_from_halting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str) -> None:
        raise StoreError("the disk is full")

    await bench.engine.start(WORK)
    with monkeypatch.context() as patched:
        patched.setattr(bench.host.store, "remove_machine", full)
        await bench.engine.kill(WORK)
    assert bench.engine.power_state(WORK) is PowerState.HALTED
    await bench.engine.start(WORK)


async def test_start_during_an_endless_shutdown_gives_up_in_time(bench: Bench) -> None:
    store = bench.host.store
    store.commit(store.system.with_qube(store.system.get(WORK).with_property("shutdown_timeout", 1)))
    await bench.engine.start(WORK)
    bench.guest("work").powers_off_when_asked = False
    await bench.engine.shutdown(WORK, force=False, wait=False)
    with pytest.raises(QubesVMShutdownTimeoutError):
        await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_revert_to_a_smaller_revision_takes_its_size_along(bench: Bench) -> None:
    small = bench.host.store.system.get(WORK).volumes["private"].size
    await bench.engine.start(WORK)
    bench.guest("work").power_off()
    await bench.until(PowerState.HALTED)
    await bench.engine.volume_resize(WORK, "private", small + 512)
    revision = (await bench.engine.volume_revisions(WORK, "private"))[0]
    await bench.engine.volume_revert(WORK, "private", revision.id)
    volume = bench.host.store.system.get(WORK).volumes["private"]
    assert volume.size == await bench.host.pools["default"].size(volume) == small


@pytest.mark.parametrize("place", ["pool", "pool/inside", "."])
async def test_pool_over_the_files_of_another_is_refused(bench: Bench, place: str) -> None:
    with pytest.raises(StoragePoolException, match="overlaps"):
        await bench.engine.pool_add("second", "qcow2", {"dir_path": str(bench.folder / place)})
    assert list(bench.host.pools) == ["default"]


async def test_pool_that_is_added_and_removed_leaves_its_folder_to_the_next(bench: Bench) -> None:
    for name in ("second", "third"):
        await bench.engine.pool_add(name, "qcow2", {"dir_path": str(bench.folder / "elsewhere")})
        await bench.engine.pool_remove(name)
    assert list(bench.host.pools) == ["default"]


async def test_power_button_is_pressed_again_for_a_guest_that_did_not_hear_it(bench: Bench) -> None:
    """A guest that is still booting has nobody listening yet."""
    await bench.engine.start(WORK)
    guest = bench.guest("work")
    guest.powers_off_when_asked = False
    stopping = asyncio.create_task(bench.engine.shutdown(WORK, force=False, wait=True))
    async with asyncio.timeout(120):
        while not guest.shutdown_requests:
            await asyncio.sleep(0)
    guest.powers_off_when_asked = True
    await stopping
    assert guest.shutdown_requests == 2


async def test_qube_with_a_volume_in_a_pool_that_is_not_there_can_be_removed(bench: Bench) -> None:
    await bench.engine.pool_add("second", "qcow2", {"dir_path": str(bench.folder / "elsewhere"), "reserve_mib": "1"})
    await bench.engine.create(CreateRequest("AppVM", QubeName("far"), "red", TEMPLATE, pools={"private": "second"}))
    del bench.host.pools["second"]
    with pytest.raises(QubesException, match="Pool 'second' of volume qubes/far/private cannot be used now"):
        await bench.engine.start(QubeName("far"))
    await bench.engine.remove(QubeName("far"))
    assert bench.published[-1].name == "domain-delete"
    assert "far" not in bench.host.store.system.qubes


async def test_volatile_volume_can_be_made_ephemeral_and_plain_again_others_cannot(bench: Bench) -> None:
    for value in (True, False):
        await bench.engine.volume_set(WORK, "volatile", "ephemeral", value=value)
        assert bench.host.store.system.get(WORK).volumes["volatile"].ephemeral is value
    for volume in ("root", "private"):
        with pytest.raises(QubesValueError):
            await bench.engine.volume_set(WORK, volume, "ephemeral", value=True)
        assert not bench.host.store.system.get(WORK).volumes[volume].ephemeral


async def test_created_qube_has_a_formatted_private_volume_without_older_revisions(bench: Bench) -> None:
    name = QubeName("fresh")
    await bench.engine.create(CreateRequest("AppVM", name, "red", TEMPLATE))
    private = bench.host.store.system.get(name).volumes["private"]
    pieces = bench.host.pool_of(private).export(private)
    found = parse_ext(await anext(pieces))
    await pieces.aclose()  # type: ignore[attr-defined]
    assert found is not None
    assert (found.size, found.is_clean) == (private.size, True)
    assert await bench.engine.volume_revisions(name, "private") == []
    assert 0 < await bench.engine.volume_usage(name, "private") < private.size // 256
