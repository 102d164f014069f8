"""`edgeserve serve`: puts configuration, engine, scheduler, HTTP and gRPC together, and takes them apart again.

1. Check what must hold on this machine (edgeserve.preflight).
2. Bind the sockets, so that a wrong address fails before the model is read.
3. Check and load the model in the engine's thread; answer /livez and /readyz meanwhile.
4. On SIGTERM or SIGINT: admit nothing new, let running requests finish for `drain_s`, cut off the rest, exit with 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from edgeserve import __version__, exits
from edgeserve.access.opening import Access, open_access
from edgeserve.access.watched import AccessError, refresh_forever
from edgeserve.accounts import Accounts
from edgeserve.audit.errors import AuditError
from edgeserve.engine.protocol import Engine
from edgeserve.heap import Sweeper, bound_heap
from edgeserve.http.app import App
from edgeserve.http.gate import Gate
from edgeserve.http.server import EdgeServer, allow_files, listen, make_server
from edgeserve.loading import load_engine
from edgeserve.log import Log, bridge_logging
from edgeserve.preflight.model import ModelCheckError
from edgeserve.preflight.run import run_preflight
from edgeserve.probe import serve_probe
from edgeserve.scheduler import Scheduler, State
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.grpc.server import GrpcServer
    from edgeserve.prompts import PromptMaker

# After the running requests are cut off: to send their last bytes, and for the forward pass in progress.
_LAST_BYTES_S: Final = 1.0
_LAST_PASS_S: Final = 2.0


class Service:
    """One run of the server."""

    def __init__(self, runtime: Runtime, access: Access, log: Log) -> None:
        self._runtime = runtime
        self._access = access
        self._log = log
        self._started = time.monotonic()
        self._code = exits.OK
        self._failure_code = exits.ENGINE
        self._signals = 0
        self._prompts: PromptMaker | None = None
        self._scheduler = Scheduler(
            self._make_engine,
            slots=runtime.engine.slots,
            queue=runtime.server.limits.queue,
            client_requests=runtime.server.limits.client_requests,
            log=log,
            on_change=self._on_change,
        )
        self._accounts = Accounts(runtime, log, self._scheduler, on_hold=self._on_hold)
        self._observers = (*self._accounts.observers, Sweeper())
        self._app = App(
            runtime,
            self._scheduler,
            access=access,
            log=log,
            observers=self._observers,
            metrics=self._accounts.metrics,
        )
        self._server: EdgeServer = make_server(
            self._app,
            Gate(tls=access.tls, limits=runtime.server.limits, log=log),
            shutdown_s=self._shutdown_s,
        )
        self._grpc: GrpcServer | None = None

    @property
    def _shutdown_s(self) -> float:
        return self._runtime.server.drain_s + _LAST_BYTES_S + _LAST_PASS_S

    async def run(self) -> int:
        """Serve until a signal or a failure.

        Returns:
            The exit code.
        """
        settings = self._runtime.server
        self._allow_files()
        try:
            listener = listen(settings.host, settings.port)
            port = listener.getsockname()[1]
            probe = await serve_probe(settings.host, port, lambda: self._app.status().value)
        except OSError as error:
            self._log.error(
                "listen", host=settings.host, port=settings.port, problem=error.strerror or str(error)
            )
            return exits.LISTEN
        try:
            self._accounts.open()
        except AuditError as error:
            self._log.error("audit", problem=error)
            probe.close()
            listener.close()
            return exits.AUDIT
        self._log_start(port)
        if settings.grpc.enabled and (code := await self._start_grpc()) != exits.OK:
            probe.close()
            listener.close()
            await asyncio.to_thread(self._accounts.close)
            return code
        with closing(probe):
            await self._serve_on(listener)
        is_over = await asyncio.to_thread(self._scheduler.close, _LAST_PASS_S)
        await asyncio.to_thread(self._accounts.close)
        self._log.info("stopped", code=self._code, seconds=time.monotonic() - self._started)
        if not is_over:
            # The thread is inside a forward pass, which nothing can interrupt; the process can end without it.
            os._exit(self._code)
        return self._code

    async def _serve_on(self, listener: socket.socket) -> None:
        """Serve until it is over, and close all connections."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        refreshing = asyncio.create_task(refresh_forever(self._access.watched))
        self._scheduler.start()
        try:
            await self._server.serve(sockets=[listener])
        finally:
            refreshing.cancel()
            self._server.abort_connections()
            if self._grpc is not None:
                await self._grpc.stop()
            if self._prompts is not None:
                self._prompts.close()

    async def _start_grpc(self) -> int:
        """Listen for gRPC.

        Returns:
            `exits.OK`, or the exit code that says why not.
        """
        try:
            from edgeserve.grpc.server import GrpcServer  # noqa: PLC0415 - brings grpcio, which few images have
        except ImportError as error:
            self._log.error(
                "grpc",
                problem=f"{error}; this image has no gRPC: build it with `server.grpc: true` in the profile",
            )
            return exits.CONFIG
        server = GrpcServer(
            self._runtime,
            self._scheduler,
            access=self._access,
            log=self._log,
            observers=self._observers,
        )
        host, port = self._runtime.server.host, self._runtime.server.grpc.port
        try:
            port = await server.start()
        except OSError as error:
            self._log.error("listen", host=host, port=port, problem=str(error))
            return exits.LISTEN
        self._grpc = server
        self._log.info("grpc", host=host, port=port)
        return exits.OK

    def _make_engine(self) -> Engine:
        """Load the model and what depends on it; runs in the engine's thread, so that the event loop can answer probes."""
        # Brings Jinja, a third of all import time: after the socket is open.
        from edgeserve.prompts import PromptMaker  # noqa: PLC0415

        try:
            engine = load_engine(self._runtime, self._log)
        except ModelCheckError as error:
            error.result.write(self._log)
            self._failure_code = error.result.exit_code
            raise
        self._prompts = PromptMaker(engine, self._runtime.server.limits, self._log)
        return engine

    def _on_change(self) -> None:
        state = self._scheduler.state
        # Held back, it is ready all the same: it serves as soon as the audit log can be written.
        if state in {State.READY, State.AUDIT_FAILED} and self._prompts is not None:
            from edgeserve.generate import Generator  # noqa: PLC0415 - brings Jinja, loaded by now

            generator = Generator(self._scheduler, self._prompts)
            self._app.open(generator)
            if self._grpc is not None:
                self._grpc.open(generator)
                self._grpc.show(is_ready=state is State.READY)
            self._log_ready()
        elif state is State.FAILED:
            self._log.error("engine-failed", problem=self._scheduler.failure)
            self._code = self._failure_code
            self._server.should_exit = True

    def _on_hold(self) -> None:
        if self._grpc is not None and self._scheduler.state in {State.READY, State.AUDIT_FAILED}:
            self._grpc.show(is_ready=self._scheduler.state is State.READY)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        self._log.info("signal", name=signal.Signals(number).name)
        if self._signals > 1:
            self._scheduler.abort()
            return
        self._scheduler.stop_admitting()
        self._server.stop_listening()
        if self._grpc is not None:
            self._grpc.drain(self._shutdown_s)
        asyncio.get_running_loop().call_later(self._runtime.server.drain_s, self._scheduler.abort)

    def _on_hangup(self) -> None:
        self._log.info("signal", name="SIGHUP")
        for one in self._access.watched:
            one.refresh(is_forced=True)

    def _log_start(self, port: int) -> None:
        runtime, limits = self._runtime, self._runtime.server.limits
        self._log.info(
            "start",
            version=__version__,
            python=".".join(map(str, sys.version_info[:3])),
            profile=runtime.profile or "none",
            model=runtime.model.name,
            file=runtime.model.files[0],
            host=runtime.server.host,
            port=port,
        )
        self._log.info(
            "limits",
            body_bytes=limits.body_bytes,
            prompt_tokens=limits.prompt_tokens,
            output_tokens=limits.output_tokens,
            request_s=limits.request_s,
            first_token_s=limits.first_token_s,
            queue=limits.queue,
            client_requests=limits.client_requests,
        )
        self._log_access()

    def _allow_files(self) -> None:
        settings = self._runtime.server
        # Each interface may have so many.
        connections = settings.limits.connections * (2 if settings.grpc.enabled else 1)
        missing = allow_files(connections)
        if missing:
            self._log.warning(
                "open-files",
                connections=connections,
                missing=missing,
                note="raise the container's ulimit nofile",
            )

    def _log_access(self) -> None:
        fields = self._access.describe()
        (self._log.warning if "note" in fields else self._log.info)("access", **fields)

    def _log_ready(self) -> None:
        facts, expected = self._scheduler.facts, self._runtime.engine.cpu_variant
        if expected and expected != facts.cpu_variant:
            self._log.warning("cpu-variant", expected=expected, loaded=facts.cpu_variant)
        if self._runtime.engine.threads > facts.threads:
            self._log.warning("threads", wanted=self._runtime.engine.threads, cores=facts.threads)
        if facts.context_tokens > facts.trained_context_tokens > 0:
            self._log.warning(
                "context", tokens=facts.context_tokens, trained_tokens=facts.trained_context_tokens
            )
        self._log.info(
            "ready",
            model=self._runtime.model.name,
            description=facts.description,
            cpu_variant=facts.cpu_variant,
            context_tokens=facts.context_tokens,
            slots=facts.slots,
            threads=facts.threads,
            seconds=time.monotonic() - self._started,
        )


def serve(runtime: Runtime) -> int:
    """Run the server until it is told to stop.

    Returns:
        The exit code.
    """
    log = Log()
    bridge_logging(log)
    if not bound_heap():
        log.warning("heap", note="the C library takes no bounds: what a large request took may stay resident")
    try:
        # Before the preflight, which may read a model of gigabytes.
        access = open_access(runtime.server.access, log)
    except AccessError as error:
        problem = str(error)
    else:
        code = run_preflight(runtime, log)
        return asyncio.run(_serve(runtime, access, log)) if code == exits.OK else code
    log.error("access", problem=problem)
    return exits.ACCESS


async def _serve(runtime: Runtime, access: Access, log: Log) -> int:
    return await Service(runtime, access, log).run()
