"""Key files: cosign's are read, ours are as safe as theirs, and every bad one is told apart."""

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.errors import SignatureError
from edgebuild.signing import keys
from edgebuild.signing.keys import (
    LABEL,
    OLD_LABEL,
    SigningKey,
    decrypt_key,
    encrypt_key,
    generate_key_pairs,
    load_signing_key,
    make_key,
)
from edgeverify import VerificationError, load_public_key
from edgeverify.keys import verify_data
from tests.vectors.signing.make_vectors import FOREIGN_PASSWORD, PASSWORD, VECTORS

OURS = (VECTORS / "TEST-ONLY-foreign.key").read_bytes()


def envelope() -> dict[str, Any]:
    body = b"".join(OURS.splitlines()[1:-1])
    document: dict[str, Any] = json.loads(base64.b64decode(body))
    return document


def pem(document: object, label: str = LABEL) -> bytes:
    body = base64.b64encode(json.dumps(document).encode()).decode()
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


@pytest.mark.parametrize(
    ("name", "password"),
    [("cosign", PASSWORD), ("empty-password", b""), ("foreign", FOREIGN_PASSWORD)],
)
def test_reads_the_keys_of_cosign_2_cosign_3_and_edgebuild(name: str, password: bytes) -> None:
    key = load_signing_key(VECTORS / f"TEST-ONLY-{name}.key", password)
    assert key.public_pem == (VECTORS / f"TEST-ONLY-{name}.pub").read_bytes()


def test_reads_the_label_of_old_cosign() -> None:
    assert decrypt_key(pem(envelope(), OLD_LABEL), FOREIGN_PASSWORD).public_pem


def test_what_is_written_is_read_and_looks_like_cosigns() -> None:
    key = make_key()
    written = encrypt_key(key, "pass wörd".encode())
    assert decrypt_key(written, "pass wörd".encode()).public_pem == key.public_pem
    theirs = (VECTORS / "TEST-ONLY-cosign.key").read_bytes()
    assert [len(line) for line in written.splitlines()] == [len(line) for line in theirs.splitlines()]


def test_signatures_repeat_and_verify() -> None:
    key = make_key()
    assert key.sign(b"data") == key.sign(b"data")
    verify_data(key.public, key.sign(b"data"), b"data")
    with pytest.raises(VerificationError):
        verify_data(key.public, key.sign(b"data"), b"date")


def test_the_private_key_does_not_show() -> None:
    assert repr(make_key()) == "SigningKey()"


