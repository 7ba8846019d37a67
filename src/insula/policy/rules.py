"""A rule: who may call what where, and what is done then. Values only; text to rule is :mod:`insula.policy.syntax`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from insula.policy.errors import Location
from insula.policy.tokens import Token

ANY = "*"
"""For a service and for an argument."""


class Action(StrEnum):
    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"

    @property
    def default_notify(self) -> bool:
        """Whether the user is told of a call decided so, if the rule says nothing."""
        return self is Action.DENY


@dataclass(frozen=True, slots=True)
class Rule:
    location: Location = field(compare=False)
    service: str
    """A name, or ``*``."""
    argument: str
    """``+ARGUMENT`` (``+``: the empty one), or ``*``."""
    source: Token
    target: Token
    action: Action
    redirect: Token | None = None
    """``target=``: where the call goes instead, or the only choice offered."""
    default_target: Token | None = None
    """Of ``ask``: the choice offered first."""
    user: str | None = None
    """User the service runs as; None: the target's own default."""
    autostart: bool = True
    """Whether a halted target is started."""
    notify: bool = False
    source_key: str = field(init=False, compare=False, repr=False)
    target_key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Read once for every rule of every decision, so they are kept.
        object.__setattr__(self, "source_key", self.source.key)
        object.__setattr__(self, "target_key", self.target.key)

    def __str__(self) -> str:
        """The line, in the 5.0 syntax, with no parameter that says what is so anyway."""
        words = [self.service, self.argument, self.source.text, self.target.text, self.action.value]
        if self.redirect is not None:
            words.append(f"target={self.redirect}")
        if self.default_target is not None:
            words.append(f"default_target={self.default_target}")
        if self.user is not None:
            words.append(f"user={self.user}")
        if not self.autostart:
            words.append("autostart=no")
        if self.notify != self.action.default_notify:
            words.append(f"notify={'yes' if self.notify else 'no'}")
        return " ".join(words)
