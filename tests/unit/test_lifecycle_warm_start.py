"""Seeds and forks as lifecycle sees them: a fake hypervisor that freezes and forks, a real pool and a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from insula.hal.driver import ExitKind, MachineExit, MachineState
from insula.hal.errors import SeedUnusable
from insula.hal.fake import SEED_NAMES
from insula.lifecycle import nobody, seed_keeper, start
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.seed_build import SeedFailed
from insula.lifecycle.standby import FEATURE
from insula.model.errors import QubesException
from insula.model.names import ADMIN_NAME, QubeName
from insula.model.state import PowerState
from insula.testing.lifecycle_bench import TEMPLATE, WORK, Bench, engine_bench

OTHER = QubeName("other")


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(seed_keeper, "QUIET_S", 0.0)
    monkeypatch.setattr(nobody, "REST_STEP_S", 0.0)
    async with engine_bench(tmp_path, with_seeds=True) as made:
        # What waits has a test file of its own.
        system = made.host.store.system
        made.host.store.commit(system.with_qube(system.get(ADMIN_NAME).with_feature(FEATURE, "0")))
        yield made


async def seeded(bench: Bench, name: QubeName = WORK) -> None:
    await bench.engine.build_seed(name)


def set_property(bench: Bench, name: QubeName, prop: str, value: str | int) -> None:
    system = bench.host.store.system
    bench.host.store.commit(system.with_qube(system.get(name).with_property(prop, value)))


async def made_in_background(bench: Bench) -> None:
    assert bench.engine.seeds is not None
    async with asyncio.timeout(120):
        while bench.engine.seeds.in_making():
            await asyncio.sleep(0)


async def test_first_start_boots_and_the_next_is_a_fork(bench: Bench) -> None:
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork
    await made_in_background(bench)
    await bench.engine.create(CreateRequest("AppVM", OTHER, "red", template=TEMPLATE))
    await bench.engine.start(OTHER)
    assert bench.guest("other").is_fork
    await bench.engine.kill(WORK)
    await bench.engine.start(WORK)
    assert bench.guest("work").is_fork


async def test_warm_mode_has_the_seed_made_first(bench: Bench) -> None:
    set_property(bench, WORK, "start_mode", "warm")
    await bench.engine.start(WORK)
    assert bench.guest("work").is_fork


async def test_cold_mode_boots_whatever_there_is(bench: Bench) -> None:
    await seeded(bench)
    set_property(bench, WORK, "start_mode", "cold")
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork


async def test_start_waits_for_a_seed_that_is_being_made(bench: Bench) -> None:
    assert bench.engine.seeds is not None
    gate = bench.computer.script.hold_next("freeze")
    building = asyncio.create_task(seeded(bench))
    async with asyncio.timeout(120):
        while "freeze" not in {method for _, method in bench.computer.script.calls}:
            await asyncio.sleep(0)
    starting = asyncio.create_task(bench.engine.start(WORK))
    await asyncio.sleep(0.02)
    assert not starting.done()
    gate.set()
    await asyncio.gather(building, starting)
    assert bench.guest("work").is_fork


async def test_seed_is_nobodys(bench: Bench) -> None:
    """What the seed's machine is given: no private volume, no name, no machine id, no key of a person."""
    await seeded(bench)
    [(name, session)] = [entry for entry in bench.sessions.launched if entry[0].startswith("seed.")]
    guest = bench.guest(name)
    private = next(disk for disk in guest.spec.disks if disk.name == "private")
    assert private.source.layers[0].path.is_relative_to(guest.spec.runtime_dir)
    assert "machine_id" not in guest.spec.cmdline
    assert session.keys["/insula-seed"] == "1"
    assert not {"/insula-machine-id", "/qubes-random-seed"} & session.keys.keys()
    assert "work" not in "".join(session.keys.values())


async def test_fork_has_its_own_overlay_over_the_seeds_layer_over_the_template(bench: Bench) -> None:
    await seeded(bench)
    assert bench.engine.seeds is not None
    [seed] = bench.engine.seeds.all()
    await bench.engine.start(WORK)
    layers = [layer.path for layer in bench.guest("work").spec.disks[0].source.layers]
    assert layers[1] == seed.root_layer
    assert layers[0] != seed.root_layer
    assert "template" in str(layers[2])
    private = bench.guest("work").spec.disks[1].source.layers
    assert "work" in str(private[-1].path)


