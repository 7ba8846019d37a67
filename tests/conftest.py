"""For every test: how generated examples are tried."""

from __future__ import annotations

from hypothesis import settings

# How long one example takes says how busy the machine is. pytest's timeout ends what hangs.
settings.register_profile("insula", deadline=None)
settings.load_profile("insula")
