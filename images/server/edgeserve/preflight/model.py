"""Is the model the one that the image was built with? Sizes at once, digests before the first byte is interpreted.

The digest is taken before the model is loaded, not beside it: bytes that nobody vouches for never reach the parser, and
on a cold disk it costs nothing extra, since what it reads stays in the page cache, from which the engine then maps it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edgeserve import exits
from edgeserve.engine.protocol import EngineError
from edgeserve.kernel import processor_features
from edgeserve.log import Log
from edgeserve.preflight.card import FileIdentity, load_identities
from edgeserve.preflight.paths import usable_state
from edgeserve.preflight.results import Finding, Result
from edgeserve.preflight.seal import SealBook
from edgeserve.settings import Runtime

_CHUNK_BYTES: Final = 1 << 20
_SHA_FEATURES: Final = frozenset({"sha_ni", "sha2"})
_AGAIN: Final = "pull the image again; if a file of your own is meant, start with EDGE_MODEL_CHECK=never"


class ModelCheckError(EngineError):
    """The model must not be served; `result` says why."""

    def __init__(self, problem: str, code: int) -> None:
        super().__init__(problem)
        finding = Finding(problem=problem, remedy=_AGAIN, exit_code=code)
        self.result = Result(check="model", seen={}, findings=(finding,))


def check_files(runtime: Runtime) -> Result:
    """See that the files are there, can be read, and have their size; reads none of them."""
    settings = runtime.model
    findings = []
    try:
        identities = load_identities(Path(settings.card)) if _is_checked(runtime) else {}
    except ValueError as error:
        identities = {}
        findings.append(Finding(problem=str(error), remedy=_AGAIN, exit_code=exits.MODEL_FILE))
    else:
        findings += _unknown(runtime, identities)
    for file in settings.files:
        findings += _look(file, identities.get(file))
    return Result(
        check="model",
        seen={"files": len(settings.files), "compared": _mode(runtime)},
        findings=tuple(findings),
    )


def _is_checked(runtime: Runtime) -> bool:
    return bool(runtime.model.card) and runtime.model.check != "never"


def _mode(runtime: Runtime) -> str:
    if not runtime.model.card:
        return "none, without a document"
    if runtime.model.check == "first_start" and usable_state(runtime.server.state_dir) is None:
        return "always, without a state folder"
    return runtime.model.check


def _unknown(runtime: Runtime, identities: Mapping[str, FileIdentity]) -> Iterator[Finding]:
    for file in runtime.model.files:
        if _is_checked(runtime) and file not in identities:
            yield Finding(
                problem=f"{runtime.model.card} does not describe {file}",
                remedy=_AGAIN,
                exit_code=exits.MODEL_FILE,
            )


def _look(file: str, identity: FileIdentity | None) -> Iterator[Finding]:
    try:
        state = Path(file).stat()
        is_readable = os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    except OSError as error:
        yield Finding(problem=f"{file}: {error.strerror or error}", remedy=_AGAIN, exit_code=exits.MODEL_FILE)
        return
    if stat.S_ISDIR(state.st_mode) or not is_readable:
        yield Finding(
            problem=f"{file}: cannot be read by user {os.geteuid()}",
            remedy="give a file that the server's user may read",
            exit_code=exits.MODEL_FILE,
        )
    elif identity is not None and state.st_size != identity.size_bytes:
        yield Finding(
            problem=f"{file}: has {state.st_size} bytes, was built with {identity.size_bytes}",
            remedy=_AGAIN,
            exit_code=exits.MODEL_CHANGED,
        )


def verify_model(runtime: Runtime, log: Log) -> None:
    """Compare the digest of every file that no seal vouches for, once `check_files` found nothing; reads them whole.

    Raises:
        ModelCheckError: One is not what the image was built with, or cannot be read.
    """
    if not _is_checked(runtime):
        return
    state = usable_state(runtime.server.state_dir)
    seals = None if state is None or runtime.model.check == "always" else SealBook(state)
    try:
        identities = load_identities(Path(runtime.model.card))
    except ValueError as error:
        raise ModelCheckError(str(error), exits.MODEL_FILE) from error
    for file in runtime.model.files:
        _verify_file(file, identities[file], seals, log)


def _verify_file(file: str, identity: FileIdentity, seals: SealBook | None, log: Log) -> None:
    try:
        with Path(file).open("rb", buffering=0) as opened:
            state = os.fstat(opened.fileno())
            if seals is not None and seals.holds(file, state, identity.digest):
                log.info("model-check", file=file, result="sealed")
                return
            started = time.monotonic()
            digest = _digest(opened.fileno(), identity)
            seconds = time.monotonic() - started
    except OSError as error:
        raise ModelCheckError(f"{file}: {error.strerror or error}", exits.MODEL_FILE) from error
    if digest != identity.digest:
        raise ModelCheckError(
            f"{file}: its bytes are not those that the image was built with: {digest[:19]}…, not {identity.digest[:19]}…",
            exits.MODEL_CHANGED,
        )
    features = processor_features()
    log.info(
        "model-check",
        file=file,
        result="ok",
        mb=state.st_size // 10**6,
        seconds=seconds,
        mb_per_s=round(state.st_size / 1e6 / max(seconds, 1e-6)),
        sha_instructions="unknown" if features is None else "yes" if features & _SHA_FEATURES else "no",
    )
    if seals is not None:
        _keep(seals, file, state, identity.digest, log)


def _keep(seals: SealBook, file: str, state: os.stat_result, digest: str, log: Log) -> None:
    try:
        seals.add(file, state, digest)
    except OSError as error:
        log.warning("model-check", file=file, problem=f"the seal cannot be kept: {error.strerror or error}")


def _digest(descriptor: int, identity: FileIdentity) -> str:
    """Hash in one pass what the layer's tar holds; other threads run meanwhile."""
    import hashlib  # noqa: PLC0415 - brings OpenSSL, which a server that checks nothing does without

    hashed = hashlib.sha256(identity.before)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while count := os.readv(descriptor, [buffer]):
        hashed.update(buffer[:count])
    hashed.update(bytes(identity.after_bytes))
    return f"sha256:{hashed.hexdigest()}"
