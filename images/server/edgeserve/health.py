"""`edgeserve health`: asks the server beside it, in the same container, whether it is ready.

It asks over a socket of its own, which has a name and no path (unix(7), abstract sockets): so it needs no certificate, no key
and no writable folder, is no port that anyone else could reach, and gets through when all connections are taken.
It runs every 30 s on small devices, so it imports nothing but json, os and socket and does not validate the
configuration; `serve` has done that.
"""

from __future__ import annotations

import json
import os
import socket

from edgeserve import exits

RUNTIME_PATH = "/etc/edgebuild/runtime.json"
TIMEOUT_S = 4.0
READY = "ready"


def probe_name(host: str, port: int) -> str:
    """Name the socket of the server that listens on an address; unique within a network namespace as the address is."""
    return f"\0edgeserve/health/{host}:{port}"


def check_health(environment: dict[str, str]) -> tuple[int, str]:
    """Ask once.

    Returns:
        The exit code, 0 when the server is ready and 1 otherwise, and one line that says what was found.
    """
    try:
        host, port = _address(environment)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return exits.FAILED, f"unhealthy: configuration: {error}"
    try:
        status = _ask(probe_name(host, port))
    except (OSError, ValueError) as error:
        return exits.FAILED, f"unhealthy: {host}:{port}: {error}"
    if status == READY:
        return exits.OK, f"healthy: {host}:{port}: {status}"
    return exits.FAILED, f"unhealthy: {host}:{port}: {status or 'no answer'}"


def _address(environment: dict[str, str]) -> tuple[str, int]:
    host, port = environment.get("EDGE_HOST"), environment.get("EDGE_PORT")
    if host is None or port is None:
        with open(environment.get("EDGE_RUNTIME", RUNTIME_PATH), encoding="utf-8") as file:  # noqa: PTH123
            server = json.load(file).get("server", {})
        host = server.get("host", "0.0.0.0") if host is None else host  # noqa: S104
        port = server.get("port", 8080) if port is None else port
    return host, int(port)


def _ask(name: str) -> str:
    """Return the one word that the server says: the state of its readiness."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(name)
        answer = b""
        while len(answer) < 64 and (part := connection.recv(64)):
            answer += part
    return answer.decode("ascii", "replace")


def main() -> int:
    """Run the command and report on standard output (success) or standard error (anything else)."""
    code, line = check_health(dict(os.environ))
    os.write(1 if code == exits.OK else 2, (line + "\n").encode("utf-8", "backslashreplace"))
    return code
