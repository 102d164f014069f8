"""Opens a model with the engine that it is for: it generates text, or it embeds texts."""

from __future__ import annotations

from edgeserve.engine.embedding import EmbeddingEngine
from edgeserve.engine.library import Library
from edgeserve.engine.llama import LlamaEngine
from edgeserve.engine.model import LlamaModel
from edgeserve.engine.protocol import Engine
from edgeserve.log import Log
from edgeserve.settings import EngineSettings


def open_llama(files: tuple[str, ...], settings: EngineSettings, log: Log) -> Engine:
    """Load a model, which takes as long as reading its files.

    A model whose header says how to make one vector of a text was trained for that and for nothing else.

    Raises:
        EngineError: The library or the model does not load, or cannot do what the settings want.
    """
    library = Library(settings.library_dir, log)
    model = LlamaModel(library, files, use_mmap=settings.mmap)
    if model.has_stray_pages:
        log.warning(
            "mapped-pages",
            file=files[0],
            problem="the kernel lists no mapping of it",
            note="weights that were copied into the processor's order stay in memory twice",
        )
    if model.pooling:
        return EmbeddingEngine(library, model, settings)
    return LlamaEngine(library, model, settings)
