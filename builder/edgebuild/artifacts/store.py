"""The store: what was downloaded, built and compressed, each under the digest of all that it was made from.

    <root>/v1/<kind>/<key>/          an entry: a folder that never changes
    <root>/v1/<kind>/<key>.seal      its seal, written last: an entry without one is a leftover; its mtime is the last use
    <root>/v1/locks/  temporary/  digests/  notes/  scratch/  users/

An entry is built in a temporary folder under a lock, sealed and renamed. A killed build leaves a temporary folder
without a holder of its lock, which the next one removes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgebuild.artifacts.files import (
    discard,
    is_older,
    remove_tree,
    store_fault,
    write_atomically,
)
from edgebuild.artifacts.locks import locked, try_locked
from edgebuild.artifacts.memory import DigestMemory
from edgebuild.artifacts.presence import Presence
from edgebuild.artifacts.seals import Seal, Stamp, find_damage, is_untouched, make_seal
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE
from edgebuild.progress import Progress, SilentProgress

KINDS = ("download", "artifact", "layer", "model", "evaluation")
_SEAL = ".seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class KindInfo:
    """What the store holds of one kind.

    Attributes:
        kind: One of `KINDS`, or "scratch": compilers' own caches and half-finished downloads.
        entries: Their number.
        size_bytes: Sum of their files' lengths.
    """

    kind: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What pruning removed.

    Attributes:
        entries: Number of entries.
        size_bytes: Sum of their files' lengths.
    """

    entries: int
    size_bytes: int


