"""The sections of a profile about the server: limits, access, audit log, metrics."""

from typing import Literal

from pydantic import Field, model_validator

from edgebuild.documents import Section
from edgebuild.quantities import Size


class Limits(Section):
    """Hard caps of the server; a request past one is refused."""

    body: Size = Field(default=1 << 20, description="Largest request body")
    prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt, in tokens; by default all of the context but one token",
    )
    output_tokens: int = Field(default=512, ge=1, description="Most tokens generated for one request")
    request_s: int = Field(default=120, ge=1, le=86400, description="Seconds after which a request is ended")
    first_token_s: int = Field(
        default=0,
        ge=0,
        le=86400,
        description="Seconds after which a request without a token is ended; 0: as long as the whole may take",
    )
    queue: int = Field(default=16, ge=0, le=4096, description="Requests that may wait for a slot")
    client_requests: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Requests of one client at the same time, waiting ones included; 0: as many as there are places",
    )
    over_long: Literal["refuse", "window"] = Field(
        default="refuse",
        description="What becomes of a prompt that is too long: refuse, or answer about one overlapping window of it after the other",
    )
    window_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="Text in one window, in tokens; 0: as much as leaves a quarter of the context to the answer",
    )
    window_stride_tokens: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="How much later in the text each next window starts, in tokens; 0: three quarters of a window",
    )
    windows: int = Field(default=16, ge=1, le=1024, description="Most windows of one request")
    connections: int = Field(default=256, ge=1, le=65536, description="Connections open at the same time")
    connections_per_address: int = Field(
        default=64, ge=1, le=65536, description="Connections open at the same time from one address"
    )
    header_s: int = Field(
        default=10, ge=1, le=3600, description="Seconds for a TLS handshake and for a request's header"
    )
    body_s: int = Field(default=30, ge=1, le=3600, description="Seconds for a request's body to come")
    idle_s: int = Field(default=15, ge=1, le=3600, description="Seconds between two requests on a connection")
    unread_s: int = Field(
        default=30, ge=1, le=3600, description="Seconds that a client may leave what is sent to it unread"
    )
    past_context: Literal["stop", "shift"] = Field(
        default="stop",
        description="What an answer does at the end of the context: stop, or forget the older half of what follows the first tokens",
    )
    keep_tokens: int = Field(
        default=32, ge=1, le=1 << 20, description="Tokens at the start of the prompt that a shift keeps"
    )


class Metrics(Section):
    """What Prometheus may read of the server."""

    enabled: bool = Field(default=True, description="Whether there is a /metrics; without it 3 MB are saved")
    open: bool = Field(default=False, description="Whether /metrics needs neither key nor certificate")


class Access(Section):
    """What the server insists on; keys and certificates themselves are mounted at run time, never part of an image."""

    require_tls: bool = Field(default=False, description="Whether the server refuses to start without TLS")
    require_certificate: bool = Field(
        default=False, description="Whether every client needs a certificate (mutual TLS), with a key too"
    )
    require_key: bool = Field(
        default=False, description="Whether every client needs a key, with a certificate too"
    )
    tls_minimum: Literal["1.2", "1.3"] = Field(
        default="1.2", description="Lowest version of TLS; in quotes, since YAML would read a number"
    )


class Audit(Section):
    """What the server writes down of requests, in a volume mounted at /var/lib/edge."""

    enabled: bool = Field(default=False, description="Whether an audit log is kept")
    required: bool = Field(
        default=False, description="Whether requests are refused while the audit log cannot be written"
    )
    prompts: bool = Field(default=False, description="Whether the log holds prompts in the clear")
    sync: Literal["line", "checkpoint"] = Field(
        default="checkpoint", description="What is brought to the disk at once: each line, or each checkpoint"
    )
    checkpoint_lines: int = Field(
        default=100, ge=1, le=10_000, description="Lines after which a checkpoint is signed"
    )
    checkpoint_s: int = Field(
        default=60, ge=1, le=86400, description="Seconds after which a checkpoint is signed"
    )
    file: Size = Field(
        default=8 << 20, ge=1 << 16, le=1 << 28, description="Size at which a new file is begun"
    )
    total: Size = Field(
        default=64 << 20, le=1 << 40, description="Size of all files beyond which the oldest goes"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Audit":
        if self.total < 2 * self.file:
            raise ValueError(f"total: {self.total} bytes are less than two files of {self.file}")
        return self


class Server(Section):
    """The server in the image."""

    port: int = Field(
        default=8080, ge=1024, le=65535, description="TCP port; above 1023, since the server is not root"
    )
    grpc: bool = Field(
        default=False, description="Serve gRPC too; adds a layer of its own to the image and takes memory"
    )
    grpc_port: int = Field(default=50051, ge=1024, le=65535, description="TCP port of gRPC")
    slots: int = Field(
        default=1, ge=1, le=64, description="Requests computed side by side; each has its own context"
    )
    limits: Limits = Field(default=Limits(), description="Hard caps of the server")
    access: Access = Field(default=Access(), description="Who may use the server")
    audit: Audit = Field(default=Audit(), description="What the server writes down of requests")
    metrics: Metrics = Field(default=Metrics(), description="What Prometheus may read of the server")
    model_check: Literal["always", "first_start", "never"] = Field(
        default="first_start",
        description="When the server compares the model's digest; first_start needs a volume over /var/lib/edge to remember",
    )
    memory_check: Literal["refuse", "warn"] = Field(
        default="refuse", description="What the server does where there is less memory than planned"
    )
