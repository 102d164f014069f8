"""A folder as the read-only root of a program, as one user, without daemon: mount and user namespaces.

As root a mount namespace and chroot suffice; anybody else needs user namespaces, one to mount in and one inside it in
which the program has the user's number of the image.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from edgebuild.errors import ToolError
from edgebuild.host import Host
from edgebuild.process import find_program, run

_HINT = "allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0), run as root, or leave the check out with --no-test"
_PROBE_TIMEOUT_S = 20.0
_MOUNT_POINTS = ("dev", "proc", "sys")

# Options of the mount that holds the folder are repeated, since the kernel refuses to drop nosuid and the like from
# inside a user namespace (mount_namespaces(7), "locked").
_MOUNT = """set -eu
root=$1 uid=$2 gid=$3; shift 3
options=$(findmnt --noheadings --output VFS-OPTIONS --target "$root" | tr , '\\n' | grep -E '^(nosuid|nodev|noexec|noatime|nodiratime|relatime)$' | tr '\\n' , || true)
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -o "remount,bind,${options}ro" "$root"
"""
_AS_ROOT = _MOUNT + 'exec chroot --userspec="$uid:$gid" "$root" "$@"\n'
_AS_USER = _MOUNT + 'exec unshare --user --map-user="$uid" --map-group="$gid" --root="$root" --wd=/ -- "$@"\n'


class SandboxUnavailableError(ToolError):
    """This machine does not let us make the namespaces."""


def sandbox_argv(root: Path, argv: Sequence[str], *, uid: str, gid: str) -> list[str]:
    """Wrap a command so that it runs with `root` as its read-only root folder.

    The process started becomes the command itself: its signals and exit code are the command's. It shares the network
    and has the host's /dev, /proc and /sys.

    Args:
        root: Absolute folder, owned by this user, that has been through `make_mount_points`.
        argv: Command inside the folder.
        uid: Numeric user.
        gid: Numeric group.
    """
    namespaces, script = (
        (["--mount"], _AS_ROOT) if _is_root() else (["--user", "--map-root-user", "--mount"], _AS_USER)
    )
    return ["unshare", *namespaces, "--", "sh", "-c", script, "sandbox", str(root), uid, gid, *argv]


def make_mount_points(root: Path) -> None:
    """Make the empty folders over which the namespace mounts, while the root can be written."""
    for name in _MOUNT_POINTS:
        (root / name).mkdir(exist_ok=True)


def sandbox_environment(host: Host) -> dict[str, str]:
    """Return the environment for a wrapped command; chroot lies in /usr/sbin, which a user's PATH may lack."""
    return {"PATH": f"{host.environment.get('PATH', os.defpath)}:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


def verify_sandbox(host: Host) -> None:
    """Find out whether this machine can do it.

    Raises:
        SandboxUnavailableError: It cannot; the message says why.
    """
    environment = sandbox_environment(host)
    for program in ("unshare", "findmnt", "mount", "chroot", "sh"):
        if find_program(program, path=environment["PATH"]) is None:
            raise SandboxUnavailableError(
                f"no {program} on this machine", hint="install util-linux and coreutils, or use --no-test"
            )
    probe = (
        ["unshare", "--mount", "true"]
        if _is_root()
        else ["unshare", "--user", "--map-root-user", "--mount", "unshare", "--user", "true"]
    )
    done = run(probe, environment=environment, timeout_s=_PROBE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SandboxUnavailableError(
            f"no namespaces on this machine: {done.stderr.strip() or done.returncode}", hint=_HINT
        )


def _is_root() -> bool:
    return os.geteuid() == 0
