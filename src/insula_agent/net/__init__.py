"""The network of a qube, and what a net qube does for others.

interfaces       this qube's own interface: keys → lines for ``ip``
rules            what a net qube lets pass: clients → text for ``nft``
firewall_rules   what each client may reach: rules and names → text for ``nft``
network          acts on the three, in the agent: keys come, interfaces come and go
firewall         a program of its own that looks up names (started by ``firewall_start``)
"""