class Store:
    """A folder of entries, safe to use from several threads and processes at once."""

    def __init__(self, root: Path, *, progress: Progress | None = None) -> None:
        """Name the folder; nothing is written before the first entry.

        Args:
            root: Absolute path.
            progress: Told of damaged entries.
        """
        self.root = root
        self._base = root / "v1"
        self._progress = progress or SilentProgress()
        self._presence = Presence(self._base / "users")
        self._memory = DigestMemory(self._base / "digests")

    def find(self, kind: str, key: Digest) -> Path | None:
        """Return the folder of a complete and undamaged entry, and note that it was used.

        Raises:
            StoreError: The store cannot be read.
        """
        folder = self._entry(kind, key)
        seal_path = _seal_of(folder)
        with self._faults():
            seal = self._read_seal(seal_path)
            if seal is None:
                return None
            if not is_untouched(folder, seal) and not self._reseal(kind, key, seal):
                return None
            # A store on a read-only disk is fine to read from.
            with suppress(OSError):
                self._presence.announce()
                os.utime(seal_path)
            return folder

    def make(
        self,
        kind: str,
        key: Digest,
        build: Callable[[Path], None],
        *,
        hashed: Mapping[str, Digest] = MappingProxyType({}),
    ) -> Path:
        """Return the entry, built now if it is not there.

        Args:
            kind: One of `KINDS`.
            key: Digest of everything that the content depends on.
            build: Fills an empty folder. When it raises, nothing remains.
            hashed: sha256 of files that `build` compares while it writes them, by name; they are not read again.

        Raises:
            StoreError: The disk is full, or the store cannot be written.
        """
        if (found := self.find(kind, key)) is not None:
            return found
        folder = self._entry(kind, key)
        with self._faults():
            self._prepare(kind)
            self._presence.announce()
            with locked(self._lock_path(kind, key)):
                # Another build may have made it while this one waited.
                if (found := self.find(kind, key)) is not None:
                    return found
                if _seal_of(folder).exists():
                    self._progress.note(
                        f"{kind} {key.short} in the store is damaged (it has no seal of its own); making it anew"
                    )
                self._remove(folder)
                self._sweep(f"{kind}-{key.hex}")
                temporary = self._temporary_path(f"{kind}-{key.hex}")
                # Named before it is made, since an interrupt may come as soon as it is.
                try:
                    _make_open(temporary)
                    build(temporary)
                    _seal_entry(temporary, folder, hashed)
                finally:
                    discard(temporary)
        return folder

    def find_download(self, digest: Digest, file: str) -> Path | None:
        """Return a downloaded file by its sha256.

        Args:
            digest: Its sha256.
            file: The name that it should have; a file of another name has the same bytes.
        """
        entry = self.find("download", digest)
        if entry is None:
            return None
        path = entry / file
        return path if path.is_file() else next(iter(sorted(entry.iterdir())), None)

    def known_digest(self, path: Path, tag: str) -> Digest | None:
        """Return the digest of an entry's file as it was sealed, or the one remembered for any file; see `DigestMemory.known`."""
        sealed = self._sealed_digest(path) if tag == WHOLE_FILE else None
        return sealed or self._memory.known(path, tag)

    def remember_digest(self, path: Path, tag: str, digest: Digest) -> None:
        """Remember the digest of a file; see `DigestMemory.remember`."""
        self._memory.remember(path, tag, digest)

    def recall(self, name: str) -> bytes | None:
        """Return a note, or None; notes save work and nothing depends on one."""
        try:
            return (self._base / "notes" / name).read_bytes()
        except OSError:
            return None

    def remember(self, name: str, note: bytes) -> None:
        """Keep a note. What cannot be written is forgotten."""
        with suppress(OSError):
            place = self._base / "notes" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, note)

    def scratch(self, name: str) -> Path:
        """Return a folder whose content may speed up work but never changes a result; it may vanish between runs.

        Raises:
            StoreError: It cannot be made.
        """
        folder = self._base / "scratch" / name
        with self._faults():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def workplace(self, name: str) -> Iterator[Path]:
        """Give an empty folder that is gone afterwards; what killed builds left in theirs of this name is removed first.

        Raises:
            StoreError: It cannot be made.
        """
        own = f"{name}-{os.urandom(16).hex()}"
        lock = self._base / "locks" / own
        with ExitStack() as stack:
            with self._faults():
                self._prepare("scratch")
                self._sweep_idle(f"{name}-")
                stack.enter_context(locked(lock))
                stack.callback(lock.unlink, missing_ok=True)
                folder = self._temporary_path(own)
                stack.callback(remove_tree, folder)
                _make_open(folder)
            yield folder

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep others out of a piece of work, across threads and processes.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._faults():
            (self._base / "locks").mkdir(parents=True, exist_ok=True)
            with locked(self._base / "locks" / name):
                yield

    def info(self) -> tuple[KindInfo, ...]:
        """Count what the store holds, by kind."""
        found = []
        for kind in KINDS:
            seals = [seal for _, seal in self._seals(kind) if seal is not None]
            found.append(
                KindInfo(kind=kind, entries=len(seals), size_bytes=sum(seal.size_bytes for seal in seals))
            )
        scratch = [path for path in (self._base / "scratch").rglob("*") if path.is_file()]
        size_bytes = sum(path.stat().st_size for path in scratch)
        folders = [path for path in (self._base / "scratch").glob("*") if path.is_dir()]
        return (*found, KindInfo(kind="scratch", entries=len(folders), size_bytes=size_bytes))

    def prune(self, *, unused_since_s: float | None = None) -> Pruned:
        """Remove entries, leftovers and scratch folders, except what living processes build or use.

        Args:
            unused_since_s: Keep what was used at or after this moment, in seconds since 1970; None removes all.

        Raises:
            StoreError: Something cannot be removed.
        """
        entries = size_bytes = 0
        with self._faults():
            if self._base.is_dir():
                self._prepare("locks")
            busy_since_ns = self._presence.others_since_ns()
            limits_ns = [busy_since_ns] if busy_since_ns is not None else []
            limits_ns += [int(unused_since_s * 1e9)] if unused_since_s is not None else []
            limit_ns = min(limits_ns, default=None)
            for kind in KINDS:
                for path, seal in self._seals(kind):
                    if not is_older(path, limit_ns):
                        continue
                    folder = path.with_suffix("")
                    with try_locked(self._lock_path(kind, Digest(folder.name))) as free:
                        if free:
                            self._remove(folder)
                            entries += 1
                            size_bytes += seal.size_bytes if seal else 0
            self._remove_unsealed()
            self._sweep_idle("")
            for folder in () if busy_since_ns is not None else (self._base / "scratch").glob("*"):
                if all(is_older(path, limit_ns) for path in (folder, *folder.rglob("*"))):
                    remove_tree(folder)
            for path in (*(self._base / "digests").glob("*"), *(self._base / "notes").glob("*")):
                if is_older(path, limit_ns):
                    path.unlink(missing_ok=True)
        return Pruned(entries=entries, size_bytes=size_bytes)

    def verify(self) -> tuple[str, ...]:
        """Read every entry whole; name the damaged ones, which the next build makes anew."""
        faults = []
        with self._faults():
            for kind in KINDS:
                for path, seal in self._seals(kind):
                    folder = path.with_suffix("")
                    damage = find_damage(folder, seal) if seal else "its seal cannot be read"
                    if damage:
                        faults.append(f"{kind} {folder.name}: {damage}")
                        path.unlink(missing_ok=True)
        return tuple(faults)

    def _entry(self, kind: str, key: Digest) -> Path:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of entry")
        return self._base / kind / key.hex

    def _lock_path(self, kind: str, key: Digest) -> Path:
        return self._base / "locks" / f"{kind}-{key.hex}"

    def _prepare(self, kind: str) -> None:
        for name in (kind, "locks", "temporary"):
            (self._base / name).mkdir(parents=True, exist_ok=True)

    def _temporary_path(self, prefix: str) -> Path:
        return self._base / "temporary" / f"{prefix}-{os.urandom(8).hex()}"

    def _seals(self, kind: str) -> Iterator[tuple[Path, Seal | None]]:
        for path in sorted((self._base / kind).glob(f"*{_SEAL}")):
            with suppress(FileNotFoundError):
                yield path, Seal.parse(path.read_bytes(), path.with_suffix(""))

    def _read_seal(self, path: Path) -> Seal | None:
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Seal.parse(raw, path.with_suffix(""))

    def _reseal(self, kind: str, key: Digest, seal: Seal) -> bool:
        """Let the bytes decide about an entry whose files look touched."""
        folder = self._entry(kind, key)
        if damage := find_damage(folder, seal):
            self._progress.note(f"{kind} {key.short} in the store is damaged ({damage}); making it anew")
            # Told once. Whoever holds the lock is making it anew already.
            with suppress(OSError):
                self._prepare(kind)
            with suppress(OSError), try_locked(self._lock_path(kind, key)) as free:
                if free:
                    _seal_of(folder).unlink(missing_ok=True)
            return False
        with suppress(OSError):
            write_atomically(_seal_of(folder), make_seal(folder).to_json())
        return True

    def _sealed_digest(self, path: Path) -> Digest | None:
        """Return the sha256 of a file of an entry, unless it has been touched since it was sealed."""
        match path.relative_to(self._base).parts if path.is_relative_to(self._base) else ():
            case (kind, key, *names) if kind in KINDS:
                with suppress(OSError):
                    seal = self._read_seal(_seal_of(self._base / kind / key))
                    sealed = seal.paths.get("/".join(names)) if seal is not None else None
                    if sealed is not None and sealed.kind == "file" and sealed.stamp == Stamp.of(path):
                        return Digest(sealed.content)
        return None

    def _remove(self, folder: Path) -> None:
        # The seal first: an entry that is half gone must not look whole.
        _seal_of(folder).unlink(missing_ok=True)
        remove_tree(folder)

    def _sweep(self, prefix: str) -> None:
        """Remove the temporary folders of an entry; the caller holds its lock."""
        for folder in (self._base / "temporary").glob(f"{prefix}*"):
            discard(folder)

    def _sweep_idle(self, prefix: str) -> None:
        """Remove temporary folders that no living build holds, and idle locks."""
        for folder in (self._base / "temporary").glob(f"{prefix}*"):
            with try_locked(self._base / "locks" / folder.name.rpartition("-")[0]) as free:
                if free:
                    discard(folder)
        for path in (self._base / "locks").glob(f"{prefix}*"):
            with try_locked(path) as free:
                if free:
                    path.unlink(missing_ok=True)

    def _remove_unsealed(self) -> None:
        """Remove what builds that were killed between their last two steps left: folders without seal, parts of seals."""
        for kind in KINDS:
            for path in (self._base / kind).glob("*"):
                entry = path.name.removeprefix(".").partition(".")[0]
                is_whole = path.suffix == _SEAL and not path.name.startswith(".")
                if is_whole or _seal_of(path).exists():
                    continue
                with try_locked(self._base / "locks" / f"{kind}-{entry}") as free:
                    if free and not _seal_of(path).exists():
                        remove_tree(path)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise store_fault(self.root, error) from error


def _make_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)  # whatever the umask is


def _seal_entry(temporary: Path, folder: Path, hashed: Mapping[str, Digest]) -> None:
    try:
        temporary.rename(folder)
        # After the rename, since the seal holds what the file system says now. Files below a renamed folder keep theirs.
        write_atomically(_seal_of(folder), make_seal(folder, hashed=hashed).to_json())
    except BaseException:
        # On a full disk, an entry that nobody can use must not hold the room that it takes.
        remove_tree(folder)
        raise


def _seal_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _SEAL)
