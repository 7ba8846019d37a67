"""The store: what is committed is what is read, all or nothing, and a bad file is never made worse (MC-63)."""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.klass import Klass
from insula.model.labels import Label
from insula.model.properties import set_property
from insula.model.qube import Qube
from insula.model.system import PoolConfig, System
from insula.store import store as store_module
from insula.store.copies import good_copy
from insula.store.errors import StoreDamaged, StoreError, StoreLocked, StoreTooNew
from insula.store.migrations import LATEST
from insula.store.rows import read_system, write_difference
from insula.store.store import MAX_MACHINE_RECORD, Store
from insula.testing.strategies import any_text, systems
from insula.testing.systems import DISPOSABLE, NET, TEMPLATE, WORK, all_halted, small_system, with_qube_of

NORMAL, FULL = 1, 2
"""Values of SQLite's ``synchronous``."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "system.db"


@pytest.fixture
def filled(path: Path) -> Path:
    """A closed store with the small system in it."""
    with Store.open(path) as store:
        store.commit(small_system())
    return path


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def execute(path: Path, *statements: str) -> None:
    """Change a state file behind the store's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def read(path: Path) -> System:
    with Store.open(path) as opened:
        assert opened.recovery is None
        return opened.system


def test_new_store_has_dom0_and_is_private(path: Path) -> None:
    with Store.open(path) as store:
        assert store.is_new
        assert store.system == System()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    with Store.open(path) as store:
        assert not store.is_new


def test_committed_system_is_current_and_read_back(path: Path) -> None:
    with Store.open(path) as store:
        store.commit(small_system())
        assert store.system == small_system()
    assert read(path) == small_system()


def test_file_is_in_wal_mode_and_synced_fully(store: Store) -> None:
    pragmas = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]
    assert store._connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_volumes_keep_their_order(filled: Path) -> None:
    assert list(read(filled).get(WORK).volumes) == ["root", "private", "volatile", "kernel"]


