"""Docker daemons of our own: private state, private namespaces, nothing left behind.

A daemon lives in a mount and a process namespace of its own, below a process that the kernel ends with the test run.
So whatever ends first, its containers, mounts and shims go with it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.peers.bridge import bridge
from tests.support.peers.errors import PeerUnavailableError
from tests.support.peers.fetch import peer_prefix
from tests.support.peers.registry import Registry
from tests.support.peers.tool import BASE_PATH, ENDS_WITH_US, Completed, run, wait_until

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 30
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "slave")
# /run/containerd and /run/docker are written to whatever --exec-root says: the daemon gets a /run of its own, in which
# the rest of the machine's is found under its usual names.
_START = """\
set -e
mkdir host-run
mount --rbind /run host-run
mount -t tmpfs -o mode=755 tmpfs /run
for entry in "$PWD"/host-run/*; do
    case "$entry" in */containerd | */docker) ;; *) ln -s "$entry" /run/ ;; esac
done
exec dockerd --config-file daemon.json
"""
_CGROUPS = Path("/sys/fs/cgroup")
_OWNER = "owner"  # file with the process id of the test run


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running container.

    Attributes:
        port: Where its published port is on 127.0.0.1; 0 when none was.
    """

    daemon: "DockerDaemon"
    id: str
    port: int

    @property
    def url(self) -> str:
        """Root of what listens on the published port, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def logs(self) -> str:
        """Return both output streams so far."""
        done = self.daemon.docker("logs", self.id)
        return done.stdout + done.stderr

    def execute(self, *argv: str, check: bool = True) -> Completed:
        """Run a program in it."""
        return self.daemon.docker("exec", self.id, *argv, check=check)

    def health(self) -> str:
        """Return the state of its health check: "starting", "healthy" or "unhealthy"."""
        return self.daemon.docker("inspect", "--format", "{{.State.Health.Status}}", self.id).stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerDaemon:
    """A running daemon.

    Attributes:
        folder: Its state: `docker.sock`, `data`, `exec`, `dockerd.log`, `config` (the command's own).
        programs: Folder with the `docker` command that belongs to it.
    """

    folder: Path
    programs: Path

    @property
    def version(self) -> str:
        """The daemon's version, as it tells it."""
        return self.docker("version", "--format", "{{.Server.Version}}").stdout.strip()

    @property
    def socket(self) -> Path:
        """The socket of its API."""
        return self.folder / "docker.sock"

    @property
    def host(self) -> str:
        """The value of DOCKER_HOST, and `base_url` of the docker SDK."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """What it logged."""
        return self.folder / "dockerd.log"

    @property
    def compose_command(self) -> str:
        """Shell words that run docker compose against it, for pytest-docker's `docker_compose_command`."""
        environment = self.environment()
        settings = " ".join(
            f"{name}='{environment[name]}'" for name in ("DOCKER_HOST", "DOCKER_CONFIG", "HOME")
        )
        return f"env {settings} '{self.programs / 'docker'}' compose"

    def environment(self) -> dict[str, str]:
        """Return the whole environment in which `docker`, buildx and compose reach it."""
        return {
            "PATH": f"{self.programs}:{BASE_PATH}",
            "HOME": os.fspath(self.folder / "home"),
            "LANG": "C.UTF-8",
            "DOCKER_HOST": self.host,
            "DOCKER_CONFIG": os.fspath(self.folder / "config"),
        }

    def docker(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        stdin: bytes | None = None,
        timeout_s: float = 300,
        cwd: Path | None = None,
    ) -> Completed:
        """Run the docker command against it; `env` is laid over its environment.

        Raises:
            AssertionError: `check` is set and the exit code is not 0; the message holds both streams.
        """
        environment = {**self.environment(), **(env or {})}
        argv = [self.programs / "docker", *args]
        return run(argv, env=environment, check=check, stdin=stdin, timeout_s=timeout_s, cwd=cwd)

    def write_login(self, registry: Registry) -> None:
        """Give its docker command the login of a registry."""
        registry.write_docker_config(self.folder / "config")

    @contextlib.contextmanager
    def container(
        self,
        image: str,
        *command: str,
        publish: int | None = None,
        env: Mapping[str, str] | None = None,
        args: tuple[str, ...] = (),
    ) -> Iterator[Container]:
        """Run a container in the background; it is removed at the end.

        Args:
            publish: Port in the container to publish on a free port of 127.0.0.1.
            env: Variables of the container.
            args: Further options of `docker run`.
        """
        options = [f"--env={name}={value}" for name, value in (env or {}).items()]
        if publish is not None:
            options.append(f"--publish=127.0.0.1::{publish}")
        identity = self.docker("run", "--detach", *options, *args, image, *command).stdout.strip()
        try:
            port = 0
            if publish is not None:
                port = int(
                    self.docker("port", identity, f"{publish}/tcp").stdout.split()[0].rpartition(":")[2]
                )
            yield Container(daemon=self, id=identity, port=port)
        finally:
            self.docker("rm", "--force", "--volumes", identity)


@contextlib.contextmanager
def running_dockerd(peer: str, *, containerd_store: bool) -> Iterator[DockerDaemon]:
    """Start a daemon and stop it at the end.

    Args:
        peer: "dockerd20" or "dockerd28".
        containerd_store: Keep images in containerd's store, as new Docker installations do.

    Raises:
        PeerUnavailableError: Not root, or it cannot be fetched or does not start.
    """
    if os.geteuid() != 0:
        raise PeerUnavailableError(
            f"{peer} needs root: a Docker daemon mounts file systems and makes namespaces"
        )
    prefix, runc, libraries = peer_prefix(peer), peer_prefix("runc"), peer_prefix("daemon-libraries")
    _remove_orphans()
    # Short, since a socket's path holds at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"{peer}-"))
    (folder / _OWNER).write_text(str(os.getpid()), "ascii")
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_state, folder)
        interface, number = stack.enter_context(bridge())
        stack.callback(_remove_cgroups, _cgroup(folder))
        _link_plugins(folder / "config")
        (folder / "home").mkdir()
        configuration = _configuration(folder, interface, number, runc, containerd_store=containerd_store)
        (folder / "daemon.json").write_text(json.dumps(configuration), "utf-8")
        environment = {
            "PATH": f"{prefix}/usr/sbin:{prefix}/usr/bin:{runc}/usr/sbin:{BASE_PATH}",
            "LD_LIBRARY_PATH": f"{libraries}/{_LIBRARIES}:{libraries}/{_LIBRARIES.removeprefix('usr/')}",
            "HOME": f"{folder}/home",
            "TMPDIR": os.fspath(folder),
        }
        process = stack.enter_context(_daemon_process(folder, environment))
        daemon = DockerDaemon(folder=folder, programs=prefix / "usr/bin")
        wait_until(
            lambda: daemon.docker("version", check=False).returncode == 0,
            lambda: process.poll() is None,
            log=daemon.log, what=peer, timeout_s=_START_TIMEOUT_S,
        )  # fmt: skip
        stack.callback(_stop_all, daemon)
        yield daemon


