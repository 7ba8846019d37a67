from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.lifecycle.seeds import MACHINE, RECORD, ROOT_LAYER, Seed, SeedKey, SeedStore, plan_eviction

KEY = SeedKey("debian-12", "1:a", "6.1 1:2:3", "quiet", 400, 2, ("root", "private", "volatile"), "qemu")


def changed(**fields: object) -> SeedKey:
    return msgspec.structs.replace(KEY, **fields)


def made(store: SeedStore, key: SeedKey = KEY, *, size: int = 0, used_at: float | None = None) -> Seed:
    with store.staging(key) as folder:
        (folder / MACHINE / "memory").write_bytes(b"m" * size)
        (folder / ROOT_LAYER).write_bytes(b"root")
    if used_at is not None:
        os.utime(store.folder / key.name / RECORD, (used_at, used_at))
    seed = store.find(key)
    assert seed is not None
    return seed


@pytest.fixture
def store(tmp_path: Path) -> SeedStore:
    return SeedStore(tmp_path / "seeds")


def test_seed_is_found_by_its_key_and_by_no_other(store: SeedStore) -> None:
    seed = made(store)
    assert seed.machine == store.folder / KEY.name / "machine"
    for other in (
        changed(root="2:a"),
        changed(kernel="6.2"),
        changed(cmdline="debug"),
        changed(memory_mib=401),
        changed(vcpus=1),
        changed(disks=("root",)),
        changed(hypervisor="xen"),
        changed(template="other"),
    ):
        assert store.find(other) is None


def test_root_layer_that_is_not_what_was_written_is_noticed(store: SeedStore) -> None:
    seed = made(store)
    assert store.is_root_whole(seed)
    seed.root_layer.write_bytes(b"toor")
    assert not store.is_root_whole(seed)
    seed.root_layer.unlink()
    assert not store.is_root_whole(seed)


def test_seed_that_was_broken_off_is_none_and_tidied_away(store: SeedStore) -> None:
    with pytest.raises(RuntimeError, match="power"), store.staging(KEY):
        raise RuntimeError("power")
    assert list(store.folder.iterdir()) == []
    (store.folder / KEY.name / MACHINE).mkdir(parents=True)
    (store.folder / ".new-x").mkdir()
    (store.folder / "file").touch()
    assert store.find(KEY) is None
    assert store.all() == []
    kept = made(store, changed(vcpus=4))
    assert store.tidy() == sorted([".new-x", KEY.name, "file"])
    assert store.all() == [kept]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}', b"\xff" * 100])
def test_record_that_is_none_makes_no_seed(store: SeedStore, content: bytes) -> None:
    made(store)
    (store.folder / KEY.name / RECORD).write_bytes(content)
    assert store.find(KEY) is None


def test_record_of_another_seed_makes_no_seed(store: SeedStore) -> None:
    """A folder that was renamed or copied by hand."""
    made(store)
    other = changed(vcpus=9)
    (store.folder / KEY.name).rename(store.folder / other.name)
    assert store.find(other) is None
    assert store.all() == []


def test_seed_made_again_replaces_the_old_one(store: SeedStore) -> None:
    made(store, size=10)
    assert (made(store, size=20).machine / "memory").stat().st_size == 20
    assert len(list(store.folder.iterdir())) == 1


def test_dropped_seed_is_gone_and_dropping_it_again_says_so(store: SeedStore) -> None:
    made(store)
    assert store.drop(KEY.name)
    assert not store.drop(KEY.name)
    assert store.all() == []


def test_seeds_are_listed_by_their_last_use(store: SeedStore) -> None:
    old, new = made(store, used_at=1000), made(store, changed(vcpus=4), used_at=2000)
    assert [seed.folder for seed in store.all()] == [new.folder, old.folder]
    store.touch(old)
    assert [seed.folder for seed in store.all()] == [old.folder, new.folder]


def test_time_of_use_that_is_yet_to_come_keeps_no_seed_before_others(store: SeedStore) -> None:
    """The host's clock was set back after it."""
    ahead, old = made(store, used_at=time.time() + 86400), made(store, changed(vcpus=4), used_at=1000)
    assert [seed.folder for seed in store.all()] == [old.folder, ahead.folder]
    store.touch(ahead)
    assert [seed.folder for seed in store.all()] == [ahead.folder, old.folder]


def seed(name: str, size: int, used_at: float) -> Seed:
    return Seed(Path(name), KEY, 0.0, used_at, size, "")


def test_eviction_takes_those_unused_longest_until_the_rest_fits() -> None:
    seeds = [seed("a", 100, 1), seed("b", 100, 3), seed("c", 100, 2)]
    assert plan_eviction(seeds, 300) == []
    assert plan_eviction(seeds, 299) == ["a"]
    assert plan_eviction(seeds, 100) == ["a", "c"]
    assert plan_eviction(seeds, 100, frozenset({"a"})) == ["c", "b"]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=8), st.integers(0, 300))
def test_eviction_leaves_no_more_than_the_limit_and_no_less_than_needed(
    pairs: list[tuple[int, int]], limit: int
) -> None:
    seeds = [seed(str(number), size, used) for number, (size, used) in enumerate(pairs)]
    gone = plan_eviction(seeds, limit)
    left = sum(s.size for s in seeds if s.folder.name not in gone)
    assert left <= limit
    if gone:
        last = next(s for s in seeds if s.folder.name == gone[-1])
        assert left + last.size > limit
