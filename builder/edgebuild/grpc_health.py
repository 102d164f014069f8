"""Asks a gRPC server for its health with the standard library alone: one call, as frames of HTTP/2.

It is what shows that gRPC in an image works; a builder need not have gRPC for that.

Source: RFC 9113, 3.4, 4.1 and 6 (frames), RFC 7541, 6.2.2 (literal header fields), gRPC's doc/PROTOCOL-HTTP2.md and
grpc/health/v1/health.proto.
"""

import socket
import struct
import time
from collections.abc import Iterator

SERVING = 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
_STREAM = 1
_FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/grpc.health.v1.Health/Check"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
# A message: not compressed, no bytes long. An empty HealthCheckRequest asks for the server as a whole.
_REQUEST = bytes(5)
_MOST_FRAME_BYTES = 1 << 14


def ask_health(port: int, *, timeout_s: float) -> int:
    """Call grpc.health.v1.Health/Check on loopback.

    Returns:
        The status, `SERVING` or another number of health.proto; 0 where the call fails.

    Raises:
        OSError: Nobody answers in time, or what answers speaks no gRPC.
    """
    deadline = time.monotonic() + timeout_s
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        block = b"".join(
            bytes((0, len(name))) + name + bytes((len(value),)) + value for name, value in _FIELDS
        )
        connection.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, _STREAM, block)
            + _frame(_DATA, _END_STREAM, _STREAM, _REQUEST)
        )
        answer = b""
        for kind, flags, stream, payload in _frames(connection, deadline):
            if kind == _DATA and stream == _STREAM:
                answer += payload
            elif kind in {_SETTINGS, _PING} and not flags & _ACK:
                connection.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            elif kind in {_RESET, _GOAWAY} or (kind == _HEADERS and flags & _END_STREAM):
                break
    # HealthCheckResponse: field 1, a number below 128; absent where it is 0.
    return answer[6] if answer[5:6] == b"\x08" and len(answer) == 7 else 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _frames(connection: socket.socket, deadline: float) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield type, flags, stream and payload of what comes until the other side closes."""
    while header := _read(connection, 9, deadline):
        length = int.from_bytes(header[:3], "big")
        if length > _MOST_FRAME_BYTES:
            raise ConnectionError("what answers speaks no HTTP/2")
        kind, flags, stream = struct.unpack(">BBI", header[3:])
        yield kind, flags, stream & 0x7FFFFFFF, _read(connection, length, deadline)


def _read(connection: socket.socket, length: int, deadline: float) -> bytes:
    """Read so many bytes, fewer only where the other side closes."""
    data = b""
    while len(data) < length:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(length - len(data))
        if not part:
            return b""
        data += part
    return data
