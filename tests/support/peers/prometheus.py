"""Prometheus, for real, on a free port of the loopback."""

import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.peers.fetch import peer_prefix
from tests.support.peers.tool import BASE_PATH, ENDS_WITH_US, Completed, run, running, wait_until

_START_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A running server."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask its HTTP API; return `data` of the answer.

        Raises:
            AssertionError: It reports an error; the message is its own.
        """
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                document = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; return its series with their values."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire now."""
        return {
            alert["labels"]["alertname"]
            for alert in self.ask("alerts")["alerts"]
            if alert["state"] == "firing"
        }


@contextmanager
def running_prometheus(folder: Path, configuration: Path) -> Iterator[Prometheus]:
    """Start it with its data below `folder`, and stop it at the end.

    Raises:
        PeerUnavailableError: It cannot be fetched or does not start.
    """
    program = peer_prefix("prometheus") / "usr/bin/prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "prometheus.log"
    # It does not tell which port it was given, so it is given one.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv: list[str | Path] = [
        *ENDS_WITH_US, program, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with running(argv, log=log, environment={"PATH": BASE_PATH}, cwd=folder) as process:
        wait_until(
            lambda: _is_ready(port),
            lambda: process.poll() is None,
            log=log, what="prometheus", timeout_s=_START_TIMEOUT_S,
        )  # fmt: skip
        yield Prometheus(port=port)


def promtool(*arguments: str | Path, stdin: bytes | None = None, cwd: Path | None = None) -> Completed:
    """Run the tool that checks its files; whatever its exit code.

    Raises:
        PeerUnavailableError: It cannot be fetched.
    """
    program = peer_prefix("prometheus") / "usr/bin/promtool"
    return run([program, *arguments], env={"PATH": BASE_PATH}, stdin=stdin, check=False, cwd=cwd)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
