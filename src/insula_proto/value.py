"""Frozen values without ``dataclasses``.

The agent runs under software emulation, where importing ``dataclasses`` (and ``inspect`` with it) costs more than
the whole rest of its start. Messages and events are therefore plain slotted classes over this base, which gives
them what a frozen dataclass has: equality by type and fields, a hash, a readable ``repr``, no assignment.
"""

from __future__ import annotations

_set = object.__setattr__
put = _set
"""Sets a field in the ``__init__`` of a class of which so many are made that ``_fill`` would show."""


class Value:
    """Base of messages and events. A subclass lists its fields in ``__slots__`` and passes all to ``_fill``."""

    __slots__: tuple[str, ...] = ()
    _names: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._names = cls._names + tuple(cls.__dict__.get("__slots__", ()))

    def _fill(self, **fields: object) -> None:
        for name, value in fields.items():
            _set(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self._names])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join([f"{name}={getattr(self, name)!r}" for name in self._names])
        return f"{type(self).__name__}({fields})"
