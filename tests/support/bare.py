"""A stranger's machine: a Debian root made from nothing, with Python, make and apt, and nothing of this one.

The root gets a mount namespace of its own through pivot_root (in a plain chroot the kernel refuses user namespaces),
this machine's settings for reaching mirror and index, and a clone of the checkout. Any command can be tried there, as root:

    python -m tests.support.bare FOLDER "make test"       # FOLDER is made on an empty disk place, and used again if it is there
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers.fetch import peer_prefix
from tests.support.peers.mirror import archive_root

ROOT = Path(__file__).parents[2]
USER = "stranger"
# How this machine reaches its mirror and index belongs to the network, not to what is tested.
_NETWORK_VARIABLES = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "PIP_CERT", "REQUESTS_CA_BUNDLE", "PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_DEFAULT_TIMEOUT",
    "PIP_FIND_LINKS",
)  # fmt: skip

_ENTER = """set -eu
mount --bind "$1" "$1"
cd "$1"
mkdir -p .old
mount --rbind /dev dev
mount -t proc proc proc
mount --rbind /sys sys # with its control groups, which Docker needs
mount -t tmpfs -o mode=1777 tmpfs tmp
pivot_root . .old
umount -l /.old
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class BareMachine:
    """A root folder to run commands in.

    Attributes:
        root: The folder.
    """

    root: Path

    def run(
        self, command: str, *, user: str = "root", timeout_s: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the checkout's clone, with an empty environment but for the network's settings."""
        return subprocess.run(
            self.argv(command, user=user), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def argv(self, command: str, *, user: str = "root") -> list[str]:
        """The whole command line that does it."""
        home = Path("/root") if user == "root" else Path("/home") / user
        keep = [f"{name}={os.environ[name]}" for name in _NETWORK_VARIABLES if name in os.environ]
        environment = [
            "env",
            "-i",
            f"HOME={home}",
            "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG=C.UTF-8",
            *keep,
        ]
        shell = ["sh", "-ec", f"cd {home}/edgebuild && {command}"]
        as_user = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        argv = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            _ENTER,
            "enter",
            str(self.root),
        ]
        return [*argv, *environment, *as_user, *shell]


def make_bare_machine(folder: Path) -> BareMachine:
    """Make the root: debootstrap's smallest Debian 12 with python3, make and ca-certificates, and a user."""
    prefix = peer_prefix("debootstrap")
    root = folder / "root"
    root.mkdir(mode=0o755)
    environment = dict(os.environ) | {
        "DEBOOTSTRAP_DIR": str(prefix / "usr/share/debootstrap"),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    subprocess.run(
        ["sh", str(prefix / "usr/sbin/debootstrap"), "--variant=minbase", "--include=python3,make,ca-certificates", "bookworm", str(root), archive_root()],
        env=environment, check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    for source in (
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pip.conf",
        "/etc/apt/sources.list.d/debian.sources",
    ):
        if Path(source).is_file():
            (root / source[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / source[1:])
    # Folders of wheels that pip is configured with are part of the index.
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        if place.startswith("/") and Path(place).is_dir():
            shutil.copytree(place, root / place[1:])
    if (root / "etc/apt/sources.list.d/debian.sources").exists():
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
    subprocess.run(
        ["chroot", str(root), "useradd", "--create-home", USER],
        check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    for home in ("root", f"home/{USER}"):
        _clone(root / home / "edgebuild")
    subprocess.run(["chroot", str(root), "chown", "-R", f"{USER}:", f"/home/{USER}"], check=True)
    return BareMachine(root)


def _clone(target: Path) -> None:
    """Copy what git knows of the checkout, as a clone would."""
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, names):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy, follow_symlinks=False)


def main() -> int:
    """Run one command on a bare machine, and show what it says."""
    folder, command = Path(sys.argv[1]).absolute(), sys.argv[2]
    if not (folder / "root").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        make_bare_machine(folder)
    return subprocess.run(BareMachine(folder / "root").argv(command), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
