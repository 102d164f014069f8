"""Rewrite the pins from the suites' own package indexes, whose signatures apt checks."""

import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.peers.errors import PeerUnavailableError
from tests.support.peers.pins import PeerPins, Pin

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A testing suite's Release file may be past its date on a lagging mirror; the signature is still required.
_CONFIGURATION = """\
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; }};
"""


def update_pins(
    peers: dict[str, PeerPins], archive: str, *, names: Sequence[str] = ()
) -> dict[str, PeerPins]:
    """Pin the newest version of every package of the named peers (all of them when none is named).

    Raises:
        PeerUnavailableError: An index cannot be read or verified, or a suite lacks a package.
    """
    unknown = [name for name in names if name not in peers]
    if unknown:
        raise PeerUnavailableError(f"no peer {', '.join(unknown)}; there are {', '.join(peers)}")
    chosen = set(names or peers)
    suites = sorted({pin.suite for name in chosen for pin in peers[name].pins})
    with tempfile.TemporaryDirectory(prefix="edgebuild-pins-") as folder:
        indexes = {suite: _Index(Path(folder, suite), archive, suite) for suite in suites}
        return {
            name: dataclasses.replace(peer, pins=tuple(indexes[pin.suite].newest(pin) for pin in peer.pins))
            if name in chosen
            else peer
            for name, peer in peers.items()
        }


class _Index:
    """The package index of one suite, in an apt state of its own."""

    def __init__(self, root: Path, archive: str, suite: str) -> None:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "state/status").touch()
        signed_by = f" signed-by={_KEYRING}" if _KEYRING.exists() else ""
        line = f"deb [arch=amd64,arm64{signed_by}] {archive} {suite} main\n"
        (root / "sources.list").write_text(line, "utf-8")
        (root / "apt.conf").write_text(_CONFIGURATION.format(root=root), "utf-8")
        self._environment = {**os.environ, "APT_CONFIG": os.fspath(root / "apt.conf")}
        self._suite = suite
        self._apt("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")

    def newest(self, pin: Pin) -> Pin:
        record = self._apt("apt-cache", "show", "--no-all-versions", f"{pin.package}:{pin.architecture}")
        fields = dict(
            line.split(": ", 1) for line in record.splitlines() if line[:1].isalpha() and ": " in line
        )
        return dataclasses.replace(
            pin,
            version=fields["Version"],
            path=fields["Filename"],
            sha256=fields["SHA256"],
            size_bytes=int(fields["Size"]),
        )

    def _apt(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self._environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise PeerUnavailableError(f"{' '.join(argv)} of {self._suite}: {done.stderr.strip()}")
        return done.stdout
