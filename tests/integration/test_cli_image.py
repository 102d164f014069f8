"""`edgebuild image` and what is done with its result, run as a user runs it, over real recipes and the demo model."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.built import PROFILES, REFERENCE, ROOT, Built, Edgebuild, assert_refused
from tests.support.peers.registry import Registry

SOFTWARE_LIMIT_BYTES = 32_000_000
PLATFORMS = {"pi4": "linux/arm64", "x86": "linux/amd64"}
VARIANTS = {"pi4": ("cortex-a72", "armv8.0_1"), "x86": ("Haswell", "haswell")}
ROLES = ["model", "rootfs", "python-deps", "engine", "server", "config"]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Say of every file below a folder which it is and when it was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            found[str(path.relative_to(folder))] = about.st_ino, about.st_mtime_ns
    return found


class TestResult:
    def test_document_has_the_shape_of_docs_json(self, built_layout: Built) -> None:
        document = built_layout.document
        assert set(document) == {"index", "model", "images"}
        assert set(document["model"]) == {"name", "licence", "quantization", "source"}
        assert document["model"]["source"] == {
            "kind": "demo", "reference": "demo", "revision": None, "file": "edge-alert-4m.F16.gguf",
            "digest": None, "licence": None,
        }  # fmt: skip
        index = document["index"]
        assert set(index) == {"digest", "layout", "tag", "tags"}
        assert index["tags"] == [REFERENCE]
        assert DIGEST.fullmatch(index["digest"])
        assert (index["layout"], index["tag"]) == (str(built_layout.layout), REFERENCE)
        assert [image["profile"] for image in document["images"]] == ["x86", "pi4"]
        for image in document["images"]:
            self._check_image(image)

    def _check_image(self, image: dict[str, Any]) -> None:
        profile = image["profile"]
        assert set(image) == {
            "profile", "platform", "engine", "engine_requested", "digest", "config_digest", "tag",
            "software_bytes", "model_bytes", "layers", "fit", "quality", "smoke", "signed_by", "seconds",
        }  # fmt: skip
        assert image["platform"] == PLATFORMS[profile]
        assert (image["engine"], image["engine_requested"]) == ("native", "auto")
        assert image["tag"] == f"{REFERENCE}-{profile}"
        assert image["signed_by"] == "cosign.key"
        layers = image["layers"]
        assert [layer["role"] for layer in layers] == ROLES
        for layer in layers:
            assert set(layer) == {"role", "media_type", "digest", "diff_id", "size_bytes"}
            kind = "tar" if layer["role"] == "model" else "tar+gzip"
            assert layer["media_type"] == f"application/vnd.oci.image.layer.v1.{kind}"
        assert layers[0]["digest"] == layers[0]["diff_id"]
        assert image["model_bytes"] == layers[0]["size_bytes"]
        assert image["software_bytes"] == sum(layer["size_bytes"] for layer in layers[1:])
        assert set(image["fit"]) == {
            "profile", "quantization", "kv_type", "context_tokens", "model_bytes", "need_bytes", "budget_bytes",
            "fits", "refusal", "is_estimate", "rows",
        }  # fmt: skip
        assert (image["fit"]["fits"], image["fit"]["refusal"]) == (True, None)
        assert image["fit"]["need_bytes"] == sum(row["size_bytes"] for row in image["fit"]["rows"])
        assert set(image["smoke"]) == {"cpu_model", "cpu_variant", "ready_s", "answer", "vector_length"}
        assert image["smoke"]["vector_length"] is None
        assert (image["smoke"]["cpu_model"], image["smoke"]["cpu_variant"]) == VARIANTS[profile]
        assert image["smoke"]["answer"].strip()
        assert image["smoke"]["ready_s"] > 0
        assert {*ROLES, "smoke"} <= set(image["seconds"])
        assert all(seconds >= 0 for seconds in image["seconds"].values())

    @pytest.mark.parametrize("profile", PROFILES)
    def test_software_is_small(self, built_layout: Built, profile: str) -> None:
        assert built_layout.image(profile)["software_bytes"] <= SOFTWARE_LIMIT_BYTES

    def test_layout_holds_what_the_document_says(self, built_layout: Built) -> None:
        listed = json.loads((built_layout.layout / "index.json").read_bytes())["manifests"]
        named = {entry["annotations"].get("org.opencontainers.image.ref.name", ""): entry for entry in listed}
        assert named["1.0"]["digest"] == built_layout.digest
        index = built_layout.read(built_layout.digest)
        assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
        for image, entry in zip(built_layout.document["images"], index["manifests"], strict=True):
            assert named[f"1.0-{image['profile']}"]["digest"] == entry["digest"] == image["digest"]
            manifest = built_layout.read(image["digest"])
            assert manifest["config"]["digest"] == image["config_digest"]
            config = built_layout.read(image["config_digest"])
            assert config["rootfs"]["diff_ids"] == [layer["diff_id"] for layer in image["layers"]]
            for layer, described in zip(image["layers"], manifest["layers"], strict=True):
                assert described["digest"] == layer["digest"]
                assert described["size"] == layer["size_bytes"]
                data = built_layout.blob(layer["digest"]).read_bytes()
                assert (sha256(data), len(data)) == (layer["digest"], layer["size_bytes"])
                plain = gzip.decompress(data) if layer["media_type"].endswith("gzip") else data
                assert sha256(plain) == layer["diff_id"]

    def test_container_settings(self, built_layout: Built) -> None:
        for image in built_layout.document["images"]:
            config = built_layout.read(image["config_digest"])["config"]
            assert config["User"] == "10001:10001"
            assert config["Entrypoint"] == ["/usr/bin/python3.13", "-P", "-m", "edgeserve"]
            assert config["ExposedPorts"] == {"8080/tcp": {}}
            assert config["Healthcheck"]["Test"][0] == "CMD"
            labels = config["Labels"]
            assert labels["dev.edgebuild.cpu.expected"] == image["smoke"]["cpu_variant"]
            assert labels["dev.edgebuild.profile"] == image["profile"]

    def test_shared_blobs_are_stored_once(self, built_layout: Built) -> None:
        model = {image["layers"][0]["digest"] for image in built_layout.document["images"]}
        assert len(model) == 1
        folder = built_layout.layout / "blobs" / "sha256"
        names = [path.name for path in folder.iterdir()]
        assert all(re.fullmatch(r"[0-9a-f]{64}", name) for name in names)
        layers = {layer["digest"] for image in built_layout.document["images"] for layer in image["layers"]}
        big = {f"sha256:{path.name}" for path in folder.iterdir() if path.stat().st_size > 100_000}
        assert big <= layers

    def test_progress_is_plain_lines_without_a_terminal(self, built_layout: Built) -> None:
        assert "\x1b" not in built_layout.told
        assert "\r" not in built_layout.told
        assert f"index {built_layout.digest}" in built_layout.told
        assert "smoke test x86 on Haswell" in built_layout.told

    def test_the_last_lines_say_how_to_go_on(self, built_layout: Built) -> None:
        tail = built_layout.told.partition("\nNext:\n")[2]
        for part in ("docker load", "docker run", "edgebuild verify", "cosign.pub", "edgebuild push"):
            assert part in tail

    def test_no_trace_of_this_machine(self, built_layout: Built, built_store: Path) -> None:
        places = {os.fsencode(place) + b"/" for place in (built_layout.layout.parent, built_store, ROOT)}
        for image in built_layout.document["images"]:
            for layer in image["layers"][1:]:
                plain = gzip.decompress(built_layout.blob(layer["digest"]).read_bytes())
                assert not [place for place in places if place in plain], layer["role"]


class TestAgain:
    def test_same_again_without_network_changes_nothing(
        self, edgebuild: Edgebuild, built_layout: Built, tmp_path: Path
    ) -> None:
        shutil.copytree(built_layout.layout, tmp_path / "layout", copy_function=shutil.copy2)
        before, lock = contents(tmp_path / "layout"), built_layout.lock.read_bytes()
        document = edgebuild.offline().json("image", *built_layout.arguments, "--output", "layout")
        assert _stable(document) == _stable(built_layout.document)
        after = contents(tmp_path / "layout")
        assert {name: stamp for name, stamp in after.items() if name.startswith("blobs/")} == {
            name: stamp for name, stamp in before.items() if name.startswith("blobs/")
        }
        original = (built_layout.layout / "index.json").read_bytes()
        assert (tmp_path / "layout" / "index.json").read_bytes() == original
        assert built_layout.lock.read_bytes() == lock

    def test_order_of_profiles_and_place_do_not_matter(
        self, edgebuild: Edgebuild, built_layout: Built
    ) -> None:
        lock = ("--lock", built_layout.lock, "--locked")
        model = built_layout.model
        document = edgebuild.offline().json(
            "image", "--profile", "x86", "--profile", "pi4", "--model", model, *lock, "--no-test",
        )  # fmt: skip
        assert document["index"]["digest"] == built_layout.digest
        assert document["index"]["tag"] is None
        assert Path(document["index"]["layout"]) == edgebuild.folder / "build"
        for image in document["images"]:
            assert (image["smoke"], image["tag"], image["signed_by"]) == (None, None, None)
        assert edgebuild.run("check", "build").stdout.strip().endswith("every rule holds")

    def test_quantised_model_is_taken_as_it_is_or_refused(
        self, edgebuild: Edgebuild, built_layout: Built
    ) -> None:
        layer = built_layout.image("x86")["layers"][0]["digest"]
        with tarfile.open(built_layout.blob(layer)) as archive:
            (member,) = (item for item in archive if item.isfile())
            content = archive.extractfile(member)
            assert content is not None
            (edgebuild.folder / member.name).parent.mkdir(parents=True, exist_ok=True)
            with content, (edgebuild.folder / member.name).open("wb") as file:
                shutil.copyfileobj(content, file)
        model = edgebuild.folder / member.name
        assert model.name.endswith(".Q4_K_M.gguf")
        options = ("--lock", built_layout.lock, "--locked", "--no-test")
        document = edgebuild.json("image", "--profile", "x86", "--model", model, *options)
        assert document["images"][0]["layers"][0]["digest"] == layer
        refused = ("--quantization", "Q8_0", "--output", "other")
        done = edgebuild.run("image", "--profile", "x86", "--model", model, *options, *refused, check=False)
        assert_refused(done, 4, "Q4_K_M")
        assert not (edgebuild.folder / "other").exists()

    def test_quiet_says_nothing(self, edgebuild: Edgebuild, built_layout: Built) -> None:
        done = edgebuild.run("image", *_quick(built_layout), "--quiet")
        assert (done.stdout, done.stderr) == ("", "")
        assert (edgebuild.folder / "build" / "index.json").is_file()

    def test_without_json_the_result_is_on_standard_output(
        self, edgebuild: Edgebuild, built_layout: Built
    ) -> None:
        done = edgebuild.run("image", *_quick(built_layout))
        assert built_layout.image("x86")["digest"] in done.stdout
        assert "not signed" in done.stdout
        assert "\nNext:\n" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr


def _stable(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is measured and where it lies."""
    images = []
    for image in document["images"]:
        smoke = {key: value for key, value in image["smoke"].items() if key != "ready_s"}
        images.append({**image, "seconds": None, "smoke": smoke})
    return {"index": {**document["index"], "layout": None}, "images": images}


