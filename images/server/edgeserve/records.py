"""What becomes of a request, written down as it goes and shown to those who keep account of requests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from edgeserve.answers import End
from edgeserve.calls import ChatCall, CompletionCall, EmbeddingCall
from edgeserve.clients import ANONYMOUS, Client
from edgeserve.log import Log


@dataclass(slots=True, kw_only=True)
class Record:
    """One request of any interface, from its first byte to its last.

    Attributes:
        interface: "http" or "grpc".
        method: Method of HTTP; "rpc" with gRPC.
        route: Path of HTTP, full method name of gRPC.
        client: Who asked.
        started: When, in seconds of the monotonic clock.
        size_bytes: Length of the body or message, as far as it was read.
        status: HTTP status, or the same meaning for gRPC; 0 when nothing was sent.
        result: What came of it: a finish reason, the code of an error, "client_gone", "ok" of what does not generate.
        call: What was asked, once it was understood; for requests that generate.
        prompt: Tokens of the prompt, once made.
        end: Counts and times of a complete answer.
        seconds: Duration of the whole, set at the end.
    """

    interface: str
    method: str
    route: str
    client: Client = ANONYMOUS
    started: float = field(default_factory=time.monotonic)
    size_bytes: int = 0
    status: int = 0
    result: str = "error"
    call: ChatCall | CompletionCall | EmbeddingCall | None = None
    prompt: tuple[int, ...] = ()
    end: End | None = None
    seconds: float = 0.0


class Observer(Protocol):
    """Hears of requests, on the event loop; must be quick."""

    def on_request(self, record: Record) -> None:
        """A request is over."""


class RequestLog:
    """Writes one line per request to the log, probes that succeed left out."""

    def __init__(self, log: Log, *, quiet: frozenset[str]) -> None:
        self._log = log
        self._quiet = quiet

    def on_request(self, record: Record) -> None:
        """See `Observer`."""
        if record.route in self._quiet and record.status < 400:
            return
        fields: dict[str, object] = {
            "interface": record.interface,
            "method": record.method,
            "path": record.route[:200],
            "client": record.client.name,
            "status": record.status,
            "outcome": record.result,
            "seconds": record.seconds,
        }
        if record.end is not None:
            end = record.end
            fields |= {
                "prompt_tokens": end.prompt_tokens,
                "cached_tokens": end.cached_tokens,
                "output_tokens": end.output_tokens,
                "queued_s": end.queued_s,
                "first_token_s": end.first_token_s,
            }
        self._log.info("request", **fields)
