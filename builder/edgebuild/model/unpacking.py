"""Models packed as tar, as ModelPack's tools may do: the one GGUF file in it, taken out once."""

import gzip
import tarfile
import zlib
from pathlib import Path

from edgebuild.artifacts.store import Store
from edgebuild.canonical import canonical_json
from edgebuild.errors import ModelError
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.progress import Progress


def unpack(archive: Path, digest: Digest, name: str, *, place: str, store: Store, progress: Progress) -> Path:
    """Return the model's path in the store, taking it out of its archive if it is not there.

    Args:
        archive: A tar, plain or gzip. Nothing but the bytes of one file is taken from it: no path, mode or link.
        digest: Its sha256.
        name: The name that the model gets.
        place: Where the archive came from, for messages.
        store: Keeps the model.
        progress: Told of the bytes.

    Raises:
        ModelError: It is no such archive, or does not hold exactly one GGUF file.
        StoreError: The disk is full.
    """

    def build(folder: Path) -> None:
        try:
            with tarfile.open(archive) as opened:
                member = _only_gguf(opened, f"{place}: the archive {digest.short}")
                packed = opened.extractfile(member)
                assert packed is not None  # a regular file
                with (
                    (folder / name).open("wb") as out,
                    progress.task(f"unpack {name}", total_bytes=member.size) as task,
                ):
                    while chunk := packed.read(CHUNK_BYTES):
                        out.write(chunk)
                        task.advance(len(chunk))
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ModelError(
                f"{place}: the archive {digest.short} cannot be unpacked: {error}",
                hint="push the artifact anew",
            ) from error

    key = Digest.of(canonical_json({"format": 1, "unpacked": digest.hex, "name": name}))
    return store.make("model", key, build) / name


def _only_gguf(opened: tarfile.TarFile, place: str) -> tarfile.TarInfo:
    found = [member for member in opened if member.isfile() and member.name.lower().endswith(".gguf")]
    if len(found) != 1:
        raise ModelError(
            f"{place} holds {len(found)} GGUF files, not one", hint="push the model as one plain file"
        )
    return found[0]
