"""A signed layout is checked offline, as a device does it, and nothing unsigned or damaged passes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild.errors import SignatureError
from edgebuild.oci.digest import Digest
from edgebuild.oci.index import Index
from edgebuild.oci.layout import LayoutSink
from edgebuild.oci.reference import Reference
from edgebuild.progress import SilentProgress
from edgebuild.signing.keys import SigningKey, make_key
from edgebuild.signing.sign import sign_image
from edgebuild.signing.verify import NotVerifiedError, load_verifying_key, verify_in_layout
from tests.support.small_image import publish, small_index
from tests.vectors.signing.make_vectors import VECTORS

KEY = make_key()
TAGGED = Reference.parse("reg.example/acme/llm:1.4")


def write(
    path: Path, index: Index, key: SigningKey | None, *references: Reference, extend: bool = False
) -> None:
    with LayoutSink(path, progress=SilentProgress(), extend=extend) as sink:
        publish(sink, index, tag="1.4", key=key, references=references)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout") / "image"
    write(path, small_index(), KEY, TAGGED)
    return path


@pytest.fixture
def layout(signed: Path, tmp_path: Path) -> Path:
    """A copy to be harmed."""
    return Path(shutil.copytree(signed, tmp_path / "copy"))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "key.pub"
    path.write_bytes(KEY.public_pem)
    return path


def device_check(layout: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """Run the device's command, with nothing but edgeverify and cryptography to import."""
    return subprocess.run(
        [sys.executable, "-m", "edgeverify", layout, "--key", public],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(layout: Path) -> str:
    with pytest.raises(NotVerifiedError) as caught:
        verify_in_layout(layout, KEY.public)
    return caught.value.message


def edit_index(layout: Path, change: "dict[str, object]") -> None:
    """Add an entry to index.json."""
    path = layout / "index.json"
    document = json.loads(path.read_text())
    document["manifests"].append(change)
    path.write_text(json.dumps(document))


def add_blob(layout: Path, data: bytes) -> dict[str, object]:
    digest = Digest.of(data)
    (layout / "blobs/sha256" / digest.hex).write_bytes(data)
    return {"digest": str(digest), "size": len(data)}


def blob_of(layout: Path, text: bytes) -> Path:
    return next(path for path in (layout / "blobs/sha256").iterdir() if path.read_bytes() == text)


def test_everything_is_verified(layout: Path, public: Path) -> None:
    (verified,) = verify_in_layout(layout, load_verifying_key(public))
    assert len(verified.signatures) == 3
    assert verified.blob_count == 4
    done = device_check(layout, public)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"verified {verified.digest}: 3 manifests signed, 4 blobs with ")


def test_bundles_alone_are_enough(tmp_path: Path) -> None:
    write(tmp_path / "image", small_index(), KEY)
    (verified,) = verify_in_layout(tmp_path / "image", KEY.public)
    assert {signature.form for _, signature in verified.signatures} == {"bundle"}


def test_signing_again_repeats_bit_for_bit(layout: Path, signed: Path) -> None:
    with LayoutSink(layout, progress=SilentProgress(), extend=True) as sink:
        sign_image(sink, small_index().digest, KEY, references=(TAGGED,), epoch_s=0)
    for folder in ("", "blobs/sha256"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (root / folder).iterdir() if path.is_file()}
            for root in (layout, signed)
        )
        assert ours == theirs


def test_a_second_signer_is_added(layout: Path) -> None:
    second = make_key()
    with LayoutSink(layout, progress=SilentProgress(), extend=True) as sink:
        sign_image(sink, small_index().digest, second, references=(TAGGED,), epoch_s=0)
    for key in (KEY, second):
        verify_in_layout(layout, key.public)


def test_an_unsigned_layout_and_one_by_another_key(tmp_path: Path, signed: Path) -> None:
    write(tmp_path / "image", small_index(), None)
    assert "is not signed: nothing is attached" in refusal(tmp_path / "image")
    done = device_check(signed, VECTORS / "TEST-ONLY-foreign.pub")
    assert done.returncode == 8
    assert "is not signed by this key" in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 3, "a reason for each candidate"


def test_a_changed_blob(layout: Path, public: Path) -> None:
    blob_of(layout, b"image layer of pi4").write_bytes(b"image layer of PI4")
    assert "has the bytes of" in refusal(layout)
    assert device_check(layout, public).returncode == 8


