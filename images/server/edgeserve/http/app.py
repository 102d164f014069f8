"""The routes: which request goes where, and what becomes of everything that can go wrong in between."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from edgeserve.access.opening import Access
from edgeserve.calls import ChatCall, CompletionCall
from edgeserve.deadlines import Deadlines, make_deadlines
from edgeserve.errors import ApiError, not_serving
from edgeserve.http.answer import send_answer
from edgeserve.http.body import BodyReader
from edgeserve.http.embeddings import parse_embeddings, send_embeddings
from edgeserve.http.exchange import ClientGoneError, Exchange, Receive, Scope, Send
from edgeserve.http.schemas import parse_chat, parse_completion
from edgeserve.http.shapes import ChatShape, CompletionShape
from edgeserve.log import Log, described
from edgeserve.records import Observer, Record
from edgeserve.scheduler import NotServingError, Scheduler, State
from edgeserve.settings import Runtime

if TYPE_CHECKING:
    from edgeserve.generate import Generator
    from edgeserve.metrics.exposition import Metrics

_MODEL_PREFIX: Final = "/v1/models/"
PROBES: Final = frozenset({"/livez", "/readyz"})
_METRICS: Final = "/metrics"
# What is asked for all day: noted only where it fails.
ROUTINE: Final = PROBES | {_METRICS}

Handler = Callable[[Exchange, Record], Awaitable[None]]


class App:
    """The ASGI application; until `open` it refuses requests that generate."""

    def __init__(
        self,
        runtime: Runtime,
        scheduler: Scheduler,
        *,
        access: Access,
        log: Log,
        observers: Sequence[Observer],
        metrics: Metrics | None = None,
    ) -> None:
        self._runtime = runtime
        self._scheduler = scheduler
        self._access = access
        self._log = log
        self._observers = tuple(observers)
        self._metrics = metrics
        self._generator: Generator | None = None
        self._ready_at = int(time.time())
        limits = runtime.server.limits
        self._bodies = BodyReader(body_bytes=limits.body_bytes, upload_s=min(limits.body_s, limits.request_s))
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/embeddings": ("POST", self._embeddings),
            "/v1/models": ("GET", self._models),
            _MODEL_PREFIX + runtime.model.name: ("GET", self._model),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/openapi.json": ("GET", self._openapi),
        }
        if metrics is not None:
            self._routes[_METRICS] = ("GET", self._scrape)
        self._open = ROUTINE if runtime.server.metrics.open else PROBES

    def open(self, generator: Generator) -> None:
        """Serve from now on."""
        self._generator = generator
        self._ready_at = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3.0, HTTP)."""
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected ASGI scope {scope['type']}")
        exchange = Exchange(scope, receive, send)
        record = Record(interface="http", method=exchange.method, route=exchange.path)
        try:
            await self._dispatch(exchange, record)
        except ApiError as error:
            record.result = error.code or "invalid"
            await self._refuse(exchange, error)
        except ClientGoneError:
            record.result = "client_gone"
            exchange.abort()
        except Exception as error:  # noqa: BLE001 - a fault of ours must not reach the client in our words
            record.result = "internal"
            self._log.error("internal", path=exchange.path, **described(error))
            await self._refuse(
                exchange, ApiError(500, "Internal error.", kind="server_error", code="internal")
            )
        finally:
            record.size_bytes = exchange.received_bytes
            record.status, record.seconds = exchange.status, time.monotonic() - record.started
            for observer in self._observers:
                observer.on_request(record)

    async def _dispatch(self, exchange: Exchange, record: Record) -> None:
        if exchange.path not in self._open:
            # Before all else: who may not use the server learns nothing of its routes either.
            record.client = self._access.door.admit(
                certified=exchange.certified,
                authorization=exchange.header("authorization"),
                address=exchange.peer_address,
            )
        route = self._routes.get(exchange.path)
        if route is None:
            raise self._unknown_path(exchange.path)
        method, handler = route
        if exchange.method != method and not (exchange.method == "HEAD" and method == "GET"):
            message = f"The method {exchange.method} is not allowed on {exchange.path}."
            raise ApiError(405, message, code="method_not_allowed", headers={"allow": method})
        record.result = "ok"
        await handler(exchange, record)

    def _unknown_path(self, path: str) -> ApiError:
        if path.startswith(_MODEL_PREFIX):
            wanted = ascii(path.removeprefix(_MODEL_PREFIX)[:100])
            message = f"The model {wanted} does not exist; this server has '{self._runtime.model.name}'."
            return ApiError(404, message, param="model", code="model_not_found")
        return ApiError(404, f"There is no {path[:100]!a} here.", code="not_found")

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        if exchange.is_started:
            exchange.abort()
            return
        await exchange.answer(error.status, error.document(), error.headers)

    async def _chat(self, exchange: Exchange, record: Record) -> None:
        deadlines, generator = self._begin()
        document = await self._bodies.read_object(exchange)
        call = parse_chat(document, limits=self._runtime.server.limits, model=self._runtime.model.name)
        await self._answer(exchange, call, ChatShape, generator=generator, deadlines=deadlines, record=record)

    async def _completion(self, exchange: Exchange, record: Record) -> None:
        deadlines, generator = self._begin()
        document = await self._bodies.read_object(exchange)
        call = parse_completion(document, limits=self._runtime.server.limits, model=self._runtime.model.name)
        await self._answer(
            exchange, call, CompletionShape, generator=generator, deadlines=deadlines, record=record
        )

    async def _embeddings(self, exchange: Exchange, record: Record) -> None:
        deadlines, generator = self._begin()
        document = await self._bodies.read_object(exchange)
        call = parse_embeddings(document, model=self._runtime.model.name)
        request_id = f"embd-{secrets.token_hex(12)}"
        outputs = generator.embeddings(call, request_id=request_id, deadlines=deadlines, record=record)
        await send_embeddings(exchange, outputs, call)

    async def _answer(
        self,
        exchange: Exchange,
        call: ChatCall | CompletionCall,
        make_shape: type[ChatShape | CompletionShape],
        *,
        generator: Generator,
        deadlines: Deadlines,
        record: Record,
    ) -> None:
        generation = call.generation
        shape = make_shape(fingerprint=self._fingerprint(), generation=generation)
        outputs = generator.outputs(call, request_id=shape.id, deadlines=deadlines, record=record)
        await send_answer(
            exchange,
            outputs,
            shape=shape,
            is_stream=generation.is_stream,
            deadline=deadlines.end,
            record=record,
        )

    def _begin(self) -> tuple[Deadlines, Generator]:
        """Start a request's clock; refuse it while there is no engine, before its body is read."""
        if self._generator is None or self._scheduler.state is not State.READY:
            raise not_serving(NotServingError(self._scheduler.state))
        now = asyncio.get_running_loop().time()
        return make_deadlines(self._runtime.server.limits, now=now), self._generator

    def _fingerprint(self) -> str:
        """Name what a seed's result depends on besides the request."""
        return f"{self._runtime.engine.name}-{self._scheduler.facts.cpu_variant}"

    def _model_document(self) -> dict[str, object]:
        document: dict[str, object] = {
            "id": self._runtime.model.name,
            "object": "model",
            "created": self._ready_at,
            "owned_by": "edgeserve",
        }
        return document

    async def _models(self, exchange: Exchange, _record: Record) -> None:
        await exchange.answer(200, {"object": "list", "data": [self._model_document()]})

    async def _model(self, exchange: Exchange, _record: Record) -> None:
        await exchange.answer(200, self._model_document())

    async def _livez(self, exchange: Exchange, _record: Record) -> None:
        await exchange.answer(200, {"status": "alive"})

    async def _readyz(self, exchange: Exchange, _record: Record) -> None:
        status = self.status()
        if status is not State.READY:
            await exchange.answer(503, {"status": status.value})
            return
        document = {
            "status": status.value,
            "model": self._runtime.model.name,
            "cpu_variant": self._scheduler.facts.cpu_variant,
        }
        await exchange.answer(200, document)

    async def _openapi(self, exchange: Exchange, _record: Record) -> None:
        await exchange.answer(200, self._document)

    @cached_property
    def _document(self) -> bytes:
        """The interface as an OpenAPI document, made when somebody asks for the first time."""
        from edgeserve.http.openapi.document import make_document  # noqa: PLC0415 - few ever ask

        document = make_document(self._runtime, ways=self._access.ways)
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def _scrape(self, exchange: Exchange, _record: Record) -> None:
        assert self._metrics is not None
        text = await asyncio.get_running_loop().run_in_executor(self._metrics.worker, self._metrics.render)
        await exchange.answer(200, text, {"content-type": self._metrics.content_type})

    def status(self) -> State:
        """Say whether requests are answered now."""
        state = self._scheduler.state
        return State.LOADING if state is State.READY and self._generator is None else state
