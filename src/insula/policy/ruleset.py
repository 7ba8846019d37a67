"""A policy as it is used: its rules in order, findable by call; or its problems, and then it denies everything."""

from __future__ import annotations

from collections.abc import Iterable

from insula.policy.errors import PolicySyntaxError, Problem
from insula.policy.rules import ANY, Rule

_MAX_INDEXED = 1024
"""Calls whose rules are kept at hand. Only calls named in rules count, so guests cannot fill it with invented names."""


class Policy:
    """One complete version of the policy. Nothing in it changes: a call is judged by one version whole (MC-30)."""

    def __init__(self, rules: Iterable[Rule], problems: Iterable[Problem] = (), files: Iterable[str] = ()) -> None:
        """:param files: labels of the top-level files, in order."""
        self._problems = tuple(problems)
        self._rules = () if self._problems else tuple(rules)
        self._files = tuple(files)
        self._places: dict[tuple[str, str], list[int]] = {}
        """Service and argument, as rules write them → where these rules stand."""
        for place, rule in enumerate(self._rules):
            self._places.setdefault((rule.service, rule.argument), []).append(place)
        self._services = frozenset(rule.service for rule in self._rules)
        self._index: dict[tuple[str, str], tuple[Rule, ...]] = {}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """First match decides. Empty if there are problems."""
        return self._rules

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._problems

    @property
    def files(self) -> tuple[str, ...]:
        return self._files

    def check(self) -> None:
        """:raise PolicySyntaxError: it has problems."""
        if self._problems:
            raise PolicySyntaxError(self._problems)

    def candidates(self, service: str, argument: str) -> tuple[Rule, ...]:
        """Rules for this call, in order, whoever calls whom."""
        # Calls that no rule names share an entry, under words that no call can have.
        if service not in self._services:
            key = (ANY, ANY)
        elif (service, argument) in self._places:
            key = (service, argument)
        else:
            key = (service, ANY)
        found = self._index.get(key)
        if found is None:
            calls = {key, (key[0], ANY), (ANY, ANY)}
            places = sorted(place for call in calls for place in self._places.get(call, ()))
            found = tuple(self._rules[place] for place in places)
            if len(self._index) < _MAX_INDEXED:
                self._index[key] = found
        return found
