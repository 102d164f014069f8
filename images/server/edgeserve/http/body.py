"""Reads a request body within its bounds and parses it as strict JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from edgeserve.errors import ApiError, invalid
from edgeserve.http.exchange import Exchange
from edgeserve.http.strict_json import load_json

_BODIES_IN_MEMORY: Final = 8


class BodyReader:
    """Reads bodies of at most `body_bytes` each, and of at most a few times that together."""

    def __init__(self, *, body_bytes: int, upload_s: float) -> None:
        self._body_bytes = body_bytes
        self._upload_s = upload_s
        self._room = _BODIES_IN_MEMORY * body_bytes

    async def read_object(self, exchange: Exchange) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            ApiError: 413 too large, 408 too slow, 415 not declared as JSON, 429 too many bodies at once, 400 anything else.
            ClientGoneError: The client left.
        """
        kind = (exchange.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also keeps web pages of other origins from posting here without a preflight (Fetch, CORS-safelisted).
            raise ApiError(
                415, "The header Content-Type must be application/json.", code="unsupported_media_type"
            )
        declared = exchange.header("content-length")
        if declared is not None and int(declared) > self._body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._upload_s):
                while (part := await exchange.read()) is not None:
                    size += len(part)
                    self._room -= len(part)
                    parts.append(part)
                    if size > self._body_bytes:
                        raise self._too_large()
                    if self._room < 0:
                        headers = {"retry-after": "1"}
                        raise ApiError(
                            429,
                            "Too many large requests at once.",
                            kind="rate_limit_error",
                            code="busy",
                            headers=headers,
                        )
            return _parse(b"".join(parts))
        except TimeoutError:
            message = f"The request body did not arrive within {self._upload_s:.0f} s."
            raise ApiError(408, message, code="body_timeout", headers={"x-should-retry": "false"}) from None
        finally:
            self._room += size

    def _too_large(self) -> ApiError:
        message = f"The request body is larger than {self._body_bytes} bytes."
        return ApiError(413, message, code="body_too_large")


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = load_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise invalid(
            f"The request body is not UTF-8 at byte {error.start}.", None, code="invalid_json"
        ) from None
    except RecursionError:
        raise invalid("The request body is nested too deeply.", None, code="invalid_json") from None
    except json.JSONDecodeError as error:
        message = f"The request body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise invalid(message, None, code="invalid_json") from None
    except ValueError as error:
        raise invalid(
            f"The request body is not acceptable JSON: {error}.", None, code="invalid_json"
        ) from None
    if not isinstance(document, dict):
        raise invalid("The request body must be a JSON object.", None, code="invalid_json")
    return document
