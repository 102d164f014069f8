"""The statuses of gRPC: what an `ApiError` of any interface is there, and what goes with it in the trailing metadata."""

from __future__ import annotations

from typing import Final

import grpc

from edgeserve.errors import ApiError

# Canonical codes by HTTP status (google/rpc/code.proto); what is not here is INTERNAL.
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_code(error: ApiError) -> grpc.StatusCode:
    """Return the canonical code of an error."""
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def trailing_metadata(error: ApiError) -> tuple[tuple[str, str], ...]:
    """Say in metadata what a program can act on: the stable code, the field, and when to try again (gRFC A6)."""
    found = []
    if error.code is not None:
        found.append(("edge-error-code", error.code))
    if error.param is not None:
        found.append(("edge-error-field", error.param[:200].encode("ascii", "backslashreplace").decode()))
    if error.headers.get("x-should-retry") == "false":
        found.append(("grpc-retry-pushback-ms", "-1"))
    elif "retry-after" in error.headers:
        found.append(("grpc-retry-pushback-ms", f"{int(error.headers['retry-after']) * 1000}"))
    return tuple(found)
