"""`edgeserve health`: asks the server on this machine whether it is ready.

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
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where a wildcard listener answers


def check_health(environment: dict[str, str]) -> tuple[int, str]:
    """Ask `/readyz` once.

    Returns:
        The exit code, 0 when the answer is 200 and 1 otherwise, and one line that says what was found.
    """
    try:
        host, port = _address(environment)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return exits.FAILED, f"unhealthy: configuration: {error}"
    try:
        status = _ask(host, port)
    except OSError as error:
        return exits.FAILED, f"unhealthy: {host}:{port}: {error}"
    if status.split(" ")[1:2] == ["200"]:
        return exits.OK, f"healthy: {host}:{port}: ready"
    return exits.FAILED, f"unhealthy: {host}:{port}: {status or 'no answer'}"


def _address(environment: dict[str, str]) -> tuple[str, int]:
    host, port = environment.get("EDGE_HOST"), environment.get("EDGE_PORT")
    if host is None or port is None:
        with open(environment.get("EDGE_RUNTIME", RUNTIME_PATH), encoding="utf-8") as file:  # noqa: PTH123
            server = json.load(file).get("server", {})
        host = server.get("host", "0.0.0.0") if host is None else host  # noqa: S104
        port = server.get("port", 8080) if port is None else port
    return _LOOPBACK.get(host, host), int(port)


def _ask(host: str, port: int) -> str:
    """Return the status line of GET /readyz."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while b"\r\n" not in answer and len(answer) < 4096:
            part = connection.recv(4096)
            if not part:
                break
            answer += part
    return answer.split(b"\r\n", 1)[0].decode("latin-1")


def main() -> int:
    """Run the command and report on standard output (success) or standard error (anything else)."""
    code, line = check_health(dict(os.environ))
    os.write(1 if code == exits.OK else 2, (line + "\n").encode("utf-8", "backslashreplace"))
    return code
