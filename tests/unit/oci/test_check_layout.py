"""The checker: nothing is wrong with a sound layout, and every single broken rule is found where it is."""

import ast
import gzip
import hashlib
import io
import itertools
import json
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import edgebuild.oci
from edgebuild.errors import ImageError
from edgebuild.oci import check_layer
from edgebuild.oci.check import check_layout, verify_layout
from tests.unit.oci.drafts import (
    CONFIG,
    EPOCH_S,
    REF_NAME,
    TAR,
    Draft,
    DraftLayer,
    Json,
    archive,
    folder,
    link,
    make_draft,
    member,
)

Mutation = Callable[[Draft], object]


def test_a_sound_layout_has_no_faults(tmp_path: Path) -> None:
    assert check_layout(make_draft().write(tmp_path)) == ()
    verify_layout(tmp_path)


def test_signatures_are_followed_and_tolerated(tmp_path: Path) -> None:
    draft = make_draft()
    draft.signed = True
    assert check_layout(draft.write(tmp_path)) == ()


def test_the_layers_of_a_base_image_keep_their_own_rules(tmp_path: Path) -> None:
    draft = make_draft()
    foreign = [member("usr/bin/su", b"", mode=0o4755, mtime=5, uname="root"), member(".wh.x"), member("a")]
    draft.images[0].layers.insert(0, DraftLayer("base", foreign))
    assert check_layout(draft.write(tmp_path)) == ()


def test_other_models_of_the_same_name_and_size(tmp_path: Path) -> None:
    draft = make_draft()
    info, data = draft.layer("model", 1).members[1]
    draft.layer("model", 1).members[1] = (info, b"Z" * len(data))
    assert check_layout(draft.write(tmp_path)) == ()


