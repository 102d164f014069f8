"""The smoke test: starts an image's real entrypoint on the profile's processor model and asks it what it is for.

No daemon, no root and no binfmt: the layers are unpacked into a folder, which becomes the read-only root of the server
(sandbox.py); a static qemu-user carries the target's programs. The server is probed from outside, over loopback.
"""

import http.client
import json
import math
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgebuild.errors import ImageError
from edgebuild.grpc_health import SERVING, ask_health
from edgebuild.host import Host
from edgebuild.oci.image import Image
from edgebuild.oci.layer import Role
from edgebuild.plan import VECTOR_LENGTH_LABEL
from edgebuild.process import running
from edgebuild.progress import Progress
from edgebuild.sandbox import make_mount_points, sandbox_argv, sandbox_environment, verify_sandbox
from edgebuild.unpacking import run_section, unpack

READY_TIMEOUT_S = 180.0
ANSWER_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
# An emulator hashes 40 to 60 MB/s; the digest of a larger model is checked on the device alone.
_EMULATED_HASH_BYTES = 64 << 20
_LOG_TAIL_LINES = 6
_ANSWER_BYTES = 1 << 20
# A vector's length is 1; its numbers have 32 bits and come with nine digits.
_LENGTH_TOLERANCE = 1e-3
_TEXT = "ahead"
# The first pass is as long as the longest text, which takes an emulator minutes; the device sees whether it has the memory.
_SHORT_TEXTS = {
    "EDGE_CONTEXT_TOKENS": "64",
    "EDGE_BATCH_TOKENS": "16",
    "EDGE_PROMPT_TOKENS": "16",
    "EDGE_OUTPUT_TOKENS": "1",
    "EDGE_SLOTS": "1",
    "EDGE_PAST_CONTEXT": "stop",
}
_QUESTION = "alt 42 m; speed 7 m/s; obstacle 30 m left; battery 18 %; temp 41 C; gps ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeResult:
    """What the check saw.

    Attributes:
        cpu_model: Processor model that the image ran on.
        cpu_variant: Engine variant that it loaded.
        ready_s: Seconds from start to ready, emulated.
        answer: What it answered; of a model that embeds texts, in our words.
        vector_length: Numbers in the vector that it gave; None of a model that generates text.
    """

    cpu_model: str
    cpu_variant: str
    ready_s: float
    answer: str
    vector_length: int | None


def smoke_test(image: Image, *, qemu: Path, scratch: Path, host: Host, progress: Progress) -> SmokeResult:
    """Start the image, wait until it is ready, ask one question or for one vector, stop it.

    Steps: (1) unpack the layers, (2) start the entrypoint in a namespace, (3) wait for ready, (4) compare the engine
    variant that it loaded, (5) ask, (6) stop it with SIGTERM and see that it ends by itself.

    Args:
        image: The image; its blobs are read where they are. Its labels name the processor model and the engine variant
            that this must load, and the length of vectors if the model embeds texts.
        qemu: Static qemu-user for the image's platform.
        scratch: Folder to unpack in; it must allow executables.
        host: This machine.
        progress: Told each step.

    Raises:
        ImageError: The image does not start, answer as it should, choose the right variant or stop.
        SandboxUnavailableError: This machine cannot run the check.
        ToolError: The disk is full, or a layer cannot be read.
    """
    verify_sandbox(host)
    cpu_model, cpu_variant = (
        _label(image, name) for name in ("dev.edgebuild.cpu.model", "dev.edgebuild.cpu.expected")
    )
    with (
        progress.task(f"smoke test {image.profile} on {cpu_model}") as task,
        tempfile.TemporaryDirectory(dir=scratch, prefix="smoke-") as folder,
    ):
        root, log_path = Path(folder) / "root", Path(folder) / "log"
        root.mkdir(mode=0o755)
        task.status("unpack")
        unpack(image.layers, root)
        config = run_section(image.config)
        _install(qemu, root)
        with log_path.open("w+b") as log:
            port, grpc_port = free_ports(2)
            settings = _settings(image, port=port, grpc_port=grpc_port, cores=host.cpu_count)
            guest = _guest_argv(config, cpu_model=cpu_model, settings=settings)
            uid, _, gid = str(config.get("User") or "0:0").partition(":")
            argv = sandbox_argv(root, guest, uid=uid, gid=gid or uid)
            with running(argv, environment=sandbox_environment(host), log=log) as server:
                begin = time.monotonic()
                task.status("wait until ready")
                ready = _wait_ready(port, server, log)
                ready_s = time.monotonic() - begin
                loaded = str(ready.get("cpu_variant"))
                if loaded != cpu_variant:
                    raise ImageError(
                        f"{image.profile}: on {cpu_model} the image loaded engine variant {loaded}, the profile expects {cpu_variant}",
                        hint="correct cpu.variant or cpu.model in the profile",
                    )
                task.status("ask")
                model, vector_length = str(ready.get("model")), _vector_length(image)
                if vector_length is None:
                    answer = _ask(port, model, log)
                else:
                    answer = _ask_vector(port, model, log, length=vector_length)
                if _has_grpc(image):
                    _ask_grpc(grpc_port, log)
                task.status("stop")
                server.terminate()
                _wait_stopped(server, image, log)
    return SmokeResult(
        cpu_model=cpu_model,
        cpu_variant=loaded,
        ready_s=round(ready_s, 2),
        answer=answer,
        vector_length=vector_length,
    )