def _quick(built: Built) -> tuple[str | Path, ...]:
    """Arguments of the quickest build: one profile, not tested."""
    model = built.model
    return ("--profile", "x86", "--model", model, "--lock", built.lock, "--locked", "--no-test")


class TestLayoutCommands:
    def test_check(self, edgebuild: Edgebuild, built_layout: Built, tmp_path: Path) -> None:
        assert edgebuild.json("check", built_layout.layout) == {
            "layout": str(built_layout.layout),
            "faults": [],
        }
        damaged = shutil.copytree(built_layout.layout, tmp_path / "damaged")
        blob = damaged / "blobs" / built_layout.image("pi4")["layers"][4]["digest"].replace(":", "/")
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        assert_refused(edgebuild.run("check", damaged, check=False), 6)

    def test_test(self, edgebuild: Edgebuild, built_layout: Built) -> None:
        document = edgebuild.json(
            "test", built_layout.layout, "--profile", "x86", "--lock", built_layout.lock
        )
        (image,) = document["images"]
        assert set(image) == {
            "profile",
            "digest",
            "cpu_model",
            "cpu_variant",
            "ready_s",
            "answer",
            "vector_length",
        }
        assert image["digest"] == built_layout.image("x86")["digest"]
        assert image["answer"] == built_layout.image("x86")["smoke"]["answer"]
        unknown = edgebuild.run(
            "test", built_layout.layout, "--profile", "pi5", "--lock", built_layout.lock, check=False
        )
        assert_refused(unknown, 6, "pi5")

    def test_verify(self, edgebuild: Edgebuild, built_layout: Built) -> None:
        document = edgebuild.json("verify", built_layout.layout, "--key", built_layout.public)
        signed = {built_layout.digest, *(image["digest"] for image in built_layout.document["images"])}
        assert {digest for item in document["verified"] for digest in item["signed"]} == signed
        other = built_layout.key.with_name("attest.pub")
        assert edgebuild.run("verify", built_layout.layout, "--key", other, check=False).returncode == 8

    def test_archive(self, edgebuild: Edgebuild, built_layout: Built) -> None:
        image = built_layout.image("pi4")
        options = ("--profile", "pi4", "--output", "pi4.tar", "--name", "acme/alert:1.0")
        told = edgebuild.json("archive", built_layout.layout, *options)
        assert told == {
            "file": str(edgebuild.folder / "pi4.tar"), "name": "acme/alert:1.0", "digest": image["digest"],
        }  # fmt: skip
        with tarfile.open(edgebuild.folder / "pi4.tar") as archive:
            manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        assert manifest[0]["RepoTags"] == ["acme/alert:1.0"]
        assert manifest[0]["Config"] == f"{image['config_digest'].partition(':')[2]}.json"
        assert len(manifest[0]["Layers"]) == len(ROLES)
        assert [path.name for path in edgebuild.folder.iterdir() if "part" in path.name] == []

    def test_archive_that_cannot_be_made(self, edgebuild: Edgebuild, built_layout: Built) -> None:
        layout = built_layout.layout
        assert_refused(
            edgebuild.run("archive", layout, "--output", "a.tar", check=False), 2, "several images"
        )
        unknown = edgebuild.run("archive", layout, "--profile", "pi5", "--output", "a.tar", check=False)
        assert_refused(unknown, 6, "pi5")
        (edgebuild.folder / "file").write_text("")
        nowhere = edgebuild.run("archive", layout, "--profile", "x86", "--output", "file/a.tar", check=False)
        assert_refused(nowhere, 5, "file/a.tar")
        assert not (edgebuild.folder / "a.tar").exists()