@settings(max_examples=30)
@given(st.lists(systems(), min_size=1, max_size=3))
def test_any_sequence_of_systems_is_read_back_equal(sequence: list[System]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "system.db"
        for system in sequence:
            with Store.open(path) as store:
                store.commit(system)
                assert store.system is system
        again = read(path)
        assert again == sequence[-1]
        for name, qube in again.qubes.items():
            kinds = {prop: type(value) for prop, value in sequence[-1].qubes[name].properties.items()}
            stored = {prop: type(value) for prop, value in qube.properties.items()}
            assert {p: k for p, k in kinds.items() if k in (int, bool)} == {
                p: k for p, k in stored.items() if k in (int, bool)
            }


CHANGES: dict[str, Callable[[System], System]] = {
    "qube added": lambda s: with_qube_of(s, Klass.REMOTEVM, "far", relayvm=NET),
    "qube removed": lambda s: s.without_qube(DISPOSABLE),
    "qube replaced by one with its number": lambda s: s.without_qube(DISPOSABLE).with_qube(
        Qube(TEMPLATE.__class__("heir"), Klass.STANDALONEVM, s.get(DISPOSABLE).qid, s.get(DISPOSABLE).uuid, "red")
    ),
    "property set": lambda s: set_property(s, WORK, "memory", 800, all_halted),
    "property none": lambda s: set_property(s, WORK, "netvm", None, all_halted),
    "property removed": lambda s: s.with_qube(s.get(NET).without_property("netvm")),
    "global set": lambda s: set_property(s, None, "stats_interval", 9, all_halted),
    "global removed": lambda s: s.without_property("default_netvm"),
    "feature, tag and notes": lambda s: s.with_qube(
        s.get(WORK).with_feature("a", "").with_tags(["t"]).with_notes("grün\t\n")
    ),
    "label of qube": lambda s: s.with_qube(s.get(WORK).with_label("green")),
    "label added and used": lambda s: s.with_label(Label("pink", 1, 9)).with_qube(s.get(WORK).with_label("pink")),
    "label removed": lambda s: s.without_label("green"),
    "label recoloured": lambda s: replace(s, labels={**s.labels, "blue": Label("blue", 7, 6)}),
    "pool added": lambda s: s.with_pool(PoolConfig("fast", "reflink", {"a": "1", "b": "2"})),
    "pool options changed": lambda s: s.with_pool(PoolConfig("default", "qcow2", {"dir_path": "/other"})),
    "numbers exchanged": lambda s: s.with_qubes(
        [replace(s.get(WORK), qid=s.get(NET).qid), replace(s.get(NET), qid=s.get(WORK).qid)]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_is_kept_as_a_difference(filled: Path, change: str) -> None:
    with Store.open(filled) as store:
        after = CHANGES[change](store.system)
        assert after != store.system
        store.commit(after)
    assert read(filled) == after


def test_commit_writes_only_what_differs(store: Store) -> None:
    store.commit(small_system())
    before = store._connection.total_changes
    store.commit(store.system)
    assert store._connection.total_changes == before
    store.commit(set_property(store.system, None, "stats_interval", 9, all_halted))
    assert store._connection.total_changes == before + 1


def test_inconsistent_system_is_refused_and_nothing_changes(filled: Path) -> None:
    with Store.open(filled) as store:
        good = store.system
        with pytest.raises(StoreError, match="gone"):
            store.commit(good.with_qube(good.get(WORK).with_property("netvm", "gone")))
        with pytest.raises(StoreError, match="not text"):
            store.commit(good.with_qube(good.get(WORK).with_notes("\udcff")))
        assert store.system is good
    assert read(filled) == good


@pytest.mark.parametrize("field", ["vid", "pool option"])
def test_mc102_text_that_cannot_be_kept_is_refused_cleanly(store: Store, field: str) -> None:
    good = small_system()
    store.commit(good)
    if field == "vid":
        root = good.get(WORK).volumes["root"]
        bad = good.with_qube(good.get(WORK).with_volume(replace(root, vid="\udcff")))
    else:
        bad = good.with_pool(PoolConfig("p", "qcow2", {"dir_path": "\udcff"}))
    with pytest.raises(StoreError):
        store.commit(bad)
    assert store.system is good
    store.commit(good.without_qube(DISPOSABLE))


def test_failure_in_the_middle_of_a_commit_changes_nothing(filled: Path) -> None:
    with Store.open(filled) as store:
        good = store.system
        # The trigger stands for any error of the engine at the very last row.
        store._connection.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON tag BEGIN SELECT RAISE(FAIL, 'no more'); END")
        with pytest.raises(StoreError, match="no more"):
            store.commit(with_qube_of(good, Klass.STANDALONEVM, "new").with_qube(good.get(WORK).with_tags(["t"])))
        assert store.system is good
        store._connection.execute("DROP TRIGGER t")
        assert read_system(store._connection) == good
        store.commit(set_property(good, WORK, "memory", 500, all_halted))
    assert read(filled) == set_property(good, WORK, "memory", 500, all_halted)


def test_error_of_the_store_reaches_clients_under_a_name_they_know() -> None:
    assert StoreDamaged("x").wire_name == "QubesException"


# one writer


def test_second_store_on_the_same_file_is_refused(store: Store, path: Path) -> None:
    with pytest.raises(StoreLocked):
        Store.open(path)
    store.commit(small_system())


def test_closed_store_lets_the_next_one_in_and_can_be_closed_twice(path: Path) -> None:
    first = Store.open(path)
    first.close()
    first.close()
    with Store.open(path):
        pass


def test_failed_open_leaves_no_lock(filled: Path) -> None:
    good = filled.read_bytes()
    good_copy(filled).unlink()
    filled.write_bytes(b"rubbish" * 1000)
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            Store.open(filled)
    filled.write_bytes(good)
    assert read(filled) == small_system()


def test_folder_in_place_of_the_file_is_an_error_not_damage(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(path)
    assert path.is_dir()


# MC-63


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut": truncate,
    "one byte": lambda path: os.truncate(path, 1),
    "text instead of a database": lambda path: (path.write_text("{}" * 5000), None)[1],
    "pages overwritten": overwrite_middle,
    "foreign database": lambda path: execute(path, "PRAGMA application_id = 5"),
    "no version": lambda path: execute(path, "PRAGMA user_version = 0"),
    "unknown field": lambda path: execute(path, "ALTER TABLE qube ADD COLUMN extra TEXT"),
    "unknown table": lambda path: execute(path, "CREATE TABLE extra (x)"),
    "missing table": lambda path: execute(path, "DROP TABLE machine"),
    "missing field": lambda path: execute(path, "ALTER TABLE qube DROP COLUMN notes"),
    "invalid text": lambda path: execute(path, "UPDATE qube SET notes = CAST(x'ff41' AS TEXT) WHERE name = 'work'"),
    "unknown class": lambda path: execute(path, "UPDATE qube SET klass = 'MegaVM' WHERE name = 'work'"),
    "unknown property": lambda path: execute(path, "UPDATE qube_property SET name = 'x' WHERE name = 'dispid'"),
    "property of wrong kind": lambda path: execute(
        path, "UPDATE qube_property SET kind = 'str', value = 'x' WHERE name = 'dispid'"
    ),
    "invalid uuid": lambda path: execute(path, "UPDATE qube SET uuid = 'x' WHERE name = 'work'"),
    "reserved name": lambda path: execute(path, "UPDATE qube SET name = 'none' WHERE name = 'disp1234'"),
    "no dom0": lambda path: execute(path, "DELETE FROM qube WHERE name = 'dom0'"),
    "reference to nowhere": lambda path: execute(path, "DELETE FROM qube WHERE name = 'debian-12'"),
    "label to nowhere": lambda path: execute(path, "DELETE FROM label WHERE name = 'blue'"),
    "unknown volume": lambda path: execute(path, "UPDATE volume SET name = 'home' WHERE name = 'private'"),
    "flag that is none": lambda path: execute(path, "UPDATE volume SET rw = 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_mc63_last_good_copy_is_used_and_user_is_told(filled: Path, damage: str) -> None:
    DAMAGES[damage](filled)
    untouched = filled.read_bytes() if filled.exists() else None
    with Store.open(filled) as store:
        assert store.system == small_system()
        assert store.recovery is not None
        assert "last good copy" in str(store.recovery)
        assert not store.is_new
        if untouched is None:
            assert store.recovery.damaged is None
        else:
            assert store.recovery.damaged is not None
            assert store.recovery.damaged.read_bytes() == untouched
        store.commit(store.system.without_qube(DISPOSABLE))
    assert DISPOSABLE not in read(filled).qubes


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "missing"])
def test_mc63_damaged_file_without_copy_is_refused_and_kept(filled: Path, damage: str) -> None:
    DAMAGES[damage](filled)
    good_copy(filled).unlink()
    untouched = filled.read_bytes()
    with pytest.raises(StoreDamaged, match="no good copy"):
        Store.open(filled)
    assert filled.read_bytes() == untouched


def test_mc63_damaged_file_and_copy_are_refused_and_both_kept(filled: Path) -> None:
    for file in (filled, good_copy(filled)):
        truncate(file)
    untouched = [filled.read_bytes(), good_copy(filled).read_bytes()]
    with pytest.raises(StoreDamaged, match="both were kept"):
        Store.open(filled)
    assert [filled.read_bytes(), good_copy(filled).read_bytes()] == untouched


def test_mc63_newer_version_is_refused_untouched(filled: Path) -> None:
    execute(filled, f"PRAGMA user_version = {LATEST + 1}", "CREATE TABLE future (x)")
    untouched = [filled.read_bytes(), good_copy(filled).read_bytes()]
    with pytest.raises(StoreTooNew, match="newer version"):
        Store.open(filled)
    assert [filled.read_bytes(), good_copy(filled).read_bytes()] == untouched


def test_mc63_newer_version_in_the_journal_is_refused_untouched(filled: Path) -> None:
    wal = filled.with_name("system.db-wal")
    with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {LATEST + 1}")
        untouched = {filled: filled.read_bytes(), wal: wal.read_bytes()}
    # As after a power cut: closing has folded the journal into the file, so both are put back.
    for file, content in untouched.items():
        file.write_bytes(content)
    with pytest.raises(StoreTooNew):
        Store.open(filled)
    assert {file: file.read_bytes() for file in untouched} == untouched


def test_mc63_two_damages_in_a_row_keep_both_files(filled: Path) -> None:
    kept = []
    for _ in range(2):
        truncate(filled)
        with Store.open(filled) as store:
            assert store.recovery is not None
            kept.append(store.recovery.damaged)
    assert len(set(kept)) == 2
    assert all(file is not None and file.exists() for file in kept)


def test_mc63_journal_of_the_damaged_file_is_not_replayed_into_the_copy(path: Path) -> None:
    store = Store.open(path)
    store.commit(small_system())
    store.commit(set_property(store.system, WORK, "memory", 800, all_halted))
    # As after a power cut: the journal is there, and the file itself is damaged.
    wal = path.with_name("system.db-wal").read_bytes()
    copy = good_copy(path).read_bytes()
    store.close()
    good_copy(path).write_bytes(copy)
    path.with_name("system.db-wal").write_bytes(wal)
    path.write_bytes(b"x" * 8192)
    with Store.open(path) as again:
        assert again.recovery is not None
        assert again.system == small_system()


def test_which_qubes_exist_is_always_in_the_copy(path: Path) -> None:
    store = Store.open(path)
    store.commit(small_system())
    newer = with_qube_of(store.system, Klass.STANDALONEVM, "alone")
    store.commit(newer)
    copy = good_copy(path).read_bytes()
    store.close()
    good_copy(path).write_bytes(copy)
    truncate(path)
    with Store.open(path) as again:
        assert again.system == newer


def test_change_that_is_not_synced_does_not_wait_for_the_disk_and_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def remember(connection: sqlite3.Connection, before: System | None, after: System) -> None:
        modes.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        write_difference(connection, before, after)

    store = Store.open(path)
    monkeypatch.setattr(store_module, "write_difference", remember)
    store.commit(small_system(), is_synced=False)
    store.put_machine("work", {"pid": 1}, is_synced=False)
    newer = with_qube_of(store.system, Klass.STANDALONEVM, "alone")
    store.commit(newer)
    assert modes == [NORMAL, FULL]
    store.close()
    with Store.open(path) as again:
        assert again.system == newer
        assert again.machines() == {"work": {"pid": 1}}


def test_change_that_fails_is_synced_again_afterwards(filled: Path) -> None:
    with Store.open(filled) as store:
        with pytest.raises(StoreError):
            store.put_machine("work", {"text": "x" * MAX_MACHINE_RECORD}, is_synced=False)
        with pytest.raises(StoreError):
            store.put_machine("\ud800", {}, is_synced=False)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (FULL,)


def test_disposable_comes_and_goes_without_a_copy_that_somebody_waits_for(filled: Path) -> None:
    with Store.open(filled) as store:
        content = good_copy(filled).read_bytes()
        gone = store.system.without_qube(DISPOSABLE)
        store.commit(gone)
        assert good_copy(filled).read_bytes() == content
        store.commit(with_qube_of(gone, Klass.STANDALONEVM, "alone"))
        assert good_copy(filled).read_bytes() != content


def test_copy_is_replaced_in_one_step_never_overwritten(filled: Path) -> None:
    with Store.open(filled) as store, good_copy(filled).open("rb") as older:
        content = older.read()
        store.commit(with_qube_of(store.system, Klass.STANDALONEVM, "alone"))
        assert good_copy(filled).read_bytes() != content
        older.seek(0)
        assert older.read() == content


def test_interrupted_making_of_files_does_no_harm(filled: Path) -> None:
    for leftover in ("system.db.fresh", "system.db.fresh-wal", "system.db.good.new", "system.db.restored"):
        filled.with_name(leftover).write_bytes(b"half")
    assert read(filled) == small_system()
    truncate(filled)
    with Store.open(filled) as store:
        assert store.system == small_system()


# machines


def test_machine_records_are_kept_replaced_and_forgotten(path: Path) -> None:
    with Store.open(path) as store:
        assert store.machines() == {}
        store.put_machine(WORK, {"pid": 1, "spec": {"name": "work", "disks": ["a", None, True, 1.5]}})
        store.put_machine(NET, {"pid": 2})
        store.put_machine(NET, {"pid": 3})
        store.remove_machine("nobody")
    with Store.open(path) as store:
        expected = {
            "sys-net": {"pid": 3},
            "work": {"pid": 1, "spec": {"name": "work", "disks": ["a", None, True, 1.5]}},
        }
        assert store.machines() == expected
        store.remove_machine(WORK)
        assert list(store.machines()) == [NET]


def test_machine_record_outlives_its_qubes_configuration(store: Store) -> None:
    store.commit(small_system())
    store.put_machine(DISPOSABLE, {"pid": 1})
    store.commit(store.system.without_qube(DISPOSABLE))
    assert DISPOSABLE in store.machines()


def test_oversized_machine_record_is_refused(store: Store) -> None:
    with pytest.raises(StoreError):
        store.put_machine(WORK, {"x": "y" * 300_000})
    assert store.machines() == {}


@settings(max_examples=25)
@given(st.dictionaries(any_text, any_text | st.integers(-(2**53), 2**53) | st.booleans() | st.none(), max_size=5))
def test_any_machine_record_is_read_back_equal(record: dict[str, object]) -> None:
    with TemporaryDirectory() as folder, Store.open(Path(folder) / "system.db") as store:
        store.put_machine(WORK, record)
        assert store.machines() == {WORK: record}
