"""Files on their way between qubes: the service ``qubes.Filecopy``, the commands ``qvm-copy`` and ``qvm-move``."""
