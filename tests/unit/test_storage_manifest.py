from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.block import LayerFormat
from insula.storage import manifest as m
from insula.storage.pool import NoSuchRevision, StorageError

VID = "qubes/work/private"
NOW = 1_790_000_000.0


def layer(number: int, size: int = 1024) -> m.Layer:
    kind = LayerFormat.QCOW2 if number else LayerFormat.RAW
    return m.Layer(f"{number:016x}.{kind.value}", kind, size)


def chain(*numbers: int) -> m.Chain:
    return tuple(layer(number) for number in numbers)


def manifest(*chains: m.Chain, dirty: str | None = None) -> m.Manifest:
    made = m.first_manifest(VID, chains[0], 1024, NOW)
    for one in chains[1:]:
        made = made.extended(one, 1024, m.REVISIONS_MAX, NOW)
    return msgspec.structs.replace(made, dirty=dirty)


def names(*numbers: int) -> set[str]:
    return {layer(number).file for number in numbers}


# Identifiers


@pytest.mark.parametrize("vid", ["a", "qubes/work/private", "qubes/a-b_c.d/root", "x" * 200])
def test_vid_of_the_grammar_accepted(vid: str) -> None:
    assert m.check_vid(vid) == vid


@given(st.text(max_size=30))
def test_accepted_vid_never_leaves_its_folder(text: str) -> None:
    try:
        m.check_vid(text)
    except StorageError:
        return
    parts = text.split("/")
    assert all(part and not part.startswith((".", "-")) and part.isascii() for part in parts)


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=20))
def test_revision_ids_sort_as_made_whatever_the_clock_does(times: list[float]) -> None:
    made = [""]
    for now in times:
        made.append(m.next_revision_id(made[-1], now))
    ids = made[1:]
    assert ids == sorted(set(ids))
    assert all(set(one) <= set("0123456789T-") for one in ids)


def test_revision_id_tells_the_second() -> None:
    assert m.next_revision_id("", 1_795_428_900.9) == "20261123T101500-000001"
    assert m.next_revision_id("20261123T101500-000001", 1_795_428_900.9) == "20261123T101500-000002"
    assert m.next_revision_id("20271123T101500-000009", 1_795_428_900.9) == "20271123T101500-000010"


# Changes


def test_commit_adds_a_revision_and_closes() -> None:
    before = manifest(chain(0), dirty=layer(1).file)
    after = before.extended(chain(0, 1), 1024, 1, NOW + 1)
    assert after.dirty is None
    assert after.newest.chain == chain(0, 1)
    assert [revision.id for revision in after.older()] == [before.newest.id]
    assert after.find(before.newest.id).chain == chain(0)


def test_newest_or_dropped_revision_is_not_found() -> None:
    first = manifest(chain(0))
    after = first.extended(chain(0, 1), 1024, 0, NOW)
    for revision_id in (after.newest.id, first.newest.id):
        with pytest.raises(NoSuchRevision):
            after.find(revision_id)


def test_files_are_those_of_all_revisions_and_the_overlay() -> None:
    assert manifest(chain(0, 1), chain(2), dirty=layer(3).file).files == names(0, 1, 2, 3)


def test_resize_changes_the_newest_only() -> None:
    after = manifest(chain(0), chain(0, 1)).resized(4096)
    assert [revision.size for revision in after.revisions] == [1024, 4096]


# Folding


def test_layer_no_revision_shows_is_merged() -> None:
    fold = m.plan_fold(manifest(chain(0, 1, 2)), set(), set())
    assert fold == m.Merge(below=(), lower=layer(0), upper=layer(1))


def test_layer_that_a_revision_shows_is_kept() -> None:
    assert m.plan_fold(manifest(chain(0), chain(0, 1)), set(), set()) is None
    fold = m.plan_fold(manifest(chain(0), chain(0, 1, 2)), set(), set())
    assert fold == m.Merge(below=chain(0), lower=layer(1), upper=layer(2))


def test_layer_two_chains_continue_differently_is_kept() -> None:
    assert m.plan_fold(manifest(chain(0, 1), chain(0, 2)), set(), set()) is None


@pytest.mark.parametrize("number", [0, 1])
def test_layer_in_use_or_shared_is_not_merged(number: int) -> None:
    planned = manifest(chain(0, 1))
    assert m.plan_fold(planned, names(number), set()) is None
    assert m.plan_fold(planned, set(), names(number)) is None


def test_active_volume_is_not_folded() -> None:
    assert m.plan_fold(manifest(chain(0, 1), dirty=layer(2).file), set(), set()) is None


def test_long_shared_start_is_flattened_unless_in_use() -> None:
    long = chain(*range(m.LAYERS_WANTED + 1))
    planned = manifest(long)
    everything = names(*range(m.LAYERS_WANTED + 1))
    assert m.plan_fold(planned, set(), everything) == m.Flatten(long)
    assert m.plan_fold(planned, names(3), everything) is None
    assert m.plan_fold(manifest(long[:-1]), set(), everything) is None


def test_flattening_stops_where_revisions_part() -> None:
    long = chain(*range(m.LAYERS_WANTED + 1))
    planned = manifest(long[:5], long)
    fold = m.plan_fold(planned, set(), planned.files)
    assert fold == m.Flatten(long[:5])
    after = planned.flattened(fold, layer(0x99))
    assert after.revisions[0].chain == (layer(0x99),)
    assert after.newest.chain == (layer(0x99), *long[5:])


