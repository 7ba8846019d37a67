"""The question and the three answers. Frozen; nothing here acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from insula.policy.errors import Location, Problem
from insula.policy.rules import Rule
from insula.policy.snapshot import Snapshot

DEFAULT_USER = "DEFAULT"
"""In an answer: whoever the target's default user is (qrexec §6, "Answer lines")."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call. All fields passed the grammar of the wire (MC-16); what they mean is asked here."""

    service: str
    argument: str
    """With its leading ``+``."""
    source: str
    """From the channel, never from the message (MC-18)."""
    target: str
    """As the caller named it; may be empty."""
    requested_source: str = ""
    """A RemoteVM that the source relays for; empty: none."""


class Reason(Enum):
    """Why a call is denied; the value is for people."""

    INVALID_POLICY = "the policy has problems, so nothing is allowed"
    RULE = "a rule denies it"
    NO_RULE = "no rule matches"
    BAD_SOURCE = "the caller is no qube"
    BAD_RELAY = "the caller does not relay for the qube it names"
    BAD_TARGET = "the target is no qube, and no token that a caller may use"
    NO_BASE = "the base of the disposable is not there, or makes no disposables"
    NO_DEFAULT_BASE = "the caller has no default_dispvm, or one that is not there"
    NO_TARGET = "neither the caller nor the rule names a target"
    LOOP = "a qube cannot call itself"
    NOT_RUNNING = "the target does not run, and the rule does not let it be started"
    NO_RELAY = "nothing relays calls to the remote target"
    NOTHING_TO_OFFER = "no target is left to choose from"
    NOT_OFFERED = "the target chosen is not among those offered"
    NOBODY_TO_ASK = "a rule asks, and nobody can be asked"
    CHANGED = "the caller or the target is not the qube it was when the question was asked"
    POLICY_CHANGED = "the policy was changed while the question was open"
    USER = "the user said no"


@dataclass(frozen=True, slots=True)
class Deny:
    reason: Reason
    notify: bool
    """Whether the user is told."""
    rule: Rule | None = None
    """The one that decided; None: none did."""
    problems: tuple[Problem, ...] = ()
    """Of an invalid policy."""

    @property
    def where(self) -> Location | None:
        return None if self.rule is None else self.rule.location


@dataclass(frozen=True, slots=True)
class Allow:
    rule: Rule
    request: Request
    target: str
    """As the answer spells it: a name, ``uuid:…``, ``dom0``, ``@dispvm:BASE``; for a remote target its relay."""
    target_uuid: str | None
    """``uuid:…`` or ``@dispvm:uuid:…``; None for dom0."""
    qube: str
    """Name of the qube meant: the target, the base of the disposable, or the RemoteVM behind the relay."""
    requested_target: str
    user: str | None
    """None: the target's default user."""
    autostart: bool
    notify: bool
    service: str | None = None
    """What the relay of a remote target is asked for, instead of the request's service."""
    objection: str | None = None
    """Why the call must not be made although the published answer allows it; whoever acts on the answer refuses."""

    @property
    def where(self) -> Location:
        return self.rule.location

    @property
    def policy_source(self) -> str | None:
        """The RemoteVM that calls, if one does; dom0 as a target is not told (as published)."""
        return self.request.requested_source or None if self.target_uuid is not None else None

    def response(self) -> dict[str, str]:
        """The published answer (qrexec §6, "Answer lines"), without order."""
        lines = {
            "result": "allow",
            "user": DEFAULT_USER if self.user is None else self.user,
            "target": self.target,
            "autostart": str(self.autostart),
            "requested_target": self.requested_target,
            "target_uuid": self.target_uuid,
            "policy_source": self.policy_source,
            "service": self.service,
        }
        return {key: value for key, value in lines.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Ask:
    rule: Rule
    request: Request
    targets: tuple[str, ...]
    """Sorted. The user chooses one of these, see :func:`insula.policy.engine.answer`."""
    default_target: str | None
    """Offered first; one of ``targets``."""
    requested_target: str
    snapshot: Snapshot = field(compare=False, repr=False)
    """The system when the question was asked."""

    @property
    def where(self) -> Location:
        return self.rule.location

    @property
    def user(self) -> str | None:
        return self.rule.user

    @property
    def autostart(self) -> bool:
        return self.rule.autostart

    @property
    def notify(self) -> bool:
        return self.rule.notify


Decision = Allow | Ask | Deny