def _label(image: Image, name: str) -> str:
    value = image.labels().get(name, "")
    if not value:
        raise ImageError(f"image {image.digest.short} has no label {name}", hint="build it with edgebuild")
    return value


def _vector_length(image: Image) -> int | None:
    """Return how many numbers the image's vectors have; None where its model generates text."""
    text = image.labels().get(VECTOR_LENGTH_LABEL, "")
    return int(text) if text.isdecimal() else None


def _install(qemu: Path, root: Path) -> None:
    """Put qemu and mount points where the namespace looks for them; the root itself is read-only later."""
    target = root / ".qemu"
    target.write_bytes(qemu.read_bytes())
    target.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    make_mount_points(root)


def _has_grpc(image: Image) -> bool:
    return any(layer.role is Role.GRPC for layer in image.layers)


def _settings(image: Image, *, port: int, grpc_port: int, cores: int) -> dict[str, str]:
    """Set the server up for an emulator on a machine that is not the device."""
    model_bytes = sum(layer.size_bytes for layer in image.layers if layer.role is Role.MODEL)
    grpc = {"EDGE_GRPC_PORT": str(grpc_port)} if _has_grpc(image) else {}
    return (
        grpc
        | (_SHORT_TEXTS if _vector_length(image) is not None else {})
        | {
            "EDGE_HOST": "127.0.0.1",
            "EDGE_PORT": str(port),
            # One core stays free: threads that wait for each other in an emulator on a busy machine wait very long.
            "EDGE_THREADS": str(max(1, cores - 1)),
            # The device has the memory of the plan; this machine need not.
            "EDGE_MEMORY_CHECK": "warn",
            "EDGE_MLOCK": "false",
            # What the device mounts is not here; that the server insists on it is tested where it can be.
            "EDGE_REQUIRE_TLS": "false",
            "EDGE_REQUIRE_CERTIFICATE": "false",
            "EDGE_REQUIRE_KEY": "false",
            "EDGE_MODEL_CHECK": "always" if model_bytes <= _EMULATED_HASH_BYTES else "never",
        }
    )


def _guest_argv(config: Mapping[str, Any], *, cpu_model: str, settings: Mapping[str, str]) -> list[str]:
    """Give the image's own entrypoint and command, carried by qemu, with its environment and the test's settings."""
    environment = [*config.get("Env", []), *(f"{name}={value}" for name, value in settings.items())]
    given = [argument for variable in environment for argument in ("-E", variable)]
    return ["/.qemu", "-cpu", cpu_model, *given, *config["Entrypoint"], *config.get("Cmd", [])]


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, ...]:
    """Return different ports of the loopback that nobody listens on now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)


def _request(port: int, path: str, document: object | None, *, timeout_s: float) -> tuple[int, str]:
    """Ask the server on loopback; return status and body.

    Raises:
        OSError: Nobody answers.
        http.client.HTTPException: The answer is no HTTP.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    with closing(connection):
        if document is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(_ANSWER_BYTES).decode(errors="replace")


