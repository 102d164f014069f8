"""llama.cpp's converter, out of the very source archive that the engine in the image is built from."""

import shutil
import tarfile
import zlib
from pathlib import Path

from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.errors import ToolError
from edgebuild.lock import LockedInput
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress

SCRIPT = "convert_hf_to_gguf.py"
_ENGINE = "llama-cpp"
_SOURCE = "llama-cpp-python"
_PARTS = (SCRIPT, "conversion", "gguf-py")


def find_archive(sources: Sources) -> LockedInput:
    """Return the source archive that the recipe of the engine pins."""
    return next(item for item in sources.recipe(_ENGINE).pinned_inputs() if item.name == _SOURCE)


def unpack_converter(archive: LockedInput, *, sources: Sources, store: Store, progress: Progress) -> Path:
    """Return the folder of the converter and its modules, for PYTHONPATH.

    Raises:
        ToolError: The archive cannot be had, or holds no converter.
        StoreError: The disk is full.
    """
    key = Digest.of(canonical_json({"format": 1, "converter": archive.sha256}))

    def build(folder: Path) -> None:
        (path,) = sources.fetch_all((archive,))
        with progress.task(f"unpack the converter of {archive.name} {archive.version}"):
            try:
                with tarfile.open(path) as opened:
                    for member in opened:
                        inside = member.name.partition("/vendor/llama.cpp/")[2]
                        parts = inside.split("/")
                        if member.isfile() and parts[0] in _PARTS and ".." not in parts:
                            _write(opened, member, folder / inside)
            except (tarfile.TarError, zlib.error, EOFError) as error:
                raise ToolError(
                    f"{archive.file} cannot be unpacked: {error}", hint="run `edgebuild cache verify`"
                ) from error
        if not (folder / SCRIPT).is_file():
            raise ToolError(
                f"{archive.file} holds no {SCRIPT}", hint="this is a broken installation of edgebuild"
            )

    return store.make("artifact", key, build).resolve()


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Unpack a file. TarFile.extract has no filters before Python 3.11.4, and warns without one later."""
    content = archive.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file)
