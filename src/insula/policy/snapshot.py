"""What rules may ask about qubes: one frozen value, made from the model's System by :mod:`insula.policy.system_facts`.

For every qube and every target a call may have, the snapshot knows the *keys* that mean it: the tokens of a rule that
match it, as text. A rule matches if its two keys are among those of the source and of the target. Which token means
what is decided here and nowhere else (qrexec §6, "Matching").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from insula.model.frozen import freeze
from insula.model.klass import Klass
from insula.model.names import ADMIN_NAME
from insula.model.state import PowerState
from insula.policy.tokens import ADMIN_KEY, ADMIN_SPELLINGS, DISPVM, DISPVM_OF, Kind, Token

UUID_PREFIX = "uuid:"
_ANYTHING = frozenset({"*"})
_NOT_ADMIN = frozenset({"*", "@anyvm"})
_MAX_EXPANSIONS = 4096
"""Tokens whose qubes are kept at hand."""


@dataclass(frozen=True, slots=True)
class QubeFacts:
    """What policy knows of a qube (the fields of ``internal.GetSystemInfo``, admin-api)."""

    name: str
    uuid: str = ""
    """Empty: unknown."""
    klass: str = Klass.APPVM.value
    tags: frozenset[str] = frozenset()
    default_dispvm: str | None = None
    """A name; whether there is such a qube is not promised."""
    template_for_dispvms: bool = False
    power_state: str = PowerState.HALTED.value
    internal: bool = False
    """Not offered to people as a target."""
    guivm: str | None = None
    icon: str = ""
    label: str = ""
    relayvm: str | None = None
    """Of a RemoteVM: the qube that carries calls to it."""
    transport_rpc: str | None = None
    """Of a RemoteVM: the service of that qube which does so."""

    @property
    def is_admin(self) -> bool:
        return self.name in ADMIN_SPELLINGS

    @property
    def is_running(self) -> bool:
        return self.power_state == PowerState.RUNNING.value

    @property
    def alias(self) -> str:
        """``uuid:UUID``."""
        return UUID_PREFIX + self.uuid


class Snapshot:
    """Facts about all qubes at one moment. Nothing in it changes."""

    def __init__(self, qubes: Iterable[QubeFacts]) -> None:
        """:raise ValueError: a name that is a token or a uuid, or two qubes of one name or uuid."""
        self._qubes = freeze({qube.name: qube for qube in qubes})
        self._found: dict[str, QubeFacts] = {}
        for qube in self._qubes.values():
            if not qube.name or qube.name == "*" or qube.name.startswith(("@", UUID_PREFIX)):
                raise ValueError(f"{qube.name!a} is no name of a qube")
            for key in (qube.name, *((qube.alias,) if qube.uuid else ())):
                if key in self._found:
                    raise ValueError(f"two qubes are called {key!a}")
                self._found[key] = qube
        admin = self._qubes.get(ADMIN_NAME)
        if admin is not None:
            self._found.update(dict.fromkeys(ADMIN_SPELLINGS, admin))
        self._keys = {text: _keys(qube) for text, qube in self._found.items()}
        self._keys[ADMIN_KEY] = _ANYTHING | {ADMIN_KEY}
        self._expansions: dict[str, frozenset[str]] = {}
        internal = frozenset(name for name, qube in self._qubes.items() if qube.internal)
        self.internal_targets = internal | {DISPVM_OF + name for name in internal}
        """Never offered to people."""

    @property
    def qubes(self) -> Mapping[str, QubeFacts]:
        return self._qubes

    def find(self, text: str) -> QubeFacts | None:
        """By name, ``uuid:…``, or a spelling of dom0."""
        return self._found.get(text)

    def base(self, text: str) -> QubeFacts | None:
        """The qube of ``@dispvm:BASE``. dom0 under its token is none."""
        return None if text.startswith("@") else self._found.get(text)

    # keys

    def source_keys(self, source: str) -> frozenset[str]:
        """Keys of a caller. One unknown is matched by its name, ``*`` and ``@anyvm``."""
        found = self._keys.get(source)
        if found is not None:
            return found
        if source in ADMIN_SPELLINGS:
            return self._keys[ADMIN_KEY]
        return _NOT_ADMIN | {source}

    def qube_keys(self, text: str) -> frozenset[str] | None:
        """Keys of a target that is a qube or dom0; None if there is none of that name."""
        found = self._keys.get(text)
        if found is None and text in ADMIN_SPELLINGS:
            return self._keys[ADMIN_KEY]
        return found

    def disposable_keys(self, base: QubeFacts) -> frozenset[str]:
        """Keys of the target ``@dispvm:BASE``."""
        return _NOT_ADMIN | {DISPVM_OF + base.name, DISPVM_OF + base.alias} | _base_tags(base)

    def default_disposable_keys(self, base_name: str | None) -> frozenset[str]:
        """Keys of the target ``@dispvm`` for a caller whose ``default_dispvm`` is ``base_name``.

        As published, the base is compared by name only, and need not be one (see :meth:`disposable_keys`).
        """
        keys = _NOT_ADMIN | {DISPVM}
        if base_name is None:
            return keys
        base = self._qubes.get(base_name)
        return keys | {DISPVM_OF + base_name} | (frozenset() if base is None else _base_tags(base))

    # targets offered to people

    def expansion(self, token: Token) -> frozenset[str]:
        """Targets that a rule's token stands for, when a person chooses: names, ``@dispvm``, ``@dispvm:NAME``,
        and dom0: as ``@adminvm`` for that token, else by its name. These two are told apart, as published: ``@tag:x
        deny`` does not take away what ``@adminvm ask`` offers.

        :raise LookupError: ``@dispvm:BASE`` of a base that is not there.
        """
        found = self._expansions.get(token.text)
        if found is None:
            found = frozenset(self._expand(token))
            if len(self._expansions) < _MAX_EXPANSIONS:
                self._expansions[token.text] = found
        return found

    def _expand(self, token: Token) -> Iterable[str]:
        match token.kind:
            case Kind.ANYTHING | Kind.ANYVM:
                names = {name for name, qube in self._qubes.items() if token.kind is Kind.ANYTHING or not qube.is_admin}
                bases = {DISPVM_OF + name for name, qube in self._qubes.items() if qube.template_for_dispvms}
                return names | bases | {DISPVM}
            case Kind.ADMIN:
                return {ADMIN_KEY if token.text == ADMIN_KEY else str(ADMIN_NAME)}
            case Kind.NAME:
                qube = self._found.get(token.text)
                return set() if qube is None else {qube.name}
            case Kind.TYPE | Kind.TAG:
                return {name for name in self._qubes if token.text in self._keys[name]}
            case Kind.DISPVM_TAG:
                return {DISPVM_OF + name for name, qube in self._qubes.items() if token.text in _base_tags(qube)}
            case Kind.DISPVM_OF:
                base = self.base(token.base)
                if base is None:
                    raise LookupError(token.base)
                return {DISPVM_OF + base.name} if base.template_for_dispvms else set()
            case Kind.DISPVM:
                return {DISPVM}
            case Kind.DEFAULT:
                return set()


def _keys(qube: QubeFacts) -> frozenset[str]:
    keys = {"*", f"@type:{qube.klass}", *(f"@tag:{tag}" for tag in qube.tags)}
    if qube.is_admin:
        return frozenset(keys | {ADMIN_KEY})
    return frozenset(keys | {"@anyvm", qube.name} | ({qube.alias} if qube.uuid else set()))


def _base_tags(base: QubeFacts) -> frozenset[str]:
    if not base.template_for_dispvms:
        return frozenset()
    return frozenset(f"{DISPVM_OF}@tag:{tag}" for tag in base.tags)
