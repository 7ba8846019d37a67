"""Every bound the codecs apply, in one place.

A number from a peer is compared with one of these before anything is reserved for it (MC-11). Published limits name
their source; the others are ours, with the reason.
"""

# --- mux (docs/protocols/mux.md) ---------------------------------------------------------------------------------

MUX_MAX_DATA = 65536
"""Bytes of payload in one DATA frame: one qrexec chunk; also what a half-read frame can swallow at a resync."""

MUX_INITIAL_CREDIT = 32768
"""Bytes the opener of a stream may send before it has heard from the acceptor, so that a call needs no round trip."""

MUX_MAX_WINDOW = 2097152
"""Bytes a side is ready to hold of one stream at most: enough that its sender goes on while a reader on a busy machine
waits for its turn. A peer that holds out more credit to us breaks the protocol."""

MUX_MAX_WINDOW_1 = 1048576
"""The same in version 1."""

MUX_SMALL_WINDOW = 32768
"""Smallest window: what a stream gets when :data:`MUX_WINDOW_POOL` is spent."""

MUX_WINDOW_POOL = 16777216
"""Sum of all windows above the smallest that one side promises at a time."""

MUX_WINDOW_SHARE = 4
"""A new stream gets this part of what is left of the pool (a quarter): one stream alone is quick, many are served."""

MUX_MAX_STREAMS = 512
"""Streams a peer may have open at once; a further one is answered with RESET(BUSY)."""

MUX_MAX_PORT = 65535
"""Ports are vchan ports; the published ones are below 1024."""

MUX_MAX_QUEUED_DATA = 262144
"""Bytes of frames waiting for the pipe above which no stream is writable: what bulk may put in front of others."""

MUX_MAX_QUEUED = MUX_MAX_QUEUED_DATA + MUX_MAX_DATA + 262144
"""As above, plus one frame, plus control frames. A peer that makes us queue more than this does not read."""

MUX_MAX_HUNT = 16777216
"""Bytes skipped in search of a HELLO before the peer is given up: far above what a pipe can hold of an old session."""

BULK_SIZE = 16777216
"""Bytes of memory that a qube and its session share once a stream has proved large (insula_proto.bulk)."""

BULK_SLOT_SIZE = 1048576
"""Bytes of it that change hands at once: half a window, so that one half is written while the other is read."""

BULK_MAX_LENT = 2
"""Slots that may be under way for one stream: a second is filled while the peer deals with the first. What would not
fill it waits and goes together: each costs a guest up to a millisecond under emulation, whatever it carries."""

# --- qrexec (published protocol, versions 3 and 4) ----------------------------------------------------------------

QREXEC_MAX_CHUNK = 65536
"""Bytes in one data message, versions 3 and up."""

QREXEC_MAX_CHUNK_2 = 4096
"""The same in version 2."""

QREXEC_MAX_SERVICE = 65000
"""Bytes of service name and argument in a trigger message."""

QREXEC_MAX_BODY = 65535
"""Bytes in the body of a request a client sends to the daemon, and of a whole command line."""

QREXEC_MAX_SERVICE_NAME = 255
"""Bytes of a service name (with argument) that can be a file name."""

FIRST_DATA_PORT = 513
MAX_CALLS = 256
"""Data ports 513…768, so this many calls in a qube at once; a further one is refused as busy (MC-15)."""

# --- QubesDB ------------------------------------------------------------------------------------------------------

QUBESDB_MAX_PATH = 63
"""Bytes; the wire field has 64 with its NUL."""

QUBESDB_MAX_VALUE = 3072

QUBESDB_MAX_KEYS = 1024
"""Keys one qube may have; published systems use a few dozen."""

QUBESDB_MAX_OUTPUT = 2 * QUBESDB_MAX_KEYS * (72 + QUBESDB_MAX_VALUE)
"""Bytes of answers a qube may have us collect: twice everything there can be."""

