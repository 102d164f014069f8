"""The gRPC server: bounds of its connections, and how it starts and stops beside HTTP in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from edgeserve.access.opening import Access
from edgeserve.grpc import PROBES
from edgeserve.grpc.credentials import make_credentials
from edgeserve.grpc.gate import OTHER_CALLS, Gate
from edgeserve.grpc.health import Health
from edgeserve.grpc.reading import MessageReader
from edgeserve.grpc.service import SERVICE, Inference
from edgeserve.grpc.shares import Shares
from edgeserve.log import Log
from edgeserve.records import Observer
from edgeserve.scheduler import Scheduler
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.generate import Generator

_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_OPTIONS: Final = (
    # Else a second server on the same port would share it silently.
    ("grpc.so_reuseport", 0),
    # Messages that are small on the wire and huge in memory are refused.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 16384),
    # A window of 64 KiB: with one that grows, gRPC holds megabytes of what nobody reads for each client that sends on and on.
    ("grpc.http2.bdp_probe", 0),
    # Slow and idle clients; one that vanished is found within a minute, and its slot is free again.
    ("grpc.max_connection_idle_ms", 300_000),
    # A connection goes on with the certificate that it was opened with.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class GrpcServer:
    """One listener for `Inference`, health and reflection."""

    def __init__(
        self,
        runtime: Runtime,
        scheduler: Scheduler,
        *,
        access: Access,
        log: Log,
        observers: Sequence[Observer],
    ) -> None:
        self._settings = runtime.server
        self._log = log
        self._tls = access.tls
        self._inference = Inference(runtime, scheduler)
        self._health = Health((SERVICE,))
        limits = runtime.server.limits
        self._gate = Gate(
            awaited=SERVICE,
            open_to_all=PROBES,
            door=access.door,
            messages=MessageReader(upload_s=min(limits.body_s, limits.request_s)),
            log=log,
            observers=observers,
        )
        most = runtime.engine.slots + limits.queue + OTHER_CALLS
        self._server = grpc.aio.server(
            interceptors=(self._gate,),
            options=(
                *_OPTIONS,
                ("grpc.server_handshake_timeout_ms", limits.header_s * 1000),
                # One more is closed as soon as it is accepted. Unbounded they would take HTTP's files.
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.max_connection_age_grace_ms", limits.request_s * 1000),
                ("grpc.max_receive_message_length", limits.body_bytes),
                ("grpc.max_concurrent_streams", most),
            ),
            maximum_concurrent_rpcs=most,
        )
        self._server.add_generic_rpc_handlers((self._inference.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, _HEALTH, reflection.SERVICE_NAME), self._server)
        self._stopping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            OSError: The address cannot be used.
        """
        host, port = self._settings.host, self._settings.grpc.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = (
                self._server.add_insecure_port(address)
                if self._tls is None
                else self._server.add_secure_port(address, make_credentials(self._tls))
            )
        except RuntimeError as error:
            raise OSError(f"{address} cannot be bound") from error
        await self._server.start()
        shares = Shares(port=bound, most=self._settings.limits.connections_per_address, log=self._log)
        self._watching = asyncio.ensure_future(shares.watch())
        return bound

    def open(self, generator: Generator) -> None:
        """Serve from now on."""
        self._inference.open(generator)
        self._health.set(is_ready=True)

    def show(self, *, is_ready: bool) -> None:
        """Tell those who watch the health whether calls are taken now."""
        self._health.set(is_ready=is_ready)

    def drain(self, seconds: float) -> None:
        """Take no calls from now on, and stop when those that run are over or the time is up."""
        self._health.set(is_ready=False)
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        # Until then the scheduler refuses new calls in our words; those that reach a server in its stop, grpc may cancel.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gate.wait_idle()
        # What still runs are watchers and open reflection streams.
        await self._server.stop(0)
        if self._watching is not None:
            self._watching.cancel()

    async def stop(self) -> None:
        """Wait for the end of `drain`, or stop at once without one."""
        self.drain(0)
        assert self._stopping is not None
        await self._stopping
