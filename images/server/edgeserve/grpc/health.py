"""grpc.health.v1: whether the server answers; the same as /readyz, for a call or as a stream of changes.

The reference implementation holds a lock while it writes to a watcher, so one that does not read would hold up the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from edgeserve.errors import ApiError
from edgeserve.grpc.reading import Context


class Health(HealthServicer):
    """Tells of one server; its services are all ready or all not."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(("", *services))
        self._status: int = HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()

    def set(self, *, is_ready: bool) -> None:
        """Tell those who ask and those who watch."""
        self._status = HealthCheckResponse.SERVING if is_ready else HealthCheckResponse.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: HealthCheckRequest, _context: Context) -> HealthCheckResponse:  # noqa: N802 - the method's name
        """Answer once."""
        if request.service not in self._services:
            raise ApiError(404, f"There is no service {request.service[:100]!a} here.", code="not_found")
        return HealthCheckResponse(status=self._status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802 - the method's name
        """Answer now and whenever it changes; unknown services stay unknown."""
        is_known = request.service in self._services
        told: int | None = None
        while True:
            changed = self._changed
            status = self._status if is_known else HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            await changed.wait()
