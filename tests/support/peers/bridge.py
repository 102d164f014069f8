"""A network bridge for one daemon, so that daemons do not meet on docker0.

dockerd makes only docker0 itself. A bridge of another name must exist before it starts, and the kernel's old bridge
ioctls (linux/sockios.h) make one without any program.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
_IFF_UP = 1
_NUMBERS = range(1, 200)


@contextlib.contextmanager
def bridge(owners: Path) -> Iterator[tuple[str, int]]:
    """Make a bridge with the address 10.213.N.1/24; yield its name and N.

    Args:
        owners: Folder that notes which process each bridge belongs to; those of the dead are taken away first.

    Raises:
        PeerUnavailableError: The kernel refuses, or all numbers are taken.
    """
    owners.mkdir(parents=True, exist_ok=True)
    _remove_orphans(owners)
    number = _add_first_free(owners)
    try:
        name = f"ebtest{number}".encode()
        _ioctl(_SIOCSIFADDR, _address_request(name, f"10.213.{number}.1"))
        _ioctl(_SIOCSIFNETMASK, _address_request(name, "255.255.255.0"))
        _set_up(name, up=True)
        yield f"ebtest{number}", number
    finally:
        _remove(number, owners)


def _add_first_free(owners: Path) -> int:
    for number in _NUMBERS:
        try:
            _ioctl(_SIOCBRADDBR, f"ebtest{number}".encode() + b"\0")
        except OSError as error:
            if error.errno == errno.EEXIST:
                continue
            raise PeerUnavailableError(f"cannot make a network bridge: {error}") from error
        (owners / str(number)).write_text(str(os.getpid()), "ascii")
        return number
    raise PeerUnavailableError(f"all {len(_NUMBERS)} network bridges ebtest… are taken")


def _remove_orphans(owners: Path) -> None:
    for note in owners.iterdir():
        owner = note.read_text("ascii")
        if owner and not Path("/proc", owner).exists():
            _remove(int(note.name), owners)


def _remove(number: int, owners: Path) -> None:
    name = f"ebtest{number}".encode()
    # Gone already when the machine was started anew since.
    with contextlib.suppress(OSError):
        _set_up(name, up=False)
        _ioctl(_SIOCBRDELBR, name + b"\0")
    (owners / str(number)).unlink(missing_ok=True)


def _set_up(name: bytes, *, up: bool) -> None:
    answer = _ioctl(_SIOCGIFFLAGS, struct.pack("16sh22x", name, 0))
    flags: int = struct.unpack("16xh22x", answer)[0]
    _ioctl(_SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _IFF_UP if up else flags & ~_IFF_UP))


def _address_request(name: bytes, address: str) -> bytes:
    """Lay out struct ifreq with a struct sockaddr_in."""
    return struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(address))


def _ioctl(request: int, argument: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, argument)
