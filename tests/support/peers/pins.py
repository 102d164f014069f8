"""The pins: which Debian packages make up each peer.

`peers.toml` holds one table per peer with its packages; the mirror they come from is the machine's own affair.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError

PINS_FILE = Path(__file__).with_name("peers.toml")

HEADER = """\
# Peers that the tests run against, as Debian packages. Written by `python -m tests.support.peers.fetch update`;
# to add one, write suite, package and architecture (and `only`, the paths wanted of a large package), then update.
# `path` is relative to the root of the Debian archive that this machine's apt is configured with.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a peer.

    Attributes:
        suite: Debian suite by code name, such as "bookworm".
        package: Name of the binary package.
        architecture: Debian architecture, such as "amd64".
        only: Paths to unpack, relative to the root; empty means all of them.
        version: Full version with epoch.
        path: Path below the archive's root, "pool/…".
        sha256: Hash of the .deb, 64 hex digits.
        size_bytes: Length of the .deb.
    """

    suite: str
    package: str
    architecture: str
    only: tuple[str, ...] = ()
    version: str = ""
    path: str = ""
    sha256: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPins:
    """A peer: the packages that are unpacked together under one prefix."""

    name: str
    about: str
    pins: tuple[Pin, ...]

    @property
    def key(self) -> str:
        """Twelve hex digits that change with any of the packages or of the paths taken from them."""
        text = "\n".join(f"{pin.sha256} {' '.join(pin.only)}" for pin in self.pins)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_pins(path: Path = PINS_FILE) -> dict[str, PeerPins]:
    """Read the pin file; the keys are the names of the peers."""
    document = tomllib.loads(path.read_text("utf-8"))
    return {
        name: PeerPins(
            name=name,
            about=table["about"],
            pins=tuple(Pin(**{**entry, "only": tuple(entry.get("only", ()))}) for entry in table["package"]),
        )
        for name, table in document.items()
    }


def pins_of(name: str, path: Path = PINS_FILE) -> PeerPins:
    """Read the pins of one peer.

    Raises:
        PeerUnavailableError: No table of that name.
    """
    pins = load_pins(path)
    if name not in pins:
        raise PeerUnavailableError(f"{path.name} has no peer {name!r}; it knows {', '.join(pins)}")
    return pins[name]


def line_of(pin: Pin, path: Path = PINS_FILE) -> int:
    """Return the number of the line that holds the pin's sha256, so that a message can name it."""
    lines = path.read_text("utf-8").splitlines()
    return next((number for number, line in enumerate(lines, start=1) if pin.sha256 in line), 1)


def render_pins(peers: dict[str, PeerPins]) -> str:
    """Write the pin file's text, peers in the given order."""
    blocks = [HEADER]
    for peer in peers.values():
        blocks.append(f'\n[{peer.name}]\nabout = "{peer.about}"\n')
        blocks.extend(_render_pin(peer.name, pin) for pin in peer.pins)
    return "".join(blocks)


def _render_pin(name: str, pin: Pin) -> str:
    only = f"only = [{', '.join(_quote(path) for path in pin.only)}]\n" if pin.only else ""
    return (
        f"\n[[{name}.package]]\n"
        f"suite = {_quote(pin.suite)}\n"
        f"package = {_quote(pin.package)}\n"
        f"architecture = {_quote(pin.architecture)}\n"
        f"{only}"
        f"version = {_quote(pin.version)}\n"
        f"path = {_quote(pin.path)}\n"
        f"sha256 = {_quote(pin.sha256)}\n"
        f"size_bytes = {pin.size_bytes}\n"
    )


def _quote(text: str) -> str:
    return f'"{text}"'
