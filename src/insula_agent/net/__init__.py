"""The network of a qube, and what a net qube does for others.

interfaces       this qube's own interface: keys → lines for ``ip``
rules            what a net qube lets pass: clients → text for ``nft``
firewall_rules   what each client may reach: rules and names → text for ``nft``
roles            what a VPN or a Tor gateway lets pass, and where to → text for ``nft``
network          acts on these, in the agent: keys come, interfaces come and go
firewall         a program of its own that looks up names (started by ``firewall_start``)
tunnel           programs of a VPN qube: makes the tunnel, or says what it is
tor_gateway      starts ``tor`` in a Tor gateway
"""
