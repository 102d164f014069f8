"""The distribution registry, for real, on a free port of the loopback."""

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.peers.fetch import peer_prefix
from tests.support.peers.tool import BASE_PATH, ENDS_WITH_US, running, wait_until

USERNAME = "edge"
PASSWORD = "loopback-only"
# Of PASSWORD, cost 4; the registry's htpasswd takes bcrypt alone.
_PASSWORD_BCRYPT = "$2b$04$qHcL.tdMSF5/BDkYPci5HuEdUO8vbZwgyH4nJbIN29V2ePiSdLZXe"
_START_TIMEOUT_S = 30

_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")

# Apache's combined log, which the registry writes to its standard output.
_ACCESS = re.compile(
    r'^\S+ - \S+ \[[^\]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d+) (?P<size>\d+) '
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One request that the registry answered.

    Attributes:
        path: Path with the query.
        body_bytes: Length of the body that it sent.
    """

    method: str
    path: str
    status: int
    body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry.

    Attributes:
        port: On 127.0.0.1.
        storage: Its root folder; `docker/registry/v2/blobs/sha256/…/data` are the blobs.
        log: Its log and access log.
        username: None when anybody may push.
        password: Likewise.
    """

    port: int
    storage: Path
    log: Path
    username: str | None
    password: str | None

    @property
    def host(self) -> str:
        """Host and port, as in an image reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Root of the API, without the trailing slash."""
        return f"http://{self.host}"

    def reference(self, repository: str, tag: str = "latest") -> str:
        """Name an image in this registry."""
        return f"{self.host}/{repository}:{tag}"

    def write_docker_config(self, folder: Path) -> Path:
        """Write `config.json` with the login; DOCKER_CONFIG=folder gives it to crane, cosign, docker and us."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.json"
        document = json.loads(path.read_text("utf-8")) if path.exists() else {}
        login = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        document.setdefault("auths", {})[self.host] = {"auth": login}
        path.write_text(json.dumps(document), "utf-8")
        return path

    def accesses(self) -> tuple[Access, ...]:
        """Return every request answered so far, in order."""
        found = (_ACCESS.match(line) for line in self.log.read_text("utf-8").splitlines())
        return tuple(
            Access(
                method=match["method"],
                path=match["path"],
                status=int(match["status"]),
                body_bytes=int(match["size"]),
            )
            for match in found
            if match
        )


@contextmanager
def running_registry(folder: Path, *, login: bool = False) -> Iterator[Registry]:
    """Start a registry with its storage below `folder`, and stop it at the end.

    Args:
        login: Ask for `USERNAME` and `PASSWORD`, by HTTP Basic.

    Raises:
        PeerUnavailableError: It cannot be fetched or does not start.
    """
    program = peer_prefix("registry") / "usr/bin/docker-registry"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "registry.log"
    argv: list[str | Path] = [*ENDS_WITH_US, program, "serve", _write_configuration(folder, login=login)]
    environment = {"PATH": BASE_PATH, "HOME": os.fspath(folder)}
    with running(argv, log=log, environment=environment) as process:
        wait_until(
            lambda: _port_in(log) is not None,
            lambda: process.poll() is None,
            log=log, what="docker-registry", timeout_s=_START_TIMEOUT_S,
        )  # fmt: skip
        port = _port_in(log)
        assert port is not None
        yield Registry(
            port=port,
            storage=folder / "storage",
            log=log,
            username=USERNAME if login else None,
            password=PASSWORD if login else None,
        )


def _port_in(log: Path) -> int | None:
    """Read the port that the system gave: it listens from the moment that it logs it."""
    match = _LISTENING.search(log.read_text("utf-8", "replace"))
    return int(match[1]) if match else None


def _write_configuration(folder: Path, *, login: bool) -> Path:
    document: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": os.fspath(folder / "storage")},
            "delete": {"enabled": True},
        },
        "http": {"addr": "127.0.0.1:0", "secret": "loopback tests"},
    }
    if login:
        passwords = folder / "htpasswd"
        passwords.write_text(f"{USERNAME}:{_PASSWORD_BCRYPT}\n", "utf-8")
        document["auth"] = {"htpasswd": {"realm": "tests", "path": os.fspath(passwords)}}
    path = folder / "config.yml"
    path.write_text(json.dumps(document), "utf-8")  # JSON is YAML
    return path
