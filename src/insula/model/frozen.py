"""Immutable mappings for frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def freeze(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Return a read-only copy; one that is read-only already is returned as it is."""
    if isinstance(mapping, MappingProxyType):
        return mapping
    return MappingProxyType(dict(mapping))


def with_item(mapping: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    """Return a read-only copy in which ``key`` has ``value``; the order of other keys stays."""
    return MappingProxyType({**mapping, key: value})


def without_item(mapping: Mapping[K, V], key: K) -> Mapping[K, V]:
    """Return a read-only copy without ``key``; absent is fine."""
    return MappingProxyType({k: v for k, v in mapping.items() if k != key})
