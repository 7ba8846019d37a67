"""Answers of the server as values; what is not as published gives one clear error."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.admin import answers
from insula.admin.answers import MalformedAnswer, PropertyValue, QubeRow
from insula.model.property_text import list_line
from insula.model.property_types import PropertyType, Resolved
from insula.model.state import PowerState


def test_qubes_with_unknown_further_keys_are_read() -> None:
    line = b"work class=AppVM state=Running uuid=00000000-0000-0000-0000-000000000002 more=1\n"
    assert answers.parse_qubes(line) == [QubeRow("work", "AppVM", PowerState.RUNNING, UUID(int=2))]


def test_property_value_may_hold_anything() -> None:
    assert answers.parse_property("p", b"default=False type=str a b=c\n") == PropertyValue("p", False, "str", "a b=c\n")
    assert answers.parse_property("p", b"default=True type=vm ") == PropertyValue("p", True, "vm", "")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_all_properties_survive_their_escaping(value: str) -> None:
    line = list_line("p", Resolved(value, is_default=False, type=PropertyType.STR))
    assert answers.parse_properties(line.encode()) == [PropertyValue("p", False, "str", value)]


def test_volume_without_the_optional_keys_is_read() -> None:
    text = (
        b"pool=p\nvid=v\nsize=1\nusage=2\nrw=True\nsource=\npath=\nsave_on_stop=True\nsnap_on_start=False\n"
        b"revisions_to_keep=-1\n"
    )
    info = answers.parse_volume(text)
    assert (info.size, info.revisions_to_keep, info.ephemeral, info.is_outdated) == (1, -1, False, False)


def test_pool_without_size_is_read() -> None:
    info = answers.parse_pool(b"dir_path=/a=b\ndriver=d\nname=n\n")
    assert (info.name, info.driver, info.config, info.size, info.usage) == ("n", "d", {"dir_path": "/a=b"}, None, None)


@pytest.mark.parametrize(
    ("parse", "answer"),
    [
        (answers.parse_lines, b"no newline"),
        (answers.parse_lines, b"\xff\n"),
        (answers.parse_qubes, b"work class=AppVM state=Running\n"),
        (answers.parse_qubes, b"work class=AppVM state=Happy uuid=00000000-0000-0000-0000-000000000002\n"),
        (answers.parse_qubes, b"work class=AppVM state=Running uuid=2\n"),
        (answers.parse_qubes, b"work class=A class=B state=Running uuid=00000000-0000-0000-0000-000000000002\n"),
        (answers.parse_qubes, b"\n\n"),
        (answers.parse_current_state, b""),
        (answers.parse_current_state, b"mem=x mem_static_max=0 cputime=0 power_state=Halted"),
        (answers.parse_properties, b"memory 400\n"),
        (answers.parse_volume, b"pool=p\n"),
        (answers.parse_pool, b"name=n\n"),
    ],
)
def test_malformed_answer_is_named_as_such(parse: Callable[[bytes], object], answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        parse(answer)