async def test_keys_of_a_fork_are_those_of_a_cold_start(bench: Bench) -> None:
    await bench.engine.start(WORK)
    cold = bench.sessions.of("work").keys
    await made_in_background(bench)
    await bench.engine.kill(WORK)
    await bench.engine.start(WORK)
    assert bench.guest("work").is_fork
    warm = bench.sessions.of("work").keys
    assert cold.keys() == warm.keys()
    assert {key for key in cold if cold[key] != warm[key]} == {"/qubes-random-seed"}


@pytest.mark.parametrize("damaged", SEED_NAMES)
async def test_damaged_seed_is_dropped_and_the_qube_boots(
    bench: Bench, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    await seeded(bench)
    assert bench.engine.seeds is not None
    [seed] = bench.engine.seeds.all()
    bench.host.driver.unload_seed(seed.machine)
    file = seed.machine / damaged
    file.write_bytes(file.read_bytes()[:-1])
    await bench.engine.start(WORK)
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    assert not bench.guest("work").is_fork
    assert bench.engine.seeds.all() == []
    assert len([r for r in caplog.records if r.levelname == "WARNING" and seed.folder.name in r.message]) == 1


@pytest.mark.parametrize("is_there", [True, False])
async def test_damaged_layer_of_the_root_is_noticed_and_the_qube_boots(
    bench: Bench, is_there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await seeded(bench)
    assert bench.engine.seeds is not None
    [seed] = bench.engine.seeds.all()
    seed.root_layer.unlink()
    if is_there:
        seed.root_layer.touch()
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork
    assert bench.engine.seeds.all() == []
    assert len([r for r in caplog.records if r.levelname == "WARNING" and seed.folder.name in r.message]) == 1


async def test_dropped_seed_is_made_anew_but_not_again_and_again(bench: Bench) -> None:
    set_property(bench, WORK, "start_mode", "warm")
    assert bench.engine.seeds is not None
    for is_fork in (True, False, True, False, False):
        await bench.engine.start(WORK)
        assert bench.guest("work").is_fork is is_fork
        await bench.engine.kill(WORK)
        if is_fork:
            [seed] = bench.engine.seeds.all()
            bench.host.driver.unload_seed(seed.machine)
            bench.engine.seeds._whole.clear()
            seed.root_layer.unlink()


async def test_fork_whose_agent_never_answers_is_ended_and_the_qube_boots(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seeded(bench)
    monkeypatch.setattr(start, "FORK_LIMIT_S", 0.05)
    bench.sessions.answers = False
    starting = asyncio.create_task(bench.engine.start(WORK))
    async with asyncio.timeout(120):
        while len([guest for guest in bench.computer.guests.values() if guest.spec.name == "work"]) < 2:
            await asyncio.sleep(0)
    forked, booted = (guest for guest in bench.computer.guests.values() if guest.spec.name == "work")
    assert forked.is_fork
    assert forked.exit is not None
    assert not booted.is_fork
    async with asyncio.timeout(120):
        while not bench.sessions.launched or bench.sessions.of("work").keys.get("/name") != "work":
            await asyncio.sleep(0)
    while not starting.done():
        bench.sessions.of("work").ready.set()
        await asyncio.sleep(0)
    await starting
    assert bench.engine.power_state(WORK) is PowerState.RUNNING


async def test_failing_storage_is_no_fault_of_the_seed(bench: Bench) -> None:
    await seeded(bench)
    bench.computer.script.fail_next("define")
    with pytest.raises(QubesException, match="Could not start work"):
        await bench.engine.start(WORK)
    assert bench.engine.seeds is not None
    assert len(bench.engine.seeds.all()) == 1
    assert bench.leftovers() == []


@pytest.mark.parametrize("step", ["define", "start_paused", "open_channel", "resume", "stats", "pause", "freeze"])
async def test_seed_that_cannot_be_made_leaves_nothing_and_starts_boot(bench: Bench, step: str) -> None:
    bench.computer.script.fail_next(step)
    with pytest.raises(SeedFailed, match="no seed of template could be made"):
        await seeded(bench)
    assert list(bench.seeds.folder.iterdir()) == []
    assert bench.leftovers() == []
    assert bench.computer.living() == []
    set_property(bench, WORK, "start_mode", "warm")
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork


async def test_machine_that_ends_while_it_is_made_into_a_seed_is_an_error(bench: Bench) -> None:
    bench.sessions.answers = False
    building = asyncio.create_task(seeded(bench))
    async with asyncio.timeout(120):
        while not bench.sessions.launched:
            await asyncio.sleep(0)
    next(iter(bench.computer.living())).end(MachineExit(ExitKind.CRASHED, "panic"))
    with pytest.raises(SeedFailed, match="ended"):
        await building
    assert list(bench.seeds.folder.iterdir()) == []


async def test_machine_that_is_stopped_while_it_is_made_into_a_seed_is_an_error(bench: Bench) -> None:
    """A hypervisor stops a guest whose disk the host cannot extend any more."""
    bench.sessions.answers = False
    building = asyncio.create_task(seeded(bench))
    async with asyncio.timeout(120):
        while not bench.sessions.launched or next(iter(bench.computer.living())).state is not MachineState.RUNNING:
            await asyncio.sleep(0)
    next(iter(bench.computer.living())).state = MachineState.PAUSED
    async with asyncio.timeout(120):
        with pytest.raises(SeedFailed, match="no room"):
            await building
    assert list(bench.seeds.folder.iterdir()) == []
    assert bench.computer.living() == []


async def test_daemon_that_ends_while_a_seed_is_made_leaves_nothing(bench: Bench) -> None:
    bench.sessions.answers = False
    building = asyncio.create_task(seeded(bench))
    async with asyncio.timeout(120):
        while not bench.sessions.launched:
            await asyncio.sleep(0)
    await bench.reopen()
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    assert bench.computer.living() == []
    assert list(bench.seeds.folder.iterdir()) == []


async def test_other_memory_vcpus_or_options_need_another_seed(bench: Bench) -> None:
    await seeded(bench)
    for prop, value in (("memory", 300), ("vcpus", 1), ("kernelopts", "debug")):
        set_property(bench, WORK, prop, value)
        await bench.engine.start(WORK)
        assert not bench.guest("work").is_fork, prop
        await bench.engine.kill(WORK)
        await made_in_background(bench)
        await bench.engine.start(WORK)
        assert bench.guest("work").is_fork, prop
        await bench.engine.kill(WORK)


async def test_template_that_was_changed_has_its_seeds_renewed(bench: Bench) -> None:
    await seeded(bench)
    assert bench.engine.seeds is not None
    [old] = bench.engine.seeds.all()
    await bench.engine.start(WORK)
    await bench.engine.start(TEMPLATE)
    assert not bench.guest("template").is_fork
    await bench.engine.shutdown(TEMPLATE, force=False, wait=True)
    await made_in_background(bench)
    [new] = bench.engine.seeds.all()
    assert new.key.root != old.key.root
    assert not old.folder.exists()
    # The fork that runs has its old root and is told to be outdated.
    assert bench.engine.power_state(WORK) is PowerState.RUNNING
    assert await bench.engine.volume_is_outdated(WORK, "root")


async def test_template_that_kept_nothing_keeps_its_seeds(bench: Bench) -> None:
    await seeded(bench)
    assert bench.engine.seeds is not None
    before = bench.engine.seeds.all()
    await bench.engine.start(TEMPLATE)
    await bench.engine.kill(TEMPLATE)
    await made_in_background(bench)
    assert [seed.key for seed in bench.engine.seeds.all()] == [seed.key for seed in before]


async def test_template_and_standalone_have_no_seed(bench: Bench) -> None:
    await bench.engine.create(CreateRequest("StandaloneVM", OTHER, "red"))
    with pytest.raises(SeedFailed, match="root of its own"):
        await seeded(bench, OTHER)


async def test_seeds_that_do_not_fit_are_dropped_oldest_first(bench: Bench) -> None:
    assert bench.engine.seeds is not None
    await seeded(bench)
    [first] = bench.engine.seeds.all()
    bench.seeds.limit = first.size
    set_property(bench, WORK, "vcpus", 1)
    await seeded(bench)
    [second] = bench.engine.seeds.all()
    assert second.key.vcpus == 1


async def test_driver_that_cannot_fork_boots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    set_property(bench, WORK, "start_mode", "warm")
    monkeypatch.setattr(type(bench.host.driver), "capabilities", frozenset())
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork
    with pytest.raises(SeedFailed, match="cannot fork"):
        await seeded(bench)


async def test_seed_refused_by_the_hypervisor_is_not_tried_again(bench: Bench) -> None:
    await seeded(bench)
    bench.computer.script.fail_next("start_paused", SeedUnusable("restore failed", "qemu: no"))
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork
    await bench.engine.kill(WORK)
    await made_in_background(bench)
    await bench.engine.start(WORK)
    assert not bench.guest("work").is_fork