def test_the_checker_shares_no_code_with_the_writers() -> None:
    package = Path(edgebuild.oci.__path__[0])
    imported = set()
    for path in package.glob("check*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgebuild"):
                imported.add(node.module or "")
    own = {f"edgebuild.oci.{path.stem}" for path in package.glob("check*.py")}
    assert imported - own == {"edgebuild.errors"}


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


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    # 1 layout
    "marker missing": (afterwards(lambda p: (p / "oci-layout").unlink()), "oci-layout: is missing"),
    "marker version": (
        afterwards(lambda p: (p / "oci-layout").write_text('{"imageLayoutVersion":"1.1.0"}')),
        "version",
    ),
    "marker no JSON": (afterwards(lambda p: (p / "oci-layout").write_text("")), "oci-layout: is not JSON"),
    "index.json missing": (afterwards(lambda p: (p / "index.json").unlink()), "index.json: is missing"),
    "index.json no object": (
        afterwards(lambda p: (p / "index.json").write_text("[]")),
        "is not a JSON object",
    ),
    "index.json schema": (
        index_json(lambda d: d.update(schemaVersion=1)),
        "index.json: schemaVersion is not 2",
    ),
    "index.json media type": (index_json(lambda d: d.update(mediaType=CONFIG)), "index.json: mediaType is"),
    "index.json empty": (index_json(lambda d: d.update(manifests=[])), "names no index of images"),
    "index.json no list": (index_json(lambda d: d.update(manifests={})), "has no list 'manifests'"),
    # 2 descriptors
    "no descriptor": (index(lambda d: d["manifests"].append("x")), "is no descriptor"),
    "other digest algorithm": (entry(lambda d: d.update(digest="sha512:" + "0" * 128)), "is no descriptor"),
    "blob missing": (afterwards(lambda p: blob_of(p, 1).unlink()), "is missing"),
    "blob size": (entry(lambda d: d.update(size=5)), "bytes, not 5"),
    "layer size": (only(change=lambda d: d.update(size=d["size"] + 1)), "bytes, not"),
    "layer bytes": (afterwards(lambda p: flip(blob_of(p, 1))), "has the digest"),
    "model bytes": (afterwards(lambda p: flip(blob_of(p, 0))), "has the digest"),
    "model longer": (afterwards(lambda p: longer(blob_of(p, 0))), "has the digest"),
    "annotations": (entry(lambda d: d["annotations"].update(number=1)), "annotations are not strings"),
    # 3 media types
    "zstd layer": (only(change=lambda d: d.update(mediaType=TAR + "+zstd")), "mediaType"),
    "docker layer": (
        only(change=lambda d: d.update(mediaType="application/vnd.docker.image.rootfs.diff.tar.gzip")),
        "mediaType",
    ),
    "config media type": (
        manifest(lambda d: d["config"].update(mediaType="application/json")),
        "config: mediaType",
    ),
    "manifest media type": (entry(lambda d: d.update(mediaType="application/json")), "mediaType"),
    "manifest says another": (manifest(lambda d: d.update(mediaType=CONFIG)), "mediaType inside is"),
    "manifest schema": (manifest(lambda d: d.update(schemaVersion=1)), "schemaVersion is not 2"),
    "index says another": (index(lambda d: d.pop("mediaType")), "mediaType inside is None"),
    # 4 config and manifest
    "too few diff_ids": (config(lambda d: d["rootfs"]["diff_ids"].pop()), "has 2 diff_ids for 3 layers"),
    "no rootfs": (config(lambda d: d.pop("rootfs")), "has no rootfs"),
    "diff_id": (config(lambda d: d["rootfs"]["diff_ids"].reverse()), "diff_id is"),
    "history": (config(lambda d: d["history"].pop()), "history of 2 layers for 3"),
    "history of empty layers": (config(lambda d: d["history"][0].update(empty_layer=True)), "history of 2"),
    "architecture": (config(lambda d: d.update(architecture="amd64")), "platform is not the config's"),
    "variant": (entry(lambda d: d["platform"].pop("variant")), "platform is not the config's linux/arm64/v8"),
    "no platform": (entry(lambda d: d.pop("platform")), "has no platform"),
    "manifest too large": (
        manifest(lambda d: d.update(annotations={"x": "x" * (5 << 20)})),
        "too large for a document",
    ),
    "no config": (manifest(lambda d: d.pop("config")), "config: is no descriptor"),
    # 5 tar rules
    "order": (members(lambda m: m.insert(0, m.pop())), "names are not sorted"),
    "order of bytes": (members(lambda m: m.insert(1, member("B")[:2])), "names are not sorted"),
    "twice": (members(lambda m: m.insert(2, m[1])), "name comes twice: etc/passwd"),
    "uid": (attribute("etc", "uid", 5), "owner is not 0:0: etc"),
    "gid": (attribute("etc", "gid", 5), "owner is not 0:0: etc"),
    "user name": (attribute("etc", "uname", "root"), "owner has a name: etc"),
    "group name": (attribute("etc", "gname", "root"), "owner has a name: etc"),
    "time": (attribute("etc/passwd", "mtime", EPOCH_S + 1), f"time is not {EPOCH_S}: etc/passwd"),
    "time in parts": (attribute("etc/passwd", "mtime", EPOCH_S + 0.5), "time is not"),
    "setuid": (attribute("usr/bin/python3.13", "mode", 0o4755), "mode of a file is neither"),
    "group writable": (attribute("etc/passwd", "mode", 0o664), "mode of a file is neither"),
    "folder mode": (
        attribute("usr", "mode", 0o700),
        "mode of a directory is not the one of its path: usr (0700)",
    ),
    "tmp mode": (
        attribute("tmp", "mode", 0o755),
        "mode of a directory is not the one of its path: tmp (0755)",
    ),
    "root mode": (
        attribute("root", "mode", 0o755),
        "mode of a directory is not the one of its path: root (0755)",
    ),
    "sticky elsewhere": (attribute("usr", "mode", 0o1777), "mode of a directory is not"),
    "no parent": (members(lambda m: m.pop(5)), "parent directory is missing: usr/bin"),
    "below a file": (add(member("etc/passwd/x")), "lies below what is no directory: etc/passwd/x"),
    "below a link": (add(member("lib/x")), "lies below what is no directory: lib/x"),
    "absolute": (members(lambda m: m.insert(0, member("/abs"))), "name is absolute"),
    "dots": (members(lambda m: m.extend([folder(".."), member("../x")])), "'..' part: .."),
    "dot": (
        members(lambda m: m.insert(0, folder("."))),
        "name is absolute or has an empty, '.' or '..' part: .",
    ),
    "dot slash": (members(lambda m: m.insert(0, member("./x"))), "'..' part: ./x"),
    "empty part": (add(folder("usr//lib2")), "'..' part: usr//lib2"),
    "device": (add(member("etc/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)), "is not a file"),
    "block device": (add(member("etc/sda", kind=tarfile.BLKTYPE, devmajor=8)), "is not a file"),
    "pipe": (
        add(member("etc/pipe", kind=tarfile.FIFOTYPE)),
        "is not a file, directory or symbolic link: etc/pipe",
    ),
    "hard link": (add(member("etc/same", kind=tarfile.LNKTYPE, linkname="etc/passwd")), "is not a file"),
    "whiteout": (add(member("etc/.wh.passwd")), "name is a whiteout: etc/.wh.passwd"),
    "empty link": (attribute("lib", "linkname", ""), "symbolic link leads nowhere: lib"),
    "not UTF-8": (
        raw_tar(field("etc/passwd", 0, b"etc/\xff\xffsswd")),
        "name is not UTF-8: etc/\\udcff\\udcffsswd",
    ),
    "beyond ASCII without PAX": (
        only(tar_format=tarfile.USTAR_FORMAT, members=[member("ü")]),
        "beyond ASCII",
    ),
    "GNU format": (
        only(tar_format=tarfile.GNU_FORMAT, members=[member("a")]),
        "is not in ustar or PAX format",
    ),
    "GNU long name": (
        only(tar_format=tarfile.GNU_FORMAT, members=[member("l" * 200)]),
        "uses a GNU extension",
    ),
    "base 256": (
        raw_tar(field("etc/passwd", 136, b"\x80" + EPOCH_S.to_bytes(11, "big"))),
        "number in base 256: etc/passwd",
    ),
    "old format": (raw_tar(field("etc/passwd", 257, bytes(8))), "is not in ustar or PAX format: etc/passwd"),
    "global header": (
        raw_tar(lambda raw: tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + raw),
        "global PAX",
    ),
    "other PAX records": (with_pax(**{"SCHILY.xattr.security.capability": "x"}), "PAX records beyond"),
    "no end": (
        raw_tar(lambda raw: raw.rstrip(b"\0") + bytes(-len(raw.rstrip(b"\0")) % 512)),
        "two blocks of zeros",
    ),
    "more behind the end": (raw_tar(lambda raw: raw + b"x" * 512), "other bytes at offset"),
    "damaged header": (raw_tar(lambda raw: raw[:1536] + b"\xff" + raw[1537:]), "a damaged header"),
    "cut short": (raw_tar(lambda raw: raw[:1000]), "cannot be unpacked"),
    "no tar": (raw_tar(lambda _: b"x" * 2048), "cannot be unpacked"),
    "huge header": (raw_tar(lambda _: huge_header()), "extended header of"),
    "gzip name": (
        raw_blob(lambda raw: raw[:3] + b"\x08" + raw[4:10] + b"name\0" + raw[10:]),
        "gzip header holds a name",
    ),
    "gzip time": (raw_blob(lambda raw: raw[:4] + struct.pack("<I", 5) + raw[8:]), "gzip header holds a time"),
    "gzip checksum": (raw_blob(lambda raw: raw[:-8] + bytes(4) + raw[-4:]), "cannot be unpacked"),
    "gzip cut short": (raw_blob(lambda raw: raw[:-20]), "gzip data end early"),
    "gzip twice": (raw_blob(lambda raw: raw + raw), "bytes follow the gzip member"),
    "gzip and more": (raw_blob(lambda raw: raw + b"\0"), "bytes follow the gzip member"),
    "no gzip": (raw_blob(gzip.decompress), "cannot be unpacked"),
    "empty blob": (afterwards(lambda p: blob_of(p, 1).write_bytes(b"")), "gzip data end early"),
    # 6 between layers
    "file in two layers": (add(member("etc/passwd"), role="config"), "etc/passwd is in layer 1 already"),
    "folder of another mode": (
        attribute("etc", "mode", 0o700),
        "directory etc differs from the one in layer 1",
    ),
    "role order": (lambda d: d.images[0].layers.reverse(), "lies above config"),
    "no role": (only(change=lambda d: d.pop("annotations")), "role '' is not one of"),
    "unknown role": (
        lambda d: setattr(d.layer("rootfs"), "role", "software"),
        "role 'software' is not one of",
    ),
    "below another layer's link": (
        add(folder("lib"), member("lib/x"), role="config"),
        "lib/x lies below lib, no directory in layer 1",
    ),
    "below a base image's link": (
        lambda d: d.images[0].layers.insert(0, DraftLayer("base", [link("etc", "usr/etc")])),
        "lies below etc, no directory in layer 0",
    ),
    "folder and file": (add(folder("etc/passwd"), role="config"), "etc/passwd is in layer 1 already"),
    # 7 models
    "compressed model": (only("model", compressed=True), "a model's layer is compressed"),
    "the same model in two layers": (swap_model, "models/m.gguf is the same file as in"),
    # 8 indexes and tags
    "no profile": (entry(lambda d: d["annotations"].clear()), "has no annotation dev.edgebuild.profile"),
    "profile twice": (lambda d: setattr(d.images[1], "profile", "pi4"), "profile 'pi4' comes twice"),
    "memory order": (demanding, "stands behind an image of its platform that demands more"),
    "processor order": (processors, "stands behind an image of its platform that demands more"),
    "accelerator order": (accelerated_first, "stands behind an image of its platform that demands more"),
    "no tag of a profile": (
        index_json(lambda d: d["manifests"].pop(1)),
        "does not name its manifest '1-pi4'",
    ),
    "tag of another": (
        index_json(
            lambda d: d["manifests"][1].update(
                {k: d["manifests"][2][k] for k in ("digest", "size", "platform")}
            )
        ),
        "does not name its manifest '1-pi4'",
    ),
    "tag twice": (
        index_json(lambda d: d["manifests"].append(d["manifests"][0])),
        "the tag '1' is given twice",
    ),
    "image without index": (index_json(tag_a_lone_image), "is an image that no index holds"),
    "index without images": (index(lambda d: d.update(manifests=[])), "holds no image"),
    # 9 leftovers
    "left over": (
        afterwards(lambda p: (p / "blobs/sha256" / ("0" * 64)).write_bytes(b"")),
        "nothing refers to it",
    ),
    "half written": (
        afterwards(lambda p: (p / "blobs/sha256/.edgebuild-blob").write_bytes(b"")),
        "nothing refers to it",
    ),
    "blob elsewhere": (
        afterwards(lambda p: (p / "blobs/file").write_bytes(b"")),
        "blobs/file: nothing refers to it",
    ),
    # signatures
    "signature bytes": (signed_and(afterwards(broken_signature)), "has the digest"),
}


def huge_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_broken_rule_is_found(name: str, tmp_path: Path) -> None:
    mutate, message = MUTATIONS[name]
    draft = make_draft()
    mutate(draft)
    faults = [str(fault) for fault in check_layout(draft.write(tmp_path))]
    assert any(message in fault for fault in faults), faults
    assert all("\n" not in fault and fault.isprintable() for fault in faults)


def test_verify_says_all_faults_at_once(tmp_path: Path) -> None:
    draft = make_draft()
    attribute("etc", "uid", 5)(draft)
    config(lambda document: document["history"].pop())(draft)
    with pytest.raises(ImageError, match=r"has 3 faults: .*history.*; .*owner.*; .*differs") as caught:
        verify_layout(draft.write(tmp_path))
    assert caught.value.hint


def test_an_unreadable_layout(tmp_path: Path) -> None:
    assert [str(fault) for fault in check_layout(tmp_path / "nowhere")] == [
        "oci-layout: is missing",
        "index.json: is missing",
        "index.json: names no index of images",
        "blobs: is missing",
    ]


def test_a_rule_broken_a_thousand_times_is_one_fault(tmp_path: Path) -> None:
    draft = make_draft()
    names = sorted(str(number) for number in range(1000))
    draft.layer("rootfs").members = [member(name, uid=5) for name in names]
    faults = check_layout(draft.write(tmp_path))
    assert [fault.message for fault in faults] == ["owner is not 0:0: 0 and 999 more"]


def test_shared_blobs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.open

    def recording(self: Path, *arguments: str, **settings: str) -> object:
        read.append(self.name)
        return original(self, *arguments, **settings)  # type: ignore[call-overload]

    draft = make_draft()
    draft.signed = True
    draft.write(tmp_path)
    monkeypatch.setattr(Path, "open", recording)
    assert check_layout(tmp_path) == ()
    counts = {name: len(list(group)) for name, group in itertools.groupby(sorted(read))}
    blobs = {path.name for path in (tmp_path / "blobs/sha256").iterdir()}
    assert {name: count for name, count in counts.items() if name in blobs and count > 1} == {}


def test_memory_does_not_grow_with_a_layer(tmp_path: Path) -> None:
    """Zeros that unpack to a thousand times their size: streamed."""
    bomb = tmp_path / "bomb"
    inflated = 64 << 20
    info = member("zeros", size=inflated)[0]
    with gzip.GzipFile(bomb, "wb", mtime=0) as out:
        out.write(info.tobuf(tarfile.PAX_FORMAT))
        for _ in range(inflated >> 20):
            out.write(bytes(1 << 20))
        out.write(bytes(1024))
    tracemalloc.start()
    facts = check_layer.read_layer(bomb, compressed=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert facts.faults == ()
    assert facts.members["zeros"].size_bytes == inflated
    assert peak < 16 << 20


def test_an_image_of_two_tags_is_checked_for_both(tmp_path: Path) -> None:
    def again(document: Json) -> None:
        for old in list(document["manifests"]):
            name = old["annotations"][REF_NAME].replace("1", "2", 1)
            document["manifests"].append({**old, "annotations": {**old["annotations"], REF_NAME: name}})

    draft = make_draft()
    index_json(again)(draft)
    assert check_layout(draft.write(tmp_path)) == ()


def test_a_descriptor_that_misuses_a_manifest(tmp_path: Path) -> None:
    """Documents of the wrong shape anywhere give faults, never a crash."""
    shapes: tuple[object, ...] = (None, 1, "x", [], {}, [[]], {"digest": 5}, {"digest": "sha256:" + "0" * 64})
    for number, (shape, key) in enumerate(
        itertools.product(shapes, ("config", "layers", "annotations", "subject"))
    ):
        draft = make_draft()
        manifest(lambda document, key=key, shape=shape: document.update({key: shape}))(draft)  # type: ignore[misc]
        assert isinstance(check_layout(draft.write(tmp_path / str(number))), tuple)
    for number, (shape, key) in enumerate(itertools.product(shapes, ("config", "rootfs", "history", "os"))):
        draft = make_draft()
        config(lambda document, key=key, shape=shape: document.update({key: shape}))(draft)  # type: ignore[misc]
        assert isinstance(check_layout(draft.write(tmp_path / f"config{number}")), tuple)
