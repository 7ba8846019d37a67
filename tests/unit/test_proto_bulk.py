"""The books about slots of shared memory, alone and two sides together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_proto import bulk, limits
from insula_proto.bulk import Slots
from insula_proto.errors import LocalProtocolError, RemoteProtocolError


def all_of(slots: Slots) -> list[int]:
    found = []
    while slot := slots.reserve():
        found.append(slot)
    return found


def test_sides_have_slots_of_their_own_and_none_covers_the_token() -> None:
    host, guest = all_of(Slots(is_host=True)), all_of(Slots(is_host=False))
    assert not set(host) & set(guest)
    for slot in host + guest:
        assert bulk.TOKEN_SIZE <= bulk.offset(slot) <= limits.BULK_SIZE - bulk.SLOT_SIZE


def test_slot_is_lent_once_until_it_comes_back() -> None:
    slots = Slots(is_host=True)
    slot = slots.reserve()
    slots.lend(slot, 7)
    assert slots.lent_for(7) == 1
    assert slots.lent_for(9) == 0
    with pytest.raises(LocalProtocolError):
        slots.lend(slot, 7)
    assert slot not in all_of(slots)
    assert slots.returned(slot) == 7
    assert slots.lent_for(7) == 0
    assert all_of(slots) == [slot]


def test_slot_that_was_not_reserved_cannot_be_lent() -> None:
    with pytest.raises(LocalProtocolError):
        Slots(is_host=True).lend(9, 7)


def test_slot_that_is_not_needed_is_there_again_and_one_of_another_epoch_is_not() -> None:
    slots = Slots(is_host=False)
    slot = slots.reserve()
    slots.release(slot)
    slots.release(slot)
    found = all_of(slots)
    assert found.count(slot) == 1


@pytest.mark.parametrize("slot", [0, 8, 15, 16, 1 << 31])
def test_peer_that_lends_what_is_not_its_own_is_refused(slot: int) -> None:
    """MC-12: a guest cannot have the host read where it did not write itself."""
    with pytest.raises(RemoteProtocolError):
        Slots(is_host=True).take(slot, 1)


@pytest.mark.parametrize("size", [0, bulk.SLOT_SIZE + 1, 1 << 31])
def test_peer_that_lends_more_than_a_slot_has_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        Slots(is_host=True).take(1, size)


def test_peer_that_lends_a_slot_twice_or_returns_what_it_has_not_is_refused() -> None:
    slots = Slots(is_host=True)
    slots.take(1, 5)
    with pytest.raises(RemoteProtocolError):
        slots.take(1, 5)
    assert slots.give_back(1)
    assert not slots.give_back(1)
    slots.take(1, 5)
    with pytest.raises(RemoteProtocolError):
        slots.returned(9)


@given(st.lists(st.tuples(st.sampled_from(["reserve", "lend", "release", "return"]), st.integers(0, 7)), max_size=60))
def test_any_order_no_slot_is_lost_or_in_two_places(actions: list[tuple[str, int]]) -> None:
    slots, peer = Slots(is_host=True), Slots(is_host=False)
    total = set(all_of(Slots(is_host=True)))
    reserved: list[int] = []
    lent: list[int] = []
    for action, choice in actions:
        if action == "reserve" and (slot := slots.reserve()):
            assert slot not in reserved + lent
            reserved.append(slot)
        elif action == "lend" and reserved:
            slot = reserved.pop(choice % len(reserved))
            slots.lend(slot, choice)
            peer.take(slot, 1 + choice)
            lent.append(slot)
        elif action == "release" and reserved:
            slots.release(reserved.pop(choice % len(reserved)))
        elif action == "return" and lent:
            slot = lent.pop(choice % len(lent))
            assert peer.give_back(slot)
            slots.returned(slot)
    assert set(all_of(slots)) | set(reserved) | set(lent) == total
