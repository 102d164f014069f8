"""Reads the message of a call within its time, as http/body.py does a request's body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from edgeserve.errors import NO_RETRY, ApiError, invalid
from edgeserve.records import Record

# Quoted: generic in the stubs only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class MessageReader:
    """Reads messages, each the only one of its call; gRPC itself bounds their size."""

    def __init__(self, *, upload_s: float) -> None:
        self._upload_s = upload_s

    async def read(self, parse: Callable[[bytes], Any] | None, context: Context, record: Record) -> Any:
        """Read the message.

        On the wire it is a stream that ends after the first. gRPC itself would wait for it for good, and such calls count
        among those that may run at once. It would also take what cannot be parsed for a fault of the server.

        Args:
            parse: Makes the message of its bytes.
            context: The call.
            record: Told how long the message is.

        Raises:
            ApiError: It does not come, or is none.
        """
        try:
            async with asyncio.timeout(self._upload_s):
                data: Any = await context.read()
        except TimeoutError:
            message = f"The message did not arrive within {self._upload_s:.0f} s."
            raise ApiError(408, message, code="body_timeout", headers=NO_RETRY) from None
        if data is grpc.aio.EOF:
            raise _no_message()
        record.size_bytes = len(data)
        try:
            return data if parse is None else parse(data)
        except DecodeError as error:
            raise _no_message() from error


def _no_message() -> ApiError:
    return invalid("The request is not the message that this method takes.", None, code="invalid_message")
