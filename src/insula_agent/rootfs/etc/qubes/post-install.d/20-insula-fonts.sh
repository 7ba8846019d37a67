#!/bin/sh
# Keeps what the library that finds fonts knows of them, so that no program has to look at each (qubes.PostInstall).
cache=${INSULA_FONT_CACHE:-/var/cache/fontconfig}
[ -w "${cache%/*}" ] || exit 0
mkdir -p "$cache"
if command -v fc-cache >/dev/null; then
    exec fc-cache --system-only
fi
# The tool is a package that not every template has; the library does it when it is first used and may write there.
exec python3 -I -c "
import ctypes
try:
    ctypes.CDLL('libfontconfig.so.1').FcInit()
except OSError:
    pass  # then nobody asks for fonts
"
