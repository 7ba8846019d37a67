"""Invariant: any text is a WireGuard configuration whose addresses are ones, or TunnelError."""

from __future__ import annotations

import harness

from insula_agent.net.tunnel import MAX_DNS, TunnelError, WireGuard

SEEDS = [
    b"[Interface]\nPrivateKey = x\nAddress = 10.8.0.2/32, fd00::2/64\nDNS = 10.8.0.1, example.org\nMTU = 1380\n",
    b"[Interface]\nAddress=10.0.0.1\nPostUp = x # y\n[Peer]\nPublicKey = y\nEndpoint = 198.51.100.1:51820\n",
]


def fuzz_one(data: bytes) -> None:
    try:
        config = WireGuard(data.decode("utf-8", "replace"))
    except TunnelError:
        return
    assert config.addresses
    assert len(config.dns) <= MAX_DNS
    assert all(set(word) <= set("0123456789./") for word in (*config.addresses, *config.dns))


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