class TestGenerate:
    def test_writes_two_pairs(self, tmp_path: Path) -> None:
        folder = tmp_path / "new/keys"
        image, attestation = generate_key_pairs(folder, image_password=b"one", attestation_password=b"two")
        assert sorted(path.name for path in folder.iterdir()) == [
            "attest.key",
            "attest.pub",
            "cosign.key",
            "cosign.pub",
        ]
        for pair, password in ((image, b"one"), (attestation, b"two")):
            assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
            assert load_signing_key(pair.private, password).public_pem == pair.public.read_bytes()
            load_public_key(pair.public.read_bytes())
        assert image.public.read_bytes() != attestation.public.read_bytes()

    @pytest.mark.parametrize("name", ["cosign.key", "cosign.pub", "attest.key", "attest.pub"])
    @pytest.mark.parametrize("dangling", [False, True])
    def test_never_overwrites(self, tmp_path: Path, name: str, dangling: bool) -> None:
        if dangling:
            (tmp_path / name).symlink_to("nowhere")
        else:
            (tmp_path / name).write_text("precious")
        with pytest.raises(SignatureError, match=f"{name} exists and is not overwritten") as caught:
            generate_key_pairs(tmp_path, image_password=b"", attestation_password=b"")
        assert caught.value.hint
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_race_is_lost_without_a_trace(self, tmp_path: Path) -> None:
        # The other edgebuild comes between the look and the link: what `_write_new` alone has to notice.
        (tmp_path / "b").write_text("theirs")
        files = {tmp_path / name: (b"ours", 0o600) for name in ("a", "b", "c")}
        with pytest.raises(SignatureError, match="b exists"):
            keys._write_new(files)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "theirs"}

    def test_a_folder_that_cannot_be_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SignatureError, match="cannot be written"):
            generate_key_pairs(tmp_path / "file/keys", image_password=b"", attestation_password=b"")

    def test_the_umask_cannot_open_the_private_key(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            image, _ = generate_key_pairs(tmp_path, image_password=b"", attestation_password=b"")
        finally:
            os.umask(before)
        assert stat.S_IMODE(image.private.stat().st_mode) == 0o600
        assert stat.S_IMODE(image.public.stat().st_mode) == 0o644


class TestRefused:
    def refuse(self, content: bytes, password: bytes = FOREIGN_PASSWORD) -> SignatureError:
        with pytest.raises(SignatureError) as caught:
            decrypt_key(content, password)
        assert caught.value.hint
        assert caught.value.exit_code == 8
        return caught.value

    def test_a_wrong_password(self) -> None:
        assert "does not open with this password" in self.refuse(OURS, b"wrong").message

    def test_the_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "k").write_bytes(OURS)
        for path, message in (
            (tmp_path / "k", "does not open"),
            (tmp_path / "none", "cannot be read: No such file"),
        ):
            with pytest.raises(SignatureError, match=f"^{path}.*{message}"):
                load_signing_key(path, b"wrong")

    @pytest.mark.parametrize(
        "parameters",
        [
            {"N": 1 << 30, "r": 8, "p": 1},
            {"N": 1 << 16, "r": 1 << 20, "p": 1},
            {"N": 1 << 16, "r": 8, "p": 1 << 20},
            {"N": 2, "r": 1, "p": 1},
            {"N": 0, "r": 0, "p": 0},
            {"N": -65536, "r": 8, "p": 1},
        ],
    )
    def test_hostile_scrypt_parameters_before_scrypt_runs(self, parameters: dict[str, int]) -> None:
        document = envelope()
        document["kdf"]["params"] = parameters
        assert "scrypt parameters that no cosign writes" in self.refuse(pem(document)).message

    @pytest.mark.parametrize(
        "parameters", [None, {}, [1, 2, 3], {"N": "65536", "r": 8, "p": 1}, {"N": True, "r": 8, "p": 1}]
    )
    def test_scrypt_parameters_that_are_none(self, parameters: object) -> None:
        document = envelope()
        document["kdf"]["params"] = parameters
        assert "not numbers" in self.refuse(pem(document)).message

    @pytest.mark.parametrize(
        ("part", "key", "value", "message"),
        [
            ("kdf", "name", "argon2", "another key derivation"),
            ("cipher", "name", "aes", "another key derivation or cipher"),
            ("kdf", "salt", "", "wrong length"),
            ("kdf", "salt", "A" * 4000, "wrong length"),
            ("kdf", "salt", 7, "not base64"),
            ("cipher", "nonce", "AAAA", "wrong length"),
        ],
    )
    def test_a_damaged_envelope(self, part: str, key: str, value: object, message: str) -> None:
        document = envelope()
        document[part][key] = value
        assert message in self.refuse(pem(document)).message

    @pytest.mark.parametrize("length", [0, 10, 60, 300, len(OURS) - 40, len(OURS) - 5])
    def test_a_truncated_file(self, length: int) -> None:
        message = self.refuse(OURS[:length]).message
        assert ("it is cut short" if length >= 60 else "not a private key") in message

    def test_other_files(self) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        pkcs8 = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        refused = self.refuse(pkcs8)
        assert "another form (PRIVATE KEY)" in refused.message
        assert "cosign import-key-pair" in refused.hint
        encrypted = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
        assert "another form (ENCRYPTED PRIVATE KEY)" in self.refuse(encrypted).message
        assert "this is a public key" in self.refuse((VECTORS / "TEST-ONLY-cosign.pub").read_bytes()).message
        assert "not a private key" in self.refuse(b"hello").message
        assert "more than 65536 bytes" in self.refuse(OURS + b"\n" * 70_000).message

    @pytest.mark.parametrize(
        ("private", "kind"),
        [
            (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
            (rsa.generate_private_key(65537, 2048), "RSA"),
            (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        ],
    )
    def test_keys_of_another_type(self, private: Any, kind: str) -> None:
        refused = self.refuse(encrypt_key(SigningKey(private), b""), b"")
        assert f"another type ({kind}" in refused.message
        assert "P-256" in refused.hint


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.sampled_from([LABEL, OLD_LABEL, "PRIVATE KEY", "X"]))
def test_any_bytes_are_refused_with_the_one_error(data: bytes, label: str) -> None:
    begin, end = f"-----BEGIN {label}-----\n".encode(), f"\n-----END {label}-----\n".encode()
    for content in (data, begin + data + end, begin + base64.b64encode(data) + end, begin + data):
        with pytest.raises(SignatureError):
            decrypt_key(content, b"")
