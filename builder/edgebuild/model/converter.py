"""llama.cpp's converter: from a Hugging Face checkpoint to a 16-bit GGUF file, once, kept in the store.

1. The key is the digests of the checkpoint's files, the converter's source and what it runs on: what was converted
   before is taken, and its weights need not even be here.
2. The converter is unpacked and its environment set up; an architecture that it does not know is refused before weights
   are fetched.
3. The headers of the weights are checked; then it runs, in a process of its own that reads data and nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.errors import ModelError, StoreError, ToolError
from edgebuild.gguf import read_gguf_header
from edgebuild.host import Host
from edgebuild.model.converter_source import SCRIPT, find_archive, unpack_converter
from edgebuild.model.environment import torch_environment, torch_identity
from edgebuild.model.fetched import Fetched
from edgebuild.model.safetensors import verify_weights
from edgebuild.model_spec import make_model_spec, slug
from edgebuild.oci.digest import Digest
from edgebuild.plan import Conversion, ModelSource
from edgebuild.process import run
from edgebuild.progress import Progress, Task

_REFUSED = 1
_DISK_FULL = 3
_WORKER = Path(__file__).with_name("convert_worker.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on its way to a GGUF file.

    Attributes:
        name: What the model is called where its card does not say: the folder's or repository's name.
        place: What it is called in messages.
        settings: Paths of configuration, tokenizer, card and index, by name.
        digests: sha256 of all files, by name.
        quantization: How the weights are quantised already, or "".
        is_here: Whether the weights lie on this machine.
        fetch: Gives the paths of the weights by name; called only when there is work.
        verify: Raises when the files are no longer what their digests say; called when all of them have been read.
        source: Where it was taken from.
    """

    name: str
    place: str
    settings: Mapping[str, Path]
    digests: Mapping[str, Digest]
    quantization: str
    is_here: bool
    fetch: Callable[[], Mapping[str, Path]]
    verify: Callable[[], None]
    source: ModelSource


def convert(
    checkpoint: Checkpoint, *, host: Host, store: Store, progress: Progress, may_set_up: bool = True
) -> Fetched:
    """Return the checkpoint as a GGUF file in 16 bit, from the store when it was converted before.

    Args:
        checkpoint: What is converted.
        host: This machine.
        store: Keeps the result.
        progress: Told how far it is.
        may_set_up: Whether torch and transformers may be fetched for it.

    Raises:
        ModelError: The converter does not know the model, or its files are broken or changed meanwhile.
        ToolError: The converter cannot be had, or failed.
        StoreError: The disk is full.
    """
    # Step 1.
    sources = Sources(host=host, store=store, progress=progress)
    archive = find_archive(sources)
    files = {name: str(digest) for name, digest in sorted(checkpoint.digests.items())}
    name = slug(checkpoint.name)
    recipe = {
        "format": 1,
        "files": files,
        "name": name,
        "converter": archive.sha256,
        "environment": torch_identity(host),
        "type": "auto",
    }
    key = Digest.of(canonical_json(recipe))

    def build(folder: Path) -> None:
        tree = unpack_converter(archive, sources=sources, store=store, progress=progress)
        work = _Work(checkpoint, tree=tree, host=host, store=store, progress=progress, may_set_up=may_set_up)
        work.convert(folder, name)
        # Within the build: what was made of other bytes than the key names must not become an entry.
        checkpoint.verify()

    entry = store.make("model", key, build)
    path = next(iter(sorted(entry.glob("*.gguf"))))
    conversion = Conversion(
        by=f"{SCRIPT} of {archive.name} {archive.version}",
        quantization=checkpoint.quantization,
        files=tuple(files.items()),
    )
    return Fetched(path=path, source=replace(checkpoint.source, conversion=conversion))


class _Work:
    """One conversion that is not in the store."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tree: Path,
        host: Host,
        store: Store,
        progress: Progress,
        may_set_up: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._tree = tree
        self._host = host
        self._store = store
        self._progress = progress
        self._environment = torch_environment(host=host, store=store, progress=progress, may_fetch=may_set_up)

    def convert(self, folder: Path, name: str) -> None:
        """Fill an empty folder with the GGUF file."""
        checkpoint = self._checkpoint
        # The converter sees these files and no others: neither code nor pickles. It names a model after its folder.
        with self._store.workplace("convert") as work:
            stage = work / name
            stage.mkdir()
            _link(stage, checkpoint.settings)
            if not checkpoint.is_here:
                # Step 2.
                with self._progress.task(f"ask the converter about {checkpoint.name}") as task:
                    self._run(task, "check", stage)
            weights = checkpoint.fetch()
            if not checkpoint.is_here:
                # Step 3. Those that are here were looked at first.
                verify_weights(weights, place=checkpoint.place, quantization=checkpoint.quantization)
            _link(stage, weights)
            with self._progress.task(f"convert {checkpoint.name} to GGUF") as task:
                made = folder / "converted.gguf"
                self._run(task, "convert", stage, made)
        # What its card calls it, in the file's name too, as the models of hubs are called.
        spec = make_model_spec(read_gguf_header(made), file_name=f"{name}.gguf")
        made.rename(folder / f"{spec.name}.{spec.quantization}.gguf")

    def _run(self, task: Task, verb: str, *paths: Path) -> None:
        environment = self._environment
        done = run(
            environment.command(_WORKER, verb, *paths),
            environment=environment.variables(self._host, self._tree),
            on_line=_Told(task).line,
            check=False,
        )
        if done.returncode == 0:
            return
        if done.returncode == _DISK_FULL:
            raise StoreError(
                f"no space is left for the store {self._store.root} while {self._checkpoint.name} is converted",
                hint="run `edgebuild cache prune`, or choose another place with --cache DIR",
            )
        log = self._store.scratch("logs") / "convert.log"
        log.write_text(done.stdout + done.stderr)
        if done.returncode == _REFUSED:
            raise ModelError(
                f"{self._checkpoint.place} cannot be converted: {done.reason}",
                hint=f"give a GGUF file of this model, or another model; all that the converter said is in {log}",
            )
        # What it said before a signal ended it, e.g. a warning of torch, is not why.
        ended = done.ended if done.returncode < 0 else done.reason
        raise ToolError(
            f"converting {self._checkpoint.place} failed: {ended}",
            hint=f"check that memory suffices, then try again; its output is in {log}",
        )


class _Told:
    """Passes the worker's lines on to the progress."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._done_bytes = 0

    def line(self, text: str) -> None:
        """Read one line."""
        word, _, number = text.partition(" ")
        if word == "total" and number.isdecimal():
            self._task.resize(int(number))
        elif word == "done" and number.isdecimal():
            self._task.advance(int(number) - self._done_bytes)
            self._done_bytes = int(number)
        else:
            self._task.status(text)


def _link(stage: Path, files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        (stage / name).symlink_to(path)