def test_merge_renames_in_every_chain_and_takes_the_larger_size() -> None:
    before = manifest((layer(0), layer(1, 2048), layer(2)), (layer(0), layer(1, 2048), layer(2), layer(3)))
    fold = m.Merge(below=(), lower=layer(0), upper=layer(1, 2048))
    after = before.merged(fold)
    assert after.revisions[0].chain == (layer(0, 2048), layer(2))
    assert after.newest.chain == (layer(0, 2048), layer(2), layer(3))


@dataclass
class Tree:
    """Chains as commits and reverts make them."""

    chains: list[m.Chain]
    next_number: int = 1


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree([chain(0)])
    for parent in draw(st.lists(st.integers(0, 30), max_size=12)):
        tree.chains.append((*tree.chains[parent % len(tree.chains)], layer(tree.next_number)))
        tree.next_number += 1
    return tree


def view(one: m.Chain, disk: dict[str, dict[int, str]]) -> dict[int, str]:
    seen: dict[int, str] = {}
    for each in one:
        seen |= disk[each.file]
    return seen


@given(trees(), st.integers(0, 3), st.data())
def test_folding_to_the_end_changes_no_view_even_half_way(tree: Tree, keep: int, data: st.DataObject) -> None:
    """Blocks as a small model: each layer has some; a merge copies the upper one's down, one at a time."""
    blocks = st.dictionaries(st.integers(0, 5), st.text("abc", min_size=1, max_size=3), max_size=5)
    disk = {layer(number).file: data.draw(blocks) for number in range(tree.next_number)}
    planned = manifest(*tree.chains).trimmed(keep)
    views = [view(revision.chain, disk) for revision in planned.revisions]
    while (fold := m.plan_fold(planned, set(), set())) is not None:
        assert isinstance(fold, m.Merge)
        for block, value in disk[fold.upper.file].items():
            disk[fold.lower.file][block] = value
            assert [view(revision.chain, disk) for revision in planned.revisions] == views
        planned = planned.merged(fold)
        del disk[fold.upper.file]
        assert [view(revision.chain, disk) for revision in planned.revisions] == views
    assert len(planned.files) <= 2 * len(planned.revisions)


# On the disk


@given(trees(), st.booleans())
def test_manifest_read_back_is_the_one_written(tree: Tree, is_dirty: bool) -> None:
    written = manifest(*tree.chains, dirty=layer(0xFF).file if is_dirty else None)
    assert m.decode(m.encode(written), VID) == written


def changed(**fields: Any) -> Callable[[Any], Any]:
    return lambda record: record | fields


def in_revision(**fields: Any) -> Callable[[Any], Any]:
    return lambda record: record | {"revisions": [record["revisions"][0] | fields]}


def in_layer(**fields: Any) -> Callable[[Any], Any]:
    def damage(record: Any) -> Any:
        return in_revision(chain=[record["revisions"][0]["chain"][0] | fields])(record)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        changed(version=0),
        changed(version=2),
        changed(version="1"),
        changed(vid="qubes/other/private"),
        changed(extra=1),
        changed(revisions=[]),
        changed(dirty="../x.qcow2"),
        in_revision(extra=1),
        in_revision(id=""),
        in_revision(id="today-1"),
        in_revision(size=0),
        in_revision(size=1000),
        in_revision(size=2**60),
        in_revision(chain=[]),
        in_layer(extra=1),
        in_layer(file="/etc/passwd"),
        in_layer(file="../0000000000000000.raw"),
        in_layer(format="vmdk"),
        in_layer(format="qcow2"),
        lambda record: record | {"revisions": record["revisions"] * 2},
        lambda record: [record],
        lambda record: None,
    ],
)
def test_record_that_contradicts_itself_refused(damage: Callable[[Any], Any]) -> None:
    record = msgspec.json.decode(m.encode(manifest(chain(0))))
    with pytest.raises(StorageError):
        m.decode(msgspec.json.encode(damage(record)), VID)


@pytest.mark.parametrize("size", [0, -512, 513, m.SIZE_MAX + 512])
def test_record_with_a_layer_of_impossible_size_refused(size: int) -> None:
    record = msgspec.json.decode(m.encode(manifest(chain(0))))
    record["revisions"][0]["chain"][0]["size"] = size
    with pytest.raises(StorageError, match="size"):
        m.decode(msgspec.json.encode(record), VID)


def test_deeply_nested_record_refused() -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        m.decode(b'{"version":1,"vid":' + b"[" * 100_000, VID)


@given(st.binary(max_size=200))
def test_any_bytes_as_record_raise_storage_error_only(data: bytes) -> None:
    with pytest.raises(StorageError):
        m.decode(data, VID)


@given(st.integers(0, 400), st.integers(0, 255))
def test_record_with_a_changed_byte_is_refused_or_consistent(position: int, byte: int) -> None:
    data = bytearray(m.encode(manifest(chain(0), chain(0, 1))))
    data[position % len(data)] = byte
    try:
        read = m.decode(bytes(data), VID)
    except StorageError:
        return
    assert m.decode(m.encode(read), VID) == read


def test_record_larger_than_the_limit_refused() -> None:
    with pytest.raises(StorageError, match="larger"):
        m.decode(b" " * (m.MANIFEST_MAX + 1), VID)


def test_largest_record_there_can_be_is_below_the_limit() -> None:
    long = chain(*range(m.LAYERS_MAX + 1))
    assert len(m.encode(manifest(*[long] * (m.REVISIONS_MAX + 1)))) < m.MANIFEST_MAX
