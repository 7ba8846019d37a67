"""Features that become settings inside the guest: services, configuration, what persists (admin-api §4).

Each function returns QubesDB keys without checking lengths; :mod:`insula.model.qubesdb_keys` puts them together.
"""

from __future__ import annotations

import base64
import hashlib

from insula.model.features import CUSTOM_PERSIST, SERVICE, VM_CONFIG
from insula.model.qube import Qube
from insula_proto.limits import QUBESDB_MAX_PATH

APP_DISPVM = "app-dispvm."
"""Of ``service.app-dispvm.APP``: that application's files are opened in a disposable."""


def service_keys(qube: Qube) -> dict[str, str]:
    """``/qubes-service/NAME`` = ``0`` or ``1`` for each feature ``service.NAME``. Names of applications may be longer
    than a key: each that is on is also told by its hash, whose value is the name.
    """
    keys = {}
    for feature, value in qube.features.items():
        if not feature.startswith(SERVICE):
            continue
        name = feature.removeprefix(SERVICE)
        state = "1" if value else "0"
        if not name.startswith(APP_DISPVM) or len(f"/qubes-service/{name}") <= QUBESDB_MAX_PATH:
            keys[f"/qubes-service/{name}"] = state
        if name.startswith(APP_DISPVM):
            application = name.removeprefix(APP_DISPVM)
            if value:
                keys[f"/hash-app-dispvm/{_hash(application)}"] = application
    return keys


def config_keys(qube: Qube) -> dict[str, str]:
    """``/vm-config/NAME`` for each feature ``vm-config.NAME``."""
    return _mirrored(qube, VM_CONFIG, "/vm-config/")


def persist_keys(qube: Qube) -> dict[str, str]:
    """``/persist/KEY`` for each feature ``custom-persist.KEY``."""
    return _mirrored(qube, CUSTOM_PERSIST, "/persist/")


def _mirrored(qube: Qube, prefix: str, folder: str) -> dict[str, str]:
    return {
        folder + feature.removeprefix(prefix): value
        for feature, value in qube.features.items()
        if feature.startswith(prefix)
    }


def _hash(text: str) -> str:
    """Url-safe base64 of SHA-256, without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode("ascii")).digest()).decode("ascii").rstrip("=")
