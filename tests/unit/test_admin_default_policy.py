from __future__ import annotations

from insula.admin import default_policy
from insula.admin.api import METHODS
from insula.admin.call import Scope
from insula.daemon.calls import default_policy as folder


def test_file_of_the_repository_is_current() -> None:
    assert (folder() / "90-admin.policy").read_text() == default_policy.document()


def test_every_method_for_qubes_is_listed_once_and_none_of_ours() -> None:
    listed = [line.split()[1] for line in default_policy.document().splitlines() if line.startswith("!")]
    assert len(listed) == len(set(listed))
    assert {name for name in listed if name.startswith("admin.")} == {
        method.name for method in METHODS.values() if method.scope is not Scope.INTERNAL
    }
