"""Fetch peers into the cache, or rewrite their pins.

    python -m tests.support.peers.fetch --all
    python -m tests.support.peers.fetch dockerd28 crane
    python -m tests.support.peers.fetch update [NAME…]

A peer is unpacked once, below a name that carries the key of its pins, and never again until the pins change.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError
from tests.support.peers.mirror import archive_root, download
from tests.support.peers.pins import PINS_FILE, PeerPins, Pin, line_of, load_pins, pins_of, render_pins
from tests.support.peers.update import update_pins

_DOWNLOADS_AT_ONCE = 4


def cache_root() -> Path:
    """Return the folder of everything that the tests keep between runs."""
    given = os.environ.get("EDGEBUILD_TEST_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "edgebuild-tests"


def peer_prefix(name: str, *, pins_file: Path = PINS_FILE) -> Path:
    """Return the folder that holds a peer's files (`usr/bin/…`), fetching and unpacking it first if need be.

    Raises:
        PeerUnavailableError: The machine is not amd64, or a package cannot be had.
    """
    if platform.machine() != "x86_64":
        raise PeerUnavailableError(f"the peers are pinned for x86_64, this machine is {platform.machine()}")
    peer = pins_of(name, pins_file)
    prefix = cache_root() / "peers" / f"{peer.name}-{peer.key}"
    if not prefix.is_dir():
        _install(peer, prefix, pins_file)
    return prefix


def _install(peer: PeerPins, prefix: Path, pins_file: Path) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    root = archive_root()
    with tempfile.TemporaryDirectory(prefix=f".{peer.name}-", dir=prefix.parent) as work:
        tree = Path(work, "tree")
        tree.mkdir()
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            packages = list(pool.map(lambda pin: _download(pin, root, Path(work), pins_file), peer.pins))
        for pin, package in zip(peer.pins, packages, strict=True):
            _unpack(package, tree, only=pin.only)
            package.unlink()
        try:
            tree.rename(prefix)
        except OSError:  # another run was quicker; its tree has the same key and so the same content
            if not prefix.is_dir():
                raise


def _download(pin: Pin, root: str, folder: Path, pins_file: Path) -> Path:
    target = folder / f"{pin.package}_{pin.architecture}.deb"
    try:
        download(f"{root}/{pin.path}", target, sha256=pin.sha256, size_bytes=pin.size_bytes)
    except FileNotFoundError as error:
        raise PeerUnavailableError(
            f"the mirror no longer has {pin.package} {pin.version} of {pin.suite}: change {pins_file.name} line "
            f"{line_of(pin, pins_file)}, or run `python -m tests.support.peers.fetch update`"
        ) from error
    return target


def _unpack(package: Path, tree: Path, *, only: Sequence[str]) -> None:
    wanted = [f"./{path}" for path in only]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as opened:
        argv = ["tar", "-x", "-f", "-", "--no-same-owner", "-C", os.fspath(tree), *wanted]
        unpacked = subprocess.run(argv, stdin=opened.stdout, check=False, capture_output=True, text=True)
        assert opened.stdout is not None
        opened.stdout.close()
    # With `only`, tar may leave before the end, and dpkg-deb is then ended by the closed pipe.
    if unpacked.returncode != 0 or (opened.returncode != 0 and not only):
        raise PeerUnavailableError(f"cannot unpack {package.name}: {unpacked.stderr.strip()}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.support.peers.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--all", action="store_true", help="every peer of peers.toml")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="peers; `update` first rewrites the pins instead"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    options = _parse(argv)
    try:
        if options.names[:1] == ["update"]:
            pins = update_pins(load_pins(), archive_root(), names=options.names[1:])
            PINS_FILE.write_text(render_pins(pins), "utf-8")
            return 0
        names = list(load_pins()) if options.all else options.names
        if not names:
            print("name a peer or give --all; there are:", ", ".join(load_pins()), file=sys.stderr)
            return 2
        for name in names:
            print(f"{name}\t{peer_prefix(name)}")
    except PeerUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
