import base64
import hashlib

from insula.model.services import config_keys, persist_keys, service_keys
from insula.testing.systems import WORK, small_system

QUBE = small_system().get(WORK)


def digest_of(name: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")


def test_service_is_one_or_zero() -> None:
    qube = QUBE.with_feature("service.cups", "1").with_feature("service.crond", "").with_feature("service.x", "0")
    assert service_keys(qube) == {"/qubes-service/cups": "1", "/qubes-service/crond": "0", "/qubes-service/x": "1"}


def test_application_service_has_its_hash_as_well() -> None:
    keys = service_keys(QUBE.with_feature("service.app-dispvm.org.gnome.Evince", "1"))
    digest = digest_of("org.gnome.Evince")
    assert keys == {"/qubes-service/app-dispvm.org.gnome.Evince": "1", f"/hash-app-dispvm/{digest}": "org.gnome.Evince"}


def test_application_whose_name_is_longer_than_a_key_is_told_by_its_hash_alone() -> None:
    name = "long-name" + 28 * "e"
    keys = service_keys(QUBE.with_feature(f"service.app-dispvm.{name}", "1"))
    assert keys == {"/hash-app-dispvm/" + digest_of(name): name, f"/qubes-service/app-dispvm.{name}": "1"}
    name += "e"
    keys = service_keys(QUBE.with_feature(f"service.app-dispvm.{name}", "1"))
    assert keys == {"/hash-app-dispvm/" + digest_of(name): name}
    assert service_keys(QUBE.with_feature(f"service.app-dispvm.{name}", "")) == {}


def test_config_and_persist_are_mirrored_as_they_are() -> None:
    qube = QUBE.with_feature("vm-config.color", "dark blue").with_feature("custom-persist.etc", "/etc/x")
    assert config_keys(qube) == {"/vm-config/color": "dark blue"}
    assert persist_keys(qube) == {"/persist/etc": "/etc/x"}
    assert service_keys(qube) == {}