# --- VMExec -------------------------------------------------------------------------------------------------------

VMEXEC_MAX_ARGUMENT = QREXEC_MAX_SERVICE
"""Bytes of an encoded command: it travels as a service argument."""

# --- windows (published GUI protocol, up to version 1.8) -----------------------------------------------------------

GUI_MAX_WIDTH = 16384
GUI_MAX_HEIGHT = 6144
"""Pixels of a window and of its picture; also how far from the origin a window may lie."""

GUI_BYTES_PER_PIXEL = 4
GUI_PAGE = 4096
"""Bytes a grant reference stands for; pictures in frame memory begin at a multiple."""

GUI_MAX_GRANTS = GUI_MAX_WIDTH * GUI_MAX_HEIGHT * GUI_BYTES_PER_PIXEL // GUI_PAGE
"""Grant references of the largest picture."""

GUI_TITLE_SIZE = 128
"""Bytes of a title's field, with its NUL."""

GUI_CLASS_SIZE = 64
"""Bytes of each of the two fields of a window's class, with its NUL."""

GUI_MAX_ICON = 64
"""Pixels of a side of a window's icon; desktops show them smaller."""

GUI_MAX_MONITORS = 16
GUI_MIN_DPI, GUI_MAX_DPI = 48, 480

GUI_KEYBOARD_SIZE = 64
"""Bytes of the names of a layout and of its variant, each with its NUL; options have four times as many."""

GUI_MAX_CLIPBOARD = 256000
"""Bytes of a clipboard from version 1.8 on."""

GUI_MAX_IMAGE_PIXELS = 1 << 21
"""Of an image in a clipboard: a little more than a screen of 1920×1080. Eight MiB on their way."""

GUI_MAX_CLIPBOARD_BEFORE_8 = 65000
"""Bytes of a clipboard in versions 1.4 to 1.7."""

# --- qfile (qubes.Filecopy) ---------------------------------------------------------------------------------------

QFILE_MAX_PATH = 16383
"""Bytes of a name in the stream, its final NUL counted, and of a link's target."""

QFILE_MAX_COMPONENT = 255
"""Bytes of one part of a path: what Linux file systems can store."""

QFILE_MAX_DEPTH = 64
"""Parts of a path: far above what people have, and each may cost the receiver an open folder (MC-06)."""

QFILE_MAX_ENTRIES = 1000000
"""Files, links and folders (each counts twice: it is sent twice) in one transfer (MC-06)."""

QFILE_MAX_TOTAL = 1 << 44
"""Bytes of content in one transfer: 16 TiB, what a file of ext4 may have; a smaller one is the disk's own."""

OPEN_NAME_SIZE = 256
"""Bytes of the name field of qubes.OpenInVM."""

# --- pixels of documents and images -------------------------------------------------------------------------------

PIXELS_MAX_PAGES = 10000
PIXELS_MAX_SIDE = 10000
"""Published bounds of ``qubes.PdfConvert`` (agent-services §10): pages, and pixels of either side of one."""

PIXELS_MAX_LINE = 12
"""Bytes of a line with its newline: two numbers of at most five digits each."""

# --- split GPG (published) ----------------------------------------------------------------------------------------

GPG_COMMAND_SIZE = 1024
"""Bytes of the options of one call, with their NULs."""

GPG_MAX_DATA = 4096
"""Bytes in a frame."""

GPG_MAX_DESCRIPTORS = 15
"""Descriptors in one direction."""

GPG_MAX_DESCRIPTOR = 1023
"""Highest number of a descriptor that an option may name."""

# --- ssh-agent ----------------------------------------------------------------------------------------------------

SSH_AGENT_MAX_MESSAGE = 262144
"""Bytes of a message after its length: what OpenSSH's agent takes."""

SSH_AGENT_MAX_KEYS = 2048
"""Keys in one answer, as in OpenSSH's clients."""