def test_a_missing_longer_and_shorter_blob(layout: Path) -> None:
    path = blob_of(layout, b"image layer of x86")
    path.write_bytes(b"image layer of x86, and more")
    assert "more than the 18 bytes" in refusal(layout)
    path.write_bytes(b"image")
    assert "has 5 bytes" in refusal(layout)
    path.unlink()
    assert "cannot be read: No such file" in refusal(layout)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_a_blob_that_is_no_plain_file(layout: Path, kind: str) -> None:
    path = blob_of(layout, b"image layer of pi4")
    path.unlink()
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(layout / "index.json")
    assert "not a plain file" in refusal(layout) or "cannot be read" in refusal(layout)


def test_an_unsigned_image_beside_a_signed_one(layout: Path) -> None:
    write(layout, small_index("evil"), None, extend=True)
    assert "is not signed: nothing is attached" in refusal(layout)


@pytest.mark.parametrize("suffix", ["", ".sig", ".att"])
def test_an_image_does_not_pass_for_a_signature_by_its_name(layout: Path, suffix: str) -> None:
    manifest = {"config": {}, "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar"}]}
    name = {"org.opencontainers.image.ref.name": f"sha256-{'0' * 64}{suffix}"}
    edit_index(layout, add_blob(layout, json.dumps(manifest).encode()) | {"annotations": name})
    assert "is not signed" in refusal(layout)


def test_an_index_of_images_does_not_pass_for_a_list_of_referrers(layout: Path) -> None:
    child = add_blob(layout, b'{"config": {}, "layers": []}')
    name = {"org.opencontainers.image.ref.name": f"sha256-{'0' * 64}"}
    raw = json.dumps({"manifests": [child]}).encode()
    edit_index(layout, add_blob(layout, raw) | {"annotations": name})
    assert "is not signed" in refusal(layout)


def test_referrers_without_a_tag_are_found_as_oras_writes_them(layout: Path) -> None:
    path = layout / "index.json"
    document = json.loads(path.read_text())
    keep, referrers = [], []
    for entry in document["manifests"]:
        name = entry["annotations"]["org.opencontainers.image.ref.name"]
        if not name.startswith("sha256-"):
            keep.append(entry)
        elif not name.endswith(".sig"):
            blob = layout / "blobs/sha256" / entry["digest"][7:]
            referrers += json.loads(blob.read_bytes())["manifests"]
    path.write_text(json.dumps({"manifests": keep + referrers}))
    (verified,) = verify_in_layout(layout, KEY.public)
    assert {signature.form for _, signature in verified.signatures} == {"bundle"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("oci-layout", b"{}", "names version None"),
        ("oci-layout", b"x" * 5000, "more than 4096 bytes"),
        ("index.json", b"[]", "not a JSON object"),
        ("index.json", b'{"manifests": []}', "holds no image"),
        ("index.json", b'{"manifests": [{"digest": "sha256:../../etc/passwd"}]}', "not a sha256 digest"),
        ("index.json", b'{"manifests": [' + b"{}," * 2000 + b"{}]}", "has 2001 entries"),
        ("index.json", b" " * (5 << 20), "more than 4194304 bytes"),
    ],
)
def test_what_is_no_layout(layout: Path, file: str, content: bytes, message: str) -> None:
    (layout / file).write_bytes(content)
    assert message in refusal(layout)


def test_two_entries_of_one_signature_tag_are_refused(layout: Path) -> None:
    document = json.loads((layout / "index.json").read_text())
    for entry in list(document["manifests"]):
        name = entry["annotations"]["org.opencontainers.image.ref.name"]
        if name.startswith("sha256-"):
            edit_index(layout, document["manifests"][0] | {"annotations": entry["annotations"]})
    assert "has 2 entries of the name" in refusal(layout)


def test_bad_keys_and_folders_are_told(tmp_path: Path, signed: Path, public: Path) -> None:
    for key, message in (
        (tmp_path / "none.pub", "cannot be read: No such file"),
        (VECTORS / "TEST-ONLY-foreign.key", "this is a private key"),
    ):
        with pytest.raises(SignatureError, match=message):
            load_verifying_key(key)
        done = device_check(signed, key)
        assert done.returncode == 8
        assert message in done.stderr
    assert device_check(tmp_path, public).returncode == 8


@pytest.fixture(autouse=True)
def _no_new_files(signed: Path) -> Iterator[None]:
    """Verifying writes nothing."""
    before = sorted(signed.rglob("*"))
    yield
    assert sorted(signed.rglob("*")) == before
