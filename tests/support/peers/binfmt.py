"""Let the kernel run arm64 programs, in containers too, for as long as the tests need it."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

# ELF, 64 bits, little endian, type EXEC or DYN, machine 183 (qemu's scripts/qemu-binfmt-conf.sh). The fields are
# written with escapes, which the kernel decodes (Documentation/admin-guide/binfmt-misc.rst).
_MAGIC = bytes.fromhex("7f454c460201010000000000000000000200b700")
_MASK = bytes.fromhex("ffffffffffffff00fffffffffffffffffeffffff")
# F: the kernel opens the emulator now, so that it is there in any root. P: the program keeps its argv[0].
# C, and with it O: the credentials are the program's, not the emulator's.
_FLAGS = "POCF"
_PREFIX = "edgebuild-test-"


@contextlib.contextmanager
def arm64_programs(qemu: Path) -> Iterator[str]:
    """Register qemu for arm64 programs; yield the entry's name, and take the entry back at the end.

    Nothing of binfmt_misc need be mounted: it is mounted on a folder of our own, which shows the same entries.

    Raises:
        PeerUnavailableError: Not root, or the kernel has no binfmt_misc.
    """
    if os.geteuid() != 0:
        raise PeerUnavailableError(
            "arm64 containers need root: it registers qemu with the kernel's binfmt_misc"
        )
    with tempfile.TemporaryDirectory(prefix="binfmt-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "binfmt_misc", "binfmt_misc", folder], check=False, capture_output=True, text=True
        )
        if mounted.returncode != 0:
            raise PeerUnavailableError(f"cannot mount binfmt_misc: {mounted.stderr.strip()}")
        try:
            _remove_orphans(Path(folder))
            name = f"{_PREFIX}{os.getpid()}"
            magic, mask = (b"".join(b"\\x%02x" % byte for byte in field) for field in (_MAGIC, _MASK))
            entry = b":%s:M::%s:%s:%s:%s" % (name.encode(), magic, mask, os.fsencode(qemu), _FLAGS.encode())
            Path(folder, "register").write_bytes(entry)
            try:
                yield name
            finally:
                Path(folder, name).write_text("-1", "ascii")
        finally:
            subprocess.run(["umount", folder], check=True)


def _remove_orphans(root: Path) -> None:
    """Take back the entries of test runs that were killed."""
    for entry in root.glob(f"{_PREFIX}*"):
        if not Path("/proc", entry.name.removeprefix(_PREFIX)).exists():
            entry.write_text("-1", "ascii")
