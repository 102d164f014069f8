"""Every rule of the checker, broken once: how, and what must be said then."""

import gzip
import struct
import tarfile

from tests.unit.oci.drafts import (
    CONFIG,
    EPOCH_S,
    TAR,
    DraftLayer,
    folder,
    link,
    member,
)
from tests.unit.oci.mutating import (
    Mutation,
    accelerated_first,
    add,
    afterwards,
    attribute,
    blob_of,
    broken_signature,
    config,
    demanding,
    entry,
    field,
    flip,
    huge_header,
    index,
    index_json,
    longer,
    manifest,
    members,
    model_of,
    only,
    processors,
    raw_blob,
    raw_tar,
    signed_and,
    swap_model,
    tag_a_lone_image,
    with_pax,
)

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
    "a model without its last file": (
        model_of("m-00001-of-00002.gguf"),
        "layer 0: models/m-00002-of-00002.gguf of the model is missing",
    ),
    "a model's files in another order": (
        model_of("m-00001-of-00003.gguf", "m-00003-of-00003.gguf", "m-00002-of-00003.gguf"),
        "layer 1: models/m-00003-of-00003.gguf is where models/m-00002-of-00003.gguf of the model should be",
    ),
    "a model that begins in the middle": (
        model_of("m-00002-of-00002.gguf"),
        "layer 0: models/m-00002-of-00002.gguf is where models/m-00001-of-00002.gguf of the model should be",
    ),
    "two models": (model_of("m.gguf", "n.gguf"), "layer 1: models/n.gguf is no file of the model below"),
    "a model in more files than it says": (
        model_of("m-00001-of-00001.gguf", "m-00002-of-00001.gguf"),
        "layer 1: models/m-00002-of-00001.gguf is no file of the model below",
    ),
    "two files in a model's layer": (
        add(member("models/n.gguf"), role="model"),
        "something else than one file below models/",
    ),
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
