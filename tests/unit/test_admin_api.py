"""The table of methods: complete as published, and the page made of it is current."""

from __future__ import annotations

import re
from pathlib import Path

from insula.admin.api import INTERNAL_METHODS, METHODS, document
from insula.admin.call import Destination, Presence, Right, Scope, Stream

PAGE = Path(__file__).parents[2] / "docs" / "protocols" / "admin-methods.md"


def test_page_is_current() -> None:
    """Write it anew with: make docs"""
    assert PAGE.read_text() == document()


def test_names_are_method_names_without_argument() -> None:
    for name in (*METHODS, *INTERNAL_METHODS):
        assert re.fullmatch(r"(admin|insula|internal)(\.[A-Za-z_]+)+", name)


def test_no_qube_can_be_granted_what_is_ours_or_internal() -> None:
    for name, method in (*METHODS.items(), *INTERNAL_METHODS.items()):
        assert (method.scope is Scope.INTERNAL) == (not name.startswith("admin."))


def test_methods_that_read_take_no_payload() -> None:
    for method in METHODS.values():
        if method.right is Right.READ:
            assert method.payload is Presence.NONE, method.name


def test_published_streams_take_no_payload_and_any_qube() -> None:
    all_streams = [method for method in METHODS.values() if isinstance(method.action, Stream)]
    streams = [method for method in all_streams if method.name.startswith("admin.")]
    assert {method.name for method in streams} == {"admin.Events", "admin.vm.Stats"}
    assert all(method.dest is Destination.ANY and method.payload is Presence.NONE for method in streams)
