"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from edgeserve.answers import Fault, FaultKind
from edgeserve.scheduler import ClientLimitError, NotServingError, QueueFullError, State

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
# The official client repeats a request on 408, 409, 429 and from 500 on unless this header says no.
NO_RETRY: Final = {"x-should-retry": "false"}
_LONGEST_PATH: Final = 256


class ApiError(Exception):
    """What a client is told when its request is not answered; the message is for its developer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def document(self) -> bytes:
        """Render the body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def invalid(message: str, param: str | None, *, code: str | None = None) -> ApiError:
    """Make the error for a field that cannot be accepted."""
    return ApiError(400, message, param=param, code=code)


def unsupported_schema(path: str, what: str) -> ApiError:
    """Make the error for a schema that no grammar can follow exactly; `path` is where, `what` why."""
    shown = path[:_LONGEST_PATH]
    return invalid(f"'{shown}' {what}.", shown, code="unsupported_schema")


def queue_full(error: QueueFullError) -> ApiError:
    """Make the error for a server that has as much to do as it will take."""
    return ApiError(
        429,
        f"The server is busy; retry after {error.retry_after_s} s.",
        kind="rate_limit_error",
        code="queue_full",
        headers={"retry-after": str(error.retry_after_s)},
    )


def client_limit(error: ClientLimitError) -> ApiError:
    """Make the error for a client that has as many requests under way as one may have."""
    return ApiError(
        429,
        f"One client may have {error.most} requests under way here; retry after {error.retry_after_s} s.",
        kind="rate_limit_error",
        code="client_limit",
        headers={"retry-after": str(error.retry_after_s)},
    )


def not_serving(error: NotServingError) -> ApiError:
    """Make the error for a server that does not take requests now."""
    if error.state is State.LOADING:
        return ApiError(
            503,
            "The model is still loading.",
            kind="server_error",
            code="loading",
            headers={"retry-after": "1"},
        )
    if error.state is State.STOPPING:
        return _stopping()
    if error.state is State.AUDIT_FAILED:
        return ApiError(
            503,
            "The audit log cannot be written, and nothing is served without it.",
            kind="server_error",
            code="audit_failed",
            headers={"retry-after": "5"},
        )
    return ApiError(
        503, "The engine has failed.", kind="server_error", code="engine_failed", headers=NO_RETRY
    )


def from_fault(fault: Fault) -> ApiError:
    """Make the error for an answer that could not be completed."""
    if fault.kind is FaultKind.SHUTTING_DOWN:
        return _stopping()
    if fault.kind is FaultKind.CROWDED_OUT:
        return queue_full(QueueFullError(fault.retry_after_s))
    if fault.kind is FaultKind.FIRST_TOKEN:
        message = "No token was generated within the time that this server allows."
        return ApiError(504, message, kind="server_error", code="first_token_timeout", headers=NO_RETRY)
    if fault.kind is FaultKind.DEADLINE:
        message = "The request took longer than this server allows."
        return ApiError(504, message, kind="server_error", code="deadline_exceeded", headers=NO_RETRY)
    return ApiError(500, "The model could not be evaluated.", kind="server_error", code="engine_error")


def _stopping() -> ApiError:
    return ApiError(
        503,
        "The server is stopping.",
        kind="server_error",
        code="shutting_down",
        headers={"retry-after": "5", "connection": "close"},
    )