@pytest.mark.peers
class TestPush:
    def test_only_to_a_registry(self, edgebuild: Edgebuild, built_layout: Built, registry: Registry) -> None:
        reference = registry.reference("acme/alert", "2.0")
        document = edgebuild.json(
            "image", *_quick(built_layout), "--no-layout", "--push", "--tag", reference, *built_layout.signing
        )
        assert document["index"]["layout"] is None
        assert document["index"]["tag"] == reference
        (image,) = document["images"]
        assert (image["digest"], image["tag"]) == (built_layout.image("x86")["digest"], f"{reference}-x86")
        assert sorted(path.name for path in edgebuild.folder.iterdir()) == ["docker"]
        verified = edgebuild.json("verify", reference, "--key", built_layout.public, "--name", reference)
        assert verified["verified"][0]["digest"] == document["index"]["digest"]
        # Again: nothing but manifests is sent.
        before = len(registry.accesses())
        edgebuild.run("image", *_quick(built_layout), "--no-layout", "--push", "--tag", reference, "--quiet")
        again = registry.accesses()[before:]
        assert {access.path.split("/")[-2] for access in again if access.method == "PUT"} == {"manifests"}
        assert [access for access in again if access.method == "PATCH"] == []

    def test_layout_and_registry(self, edgebuild: Edgebuild, built_layout: Built, registry: Registry) -> None:
        reference = registry.reference("acme/alert", "2.0")
        options = ("--output", "layout", "--push", "--tag", reference, *built_layout.signing)
        document = edgebuild.json("image", *_quick(built_layout), *options)
        edgebuild.run("verify", "layout", "--key", built_layout.public)
        edgebuild.run(
            "verify", f"{reference}-x86", "--key", built_layout.public, "--name", f"{reference}-x86"
        )
        assert document["index"]["layout"] == str(edgebuild.folder / "layout")

    def test_login_that_is_missing_is_told_before_the_work(
        self, edgebuild: Edgebuild, built_layout: Built, auth_registry: Registry
    ) -> None:
        reference = auth_registry.reference("acme/alert", "2.0")
        for options in (("--no-layout",), ("--output", "layout")):
            done = edgebuild.run(
                "image", *_quick(built_layout), *options, "--push", "--tag", reference, check=False
            )
            assert_refused(done, 7, "401")
            assert "lock: " not in done.stderr
            assert sorted(path.name for path in edgebuild.folder.iterdir()) == ["docker"]
