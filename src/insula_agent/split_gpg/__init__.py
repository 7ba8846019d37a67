"""Split GPG: keys stay in a vault, other qubes have gpg's work done there (agent-services §10)."""
