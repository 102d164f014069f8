"""sha256 of a model's files, each hashed once as long as it does not change."""

import hashlib
from pathlib import Path

from edgebuild.artifacts.files import foreign_stamp
from edgebuild.errors import ModelError
from edgebuild.oci.blob import CHUNK_BYTES
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE, Seals
from edgebuild.progress import Progress


def file_digest(path: Path, *, seals: Seals, progress: Progress) -> Digest:
    """Return the sha256 of a model's file, hashed once as long as the file does not change.

    Raises:
        ModelError: It cannot be read.
    """
    known = seals.known_digest(path, WHOLE_FILE)
    if known is not None:
        return known
    state = hashlib.sha256()
    try:
        before = foreign_stamp(path)
        with (
            path.open("rb") as file,
            progress.task(f"hash {path.name}", total_bytes=path.stat().st_size) as task,
        ):
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
                task.advance(len(chunk))
        is_same = foreign_stamp(path) == before
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from error
    digest = Digest(state.hexdigest())
    # Of a file that was written meanwhile it may be a digest of half the old and half the new bytes.
    if is_same:
        seals.remember_digest(path, WHOLE_FILE, digest)
    return digest
