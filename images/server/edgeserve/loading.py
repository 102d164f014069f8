"""From a configuration to a loaded engine: the model checked, a trace around it where one is wanted."""

from __future__ import annotations

from pathlib import Path

from edgeserve.engine.opening import open_llama
from edgeserve.engine.protocol import Engine, EngineError
from edgeserve.log import Log
from edgeserve.preflight.model import verify_model
from edgeserve.settings import Runtime


def load_engine(runtime: Runtime, log: Log) -> Engine:
    """Check and load the model; takes as long as reading the file.

    Raises:
        ModelCheckError: The model is not what the image was built with.
        EngineError: It does not load.
    """
    verify_model(runtime, log)
    if not runtime.server.trace:
        return open_llama(runtime.model.files, runtime.engine, log)
    from edgeserve.trace import Trace, TracedEngine  # noqa: PLC0415 - only where one is wanted

    try:
        trace = Trace(Path(runtime.server.trace), log, name=runtime.model.name, lanes=runtime.engine.slots)
    except OSError as error:
        raise EngineError(f"{runtime.server.trace}: cannot be written: {error.strerror or error}") from error
    return TracedEngine(open_llama(runtime.model.files, runtime.engine, log), trace)
