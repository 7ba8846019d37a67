#!/bin/sh
# Has the host read what the scripts before this one noted (qubes.PostInstall).
exec qvm-features-request --commit
