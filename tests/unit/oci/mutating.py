"""Ways to break a sound layout, each as a function that changes its draft."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.unit.oci.drafts import (
    Draft,
    DraftLayer,
    Json,
    archive,
    folder,
    member,
)

Mutation = Callable[[Draft], object]


def change(target: Callable[[Draft], object], attribute: str, how: Callable[[Json], object]) -> Mutation:
    """Let `how` change a document of the draft before it is hashed."""
    return lambda draft: setattr(target(draft), attribute, how)


def config(how: Callable[[Json], object]) -> Mutation:
    return change(lambda draft: draft.images[0], "change_config", how)


def manifest(how: Callable[[Json], object]) -> Mutation:
    return change(lambda draft: draft.images[0], "change_manifest", how)


def entry(how: Callable[[Json], object]) -> Mutation:
    return change(lambda draft: draft.images[0], "change_entry", how)


def index(how: Callable[[Json], object]) -> Mutation:
    return change(lambda draft: draft, "change_index", how)


def index_json(how: Callable[[Json], object]) -> Mutation:
    return change(lambda draft: draft, "change_index_json", how)


def afterwards(how: Callable[[Path], object]) -> Mutation:
    return change(lambda draft: draft, "afterwards", how)  # type: ignore[arg-type]


def members(how: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object], role: str = "rootfs") -> Mutation:
    return lambda draft: how(draft.layer(role).members)


def attribute(name: str, key: str, value: object) -> Mutation:
    """Change one attribute of one member of the root file system."""

    def mutate(draft: Draft) -> None:
        info = next(info for info, _ in draft.layer("rootfs").members if info.name == name)
        setattr(info, key, value)

    return mutate


def add(*extra: tuple[tarfile.TarInfo, bytes], role: str = "rootfs") -> Mutation:
    """Add members at their places."""

    def mutate(draft: Draft) -> None:
        found = draft.layer(role).members
        found.extend(extra)
        found.sort(key=lambda item: item[0].name.encode(errors="surrogateescape"))

    return mutate


def only(role: str = "rootfs", **settings: object) -> Mutation:
    def mutate(draft: Draft) -> None:
        for key, value in settings.items():
            setattr(draft.layer(role), key, value)

    return mutate


def raw_tar(how: Callable[[bytes], bytes], role: str = "rootfs") -> Mutation:
    """Change the archive; its diff_id is that of the change."""

    def mutate(draft: Draft) -> None:
        layer = draft.layer(role)
        layer.tar = how(archive(layer.members))

    return mutate


def raw_blob(how: Callable[[bytes], bytes], role: str = "rootfs") -> Mutation:
    """Change the compressed bytes; digest and size are those of the change, the diff_id stays."""

    def mutate(draft: Draft) -> None:
        layer = draft.layer(role)
        layer.blob = how(gzip.compress(archive(layer.members), 6, mtime=0))

    return mutate


def field(name: str, offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite bytes in the header of a member and mend its checksum."""

    def patch(raw: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            at = tar.getmember(name).offset_data - 512
        block = bytearray(raw[at : at + 512])
        block[offset : offset + len(value)] = value
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return raw[:at] + bytes(block) + raw[at + 512 :]

    return patch


def with_pax(**records: str) -> Mutation:
    return attribute("usr/bin/python3.13", "pax_headers", records)


def blob_of(path: Path, number: int) -> Path:
    """Return the layer `number` of the first image."""
    top = json.loads((path / "index.json").read_text())["manifests"][1]
    document = json.loads((path / "blobs/sha256" / top["digest"][7:]).read_text())
    digest: str = document["layers"][number]["digest"]
    return path / "blobs/sha256" / digest[7:]


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def swap_model(draft: Draft) -> None:
    """Bake the same file in the second image, in an archive that says it another way."""
    draft.layer("model", 1).members[1][0].pax_headers = {"path": "models/m.gguf"}


def model_of(*names: str) -> Mutation:
    """Bake a model in several files into both images, each in a layer of its own."""

    def mutate(draft: Draft) -> None:
        for image in draft.images:
            image.layers[:1] = [
                DraftLayer(
                    "model", [folder("models"), member(f"models/{name}", name.encode())], compressed=False
                )
                for name in names
            ]

    return mutate


def tag_a_lone_image(document: Json) -> None:
    document["manifests"] = document["manifests"][1:]


def demanding(draft: Draft) -> None:
    draft.images[0].labels["dev.edgebuild.memory.need_bytes"] = "200"
    draft.images[1].labels["dev.edgebuild.memory.need_bytes"] = "100"
    for image in draft.images:
        image.platform = {"architecture": "amd64", "os": "linux"}


def processors(draft: Draft) -> None:
    for image, variant in zip(draft.images, ("haswell", "x64"), strict=True):
        image.platform = {"architecture": "amd64", "os": "linux"}
        image.labels |= {
            "dev.edgebuild.cpu.variants": "x64,sse42,haswell",
            "dev.edgebuild.cpu.expected": variant,
        }


def accelerated_first(draft: Draft) -> None:
    draft.images[0].layers.insert(0, DraftLayer("accelerator", [folder("opt"), member("opt/cuda")]))
    for image in draft.images:
        image.platform = {"architecture": "amd64", "os": "linux"}


def broken_signature(path: Path) -> None:
    (path / "blobs/sha256" / hashlib.sha256(b"payload").hexdigest()).write_bytes(b"Payload")


def signed_and(how: Mutation) -> Mutation:
    def mutate(draft: Draft) -> None:
        draft.signed = True
        how(draft)

    return mutate


def huge_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT)
