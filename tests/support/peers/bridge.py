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
BRIDGE_PREFIX = "ebtest"
_INTERFACES = Path("/sys/class/net")


@contextlib.contextmanager
def bridge() -> Iterator[tuple[str, int]]:
    """Make a bridge with the address 10.213.N.1/24; yield its name and N.

    It notes the process that it belongs to as its alias; those of the dead are taken away first.

    Raises:
        PeerUnavailableError: The kernel refuses, or all numbers are taken.
    """
    _remove_orphans()
    number = _add_first_free()
    name = f"{BRIDGE_PREFIX}{number}"
    try:
        _alias(name).write_text(str(os.getpid()), "ascii")
        _ioctl(_SIOCSIFADDR, _address_request(name.encode(), f"10.213.{number}.1"))
        _ioctl(_SIOCSIFNETMASK, _address_request(name.encode(), "255.255.255.0"))
        _set_up(name.encode(), up=True)
        yield name, number
    finally:
        _remove(name)


def _alias(name: str) -> Path:
    return _INTERFACES / name / "ifalias"


def _add_first_free() -> int:
    for number in _NUMBERS:
        try:
            _ioctl(_SIOCBRADDBR, f"{BRIDGE_PREFIX}{number}".encode() + b"\0")
        except OSError as error:
            if error.errno == errno.EEXIST:
                continue
            raise PeerUnavailableError(f"cannot make a network bridge: {error}") from error
        return number
    raise PeerUnavailableError(f"all {len(_NUMBERS)} network bridges {BRIDGE_PREFIX}… are taken")


def _remove_orphans() -> None:
    for interface in _INTERFACES.glob(f"{BRIDGE_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process takes it away now
            # One without an owner is just being made.
            owner = _alias(interface.name).read_text("ascii").strip()
            if owner and not Path("/proc", owner).exists():
                _remove(interface.name)


def _remove(name: str) -> None:
    # Another process may have seen that its owner was dead as well.
    with contextlib.suppress(OSError):
        _set_up(name.encode(), up=False)
        _ioctl(_SIOCBRDELBR, name.encode() + b"\0")


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