def _wait_ready(port: int, server: Any, log: IO[bytes]) -> Mapping[str, Any]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ImageError(
                f"the image stopped with exit code {server.returncode} before it was ready: {_tail(log)}",
                hint="see the messages above",
            )
        with suppress(OSError, http.client.HTTPException):
            status, body = _request(port, "/readyz", None, timeout_s=5.0)
            if status == 200:
                return json.loads(body)  # type: ignore[no-any-return]
        time.sleep(0.05)
    raise ImageError(
        f"the image was not ready within {READY_TIMEOUT_S:.0f} s: {_tail(log)}", hint="see the messages above"
    )


def _ask(port: int, model: str, log: IO[bytes]) -> str:
    asked = {"model": model, "max_tokens": 48, "temperature": 0}
    chat = asked | {"messages": [{"role": "user", "content": _QUESTION}]}
    status, body = _post(port, "/v1/chat/completions", chat, log)
    is_chat = not (status == 400 and "template" in body)
    if not is_chat:
        # A base model has no chat template; its plain completion is what users will ask for.
        status, body = _post(port, "/v1/completions", asked | {"prompt": _QUESTION}, log)
    choice = _answer(status, body)["choices"][0]
    text = str(choice["message"]["content"] if is_chat else choice["text"]).strip()
    if not text:
        raise ImageError(
            "the image gave an empty answer", hint="check the model with llama.cpp on this machine"
        )
    return text


def _ask_vector(port: int, model: str, log: IO[bytes], *, length: int) -> str:
    """Ask for the vector of a text, and see that it is one: as long as the model makes them, of numbers, of length 1."""
    document = {"model": model, "input": _TEXT, "encoding_format": "float"}
    values = _answer(*_post(port, "/v1/embeddings", document, log))["data"][0]["embedding"]
    size = math.hypot(*map(float, values))
    if len(values) != length or not abs(size - 1) < _LENGTH_TOLERANCE:
        raise ImageError(
            f"the image gave {len(values)} numbers of length {size:.3g} for a text, and the model makes {length} of length 1",
            hint="check the model with llama.cpp on this machine",
        )
    return f"a vector of {length} numbers"


def _post(port: int, path: str, document: object, log: IO[bytes]) -> tuple[int, str]:
    try:
        return _request(port, path, document, timeout_s=ANSWER_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(
            f"the image gave no answer: {type(error).__name__}: {_tail(log)}",
            hint="see the messages above",
        ) from error


def _answer(status: int, body: str) -> Any:
    """Read the document of an answer.

    Raises:
        ImageError: It is none.
    """
    if status != 200:
        raise ImageError(f"the image answered {status}: {body[:300]}", hint="see the messages above")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ImageError(
            f"the image's answer is no JSON: {body[:300]!a}", hint="see the messages above"
        ) from error


def _ask_grpc(port: int, log: IO[bytes]) -> None:
    try:
        status = ask_health(port, timeout_s=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise ImageError(
            f"the image does not answer over gRPC: {error}: {_tail(log)}", hint="see the messages above"
        ) from error
    if status != SERVING:
        raise ImageError(f"over gRPC the image says that its health is {status}: {_tail(log)}")


def _wait_stopped(server: Any, image: Image, log: IO[bytes]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.poll() is None:
        raise ImageError(
            f"{image.profile}: the server did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM: {_tail(log)}"
        )
    if server.returncode != 0:
        raise ImageError(
            f"{image.profile}: the server stopped with exit code {server.returncode}: {_tail(log)}"
        )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    # The emulator's own warnings and the probes' requests may stand behind what is to be told.
    told = [line for line in lines if " error " in line] or lines
    return " | ".join(told[-_LOG_TAIL_LINES:]) or "it said nothing"