def _cgroup(folder: Path) -> str:
    return f"edgebuild-{folder.name}"


def _configuration(
    folder: Path, interface: str, number: int, runc: Path, *, containerd_store: bool
) -> dict[str, Any]:
    special: dict[str, Any] = (
        {"features": {"containerd-snapshotter": True}}
        if containerd_store
        else {"deprecated-key-path": f"{folder}/key.json"}  # else Docker 20.10 writes it to /etc/docker
    )
    return {
        "data-root": f"{folder}/data",
        "exec-root": f"{folder}/exec",
        "pidfile": f"{folder}/dockerd.pid",
        "hosts": [f"unix://{folder}/docker.sock"],
        "bridge": interface,
        # The host's packet filter is not ours to change; docker-proxy carries what is published on the loopback.
        "iptables": False,
        "ip6tables": False,
        "default-address-pools": [{"base": f"10.214.{number}.0/24", "size": 28}],
        "cgroup-parent": f"/{_cgroup(folder)}",
        "init-path": f"{runc}/usr/bin/tini-static",
        **special,
    }


@contextlib.contextmanager
def _daemon_process(folder: Path, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [*ENDS_WITH_US, "unshare", *_NAMESPACES, "sh", "-c", _START]
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )
    try:
        yield process
    finally:
        # unshare ignores SIGTERM while it waits; the daemon below it is asked to stop, then the kernel ends the rest.
        for child in _children(process.pid):
            os.kill(child, signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text("ascii").split()] if children.exists() else []


def _link_plugins(config: Path) -> None:
    plugins = config / "cli-plugins"
    plugins.mkdir(parents=True)
    source = peer_prefix("docker-plugins") / "usr/libexec/docker/cli-plugins"
    for program in source.iterdir():
        (plugins / program.name).symlink_to(program)


def _stop_all(daemon: DockerDaemon) -> None:
    """Remove what would outlive the daemon: containers' interfaces and the bridges of networks."""
    containers = daemon.docker("ps", "--all", "--quiet").stdout.split()
    if containers:
        daemon.docker("rm", "--force", *containers)
    daemon.docker("network", "prune", "--force")


def _remove_state(folder: Path) -> None:
    # Mounts went with the namespace; the kernel may take a moment to let go of the last of them.
    deadline = time.monotonic() + 10
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=time.monotonic() < deadline)


def _remove_orphans() -> None:
    """Remove what test runs left that were killed."""
    for owner in Path(tempfile.gettempdir()).glob(f"dockerd*-*/{_OWNER}"):
        if not Path("/proc", owner.read_text("ascii")).exists():
            _remove_cgroups(_cgroup(owner.parent))
            _remove_state(owner.parent)


def _remove_cgroups(name: str) -> None:
    for top in (*_CGROUPS.glob(f"*/{name}"), *_CGROUPS.glob(name)):
        for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            _retry_rmdir(group)
        _retry_rmdir(top)


def _retry_rmdir(group: Path) -> None:
    for _ in range(50):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # a process that was just killed still counts for a moment
            time.sleep(0.02)
        else:
            return
