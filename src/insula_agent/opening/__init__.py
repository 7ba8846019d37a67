"""Opening files and addresses in other qubes: ``qvm-open-in-vm`` here, ``qubes.OpenInVM``, ``qubes.OpenURL`` there."""
