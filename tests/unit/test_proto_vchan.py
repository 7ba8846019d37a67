from __future__ import annotations

import pytest

from insula_proto.vchan import DEFAULT_FOLDER, MAX_PATH, Place


def test_of_empty_environment_is_domain_0_in_published_folder() -> None:
    place = Place.of({})
    assert (place.folder, place.own) == (DEFAULT_FOLDER, 0)
    assert place.served_by(42, 512) == "/var/run/vchan/vchan.42.0.512.sock"
    assert place.served_for(42, 513) == "/var/run/vchan/vchan.0.42.513.sock"


def test_of_both_ends_name_the_same_socket() -> None:
    host = Place.of({"VCHAN_SOCKET_DIR": "/d", "VCHAN_DOMAIN": "0"})
    guest = Place.of({"VCHAN_SOCKET_DIR": "/d", "VCHAN_DOMAIN": "7"})
    assert host.served_for(7, 513) == guest.served_by(0, 513)
    assert host.served_by(7, 513) == guest.served_for(0, 513)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "0x10", "²", "2147483648"])
def test_of_domain_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="VCHAN_DOMAIN"):
        Place.of({"VCHAN_DOMAIN": text})


def test_path_too_long_for_a_socket_is_refused() -> None:
    rest = len("/vchan.0.1.512.sock")
    assert len(Place("/" + "a" * (MAX_PATH - rest - 1)).served_for(1, 512)) == MAX_PATH
    with pytest.raises(ValueError, match="too long"):
        Place("/" + "a" * (MAX_PATH - rest)).served_for(1, 512)
    with pytest.raises(ValueError, match="too long"):
        Place("/" + "ä" * ((MAX_PATH - rest) // 2 + 1)).served_for(1, 512)
