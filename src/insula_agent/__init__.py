"""The agent inside a qube: small, standard library only, trusts nobody and is trusted by nobody."""
