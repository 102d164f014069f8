"""Keys, payloads and bundles: what passes, and every way in which one that looks right must not."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.oci.digest import Digest
from edgebuild.signing.bundle import make_bundle, make_signature_statement, make_statement
from edgebuild.signing.keys import SigningKey, make_key
from edgebuild.signing.payload import make_payload
from edgeverify import VerificationError, load_public_key, pae, verify_bundle, verify_legacy
from edgeverify.bundle import BUNDLE, COSIGN_SIGN, IN_TOTO
from edgeverify.documents import parse_object
from edgeverify.legacy import PAYLOAD_BYTES

VECTORS = Path(__file__).parents[2] / "vectors/signing"
KEY = make_key()
STRANGER = make_key()
DIGEST = Digest.of(b"the image")
OTHER = Digest.of(b"another image")
SPDX = "https://spdx.dev/Document"


def pem(key: object) -> bytes:
    assert isinstance(key, rsa.RSAPublicKey | ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def envelope(payload: bytes, key: SigningKey = KEY, *, kind: str = IN_TOTO) -> dict[str, Any]:
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(key.sign(pae(kind, payload))).decode()}],
    }


def bundle_of(dsse: object, **more: object) -> bytes:
    return json.dumps({"mediaType": BUNDLE, "dsseEnvelope": dsse, **more}).encode()


class TestKeys:
    def test_reads_what_cosign_wrote(self) -> None:
        for name in ("TEST-ONLY-cosign.pub", "TEST-ONLY-empty-password.pub"):
            assert load_public_key((VECTORS / name).read_bytes()).curve.name == "secp256r1"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (lambda: pem(rsa.generate_private_key(65537, 2048).public_key()), "type RSA"),
            (lambda: pem(ed25519.Ed25519PrivateKey.generate().public_key()), "type Ed25519"),
            (lambda: pem(ec.generate_private_key(ec.SECP384R1()).public_key()), "secp384r1"),
            ((VECTORS / "TEST-ONLY-cosign.key").read_bytes, "private key"),
            (lambda: b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "certificate"),
            (lambda: b"", "not a public key"),
            (lambda: KEY.public_pem[:100], "not a public key"),
            (lambda: b"x" * 17_000, "17000 bytes"),
        ],
    )
    def test_refuses_others_and_says_what_they_are(self, content: Callable[[], bytes], message: str) -> None:
        with pytest.raises(VerificationError, match=message):
            load_public_key(content())


class TestLegacy:
    def test_accepts_what_cosign_2_signed(self) -> None:
        layer = json.loads((VECTORS / "cosign2-manifest.json").read_bytes())["layers"][0]
        verify_legacy(
            (VECTORS / "cosign2-payload.json").read_bytes(),
            base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"]),
            load_public_key((VECTORS / "TEST-ONLY-cosign.pub").read_bytes()),
            digest=(VECTORS / "image.txt").read_text().strip(),
        )

    def verify(
        self,
        payload: bytes,
        *,
        key: SigningKey = KEY,
        digest: str = str(DIGEST),
        reference: str | None = None,
    ) -> None:
        verify_legacy(payload, key.sign(payload), KEY.public, digest=digest, reference=reference)

    def test_accepts_ours_with_and_without_the_name(self) -> None:
        payload = make_payload(DIGEST, "reg.example/acme/llm:1.4")
        self.verify(payload)
        self.verify(payload, reference="reg.example/acme/llm:1.4")

    def test_refuses_another_name(self) -> None:
        with pytest.raises(VerificationError, match=r"names 'reg.example/acme/llm:1.4', not"):
            self.verify(
                make_payload(DIGEST, "reg.example/acme/llm:1.4"), reference="reg.example/acme/llm:1.5"
            )

    def test_refuses_another_key_digest_and_changed_bytes(self) -> None:
        payload = make_payload(DIGEST, "r.io/a:1")
        with pytest.raises(VerificationError, match="not by this key"):
            self.verify(payload, key=STRANGER)
        with pytest.raises(VerificationError, match=f"not about {OTHER}"):
            self.verify(payload, digest=str(OTHER))
        changed = payload.replace(DIGEST.hex.encode(), OTHER.hex.encode())
        with pytest.raises(VerificationError, match="not by this key"):
            verify_legacy(changed, KEY.sign(payload), KEY.public, digest=str(OTHER))

    def test_what_else_the_key_signed_is_no_image_signature(self) -> None:
        document = json.loads(make_payload(DIGEST, "r.io/a:1"))
        document["critical"]["type"] = "atomic container signature"
        with pytest.raises(VerificationError, match="is of type 'atomic container signature'"):
            self.verify(json.dumps(document).encode())
        for other in (
            b"{}",
            b"[]",
            b"null",
            b"not json",
            b'{"critical": []}',
            make_signature_statement(DIGEST),
        ):
            with pytest.raises(VerificationError):
                self.verify(other)

    def test_a_key_given_twice_is_refused(self) -> None:
        named = json.dumps({"docker-manifest-digest": str(OTHER)})[1:-1]
        payload = make_payload(DIGEST, "r.io/a:1").replace(b'"image":{', f'"image":{{{named},'.encode())
        with pytest.raises(VerificationError, match="given twice"):
            self.verify(payload)

    def test_size_is_bounded_before_anything_else(self) -> None:
        with pytest.raises(VerificationError, match=f"more than {PAYLOAD_BYTES}"):
            verify_legacy(b"x" * (PAYLOAD_BYTES + 1), b"", KEY.public, digest=str(DIGEST))
        with pytest.raises(VerificationError, match="the signature has 300 bytes"):
            verify_legacy(b"{}", b"0" * 300, KEY.public, digest=str(DIGEST))

    @pytest.mark.parametrize(
        "digest", ["", "sha256:", "sha512:" + "0" * 128, DIGEST.hex, f"sha256:{DIGEST.hex.upper()}"]
    )
    def test_the_digest_asked_for_must_be_one(self, digest: str) -> None:
        with pytest.raises(VerificationError, match="not a sha256 digest"):
            self.verify(make_payload(DIGEST, "r.io/a:1"), digest=digest)


class TestBundle:
    def test_accepts_what_cosign_3_signed(self) -> None:
        key = load_public_key((VECTORS / "TEST-ONLY-cosign.pub").read_bytes())
        digest = (VECTORS / "image.txt").read_text().strip()
        statement = verify_bundle((VECTORS / "cosign3-bundle.json").read_bytes(), key, digest=digest)
        assert json.loads(statement)["predicateType"] == COSIGN_SIGN

    def test_returns_the_signed_statement(self) -> None:
        statement = make_signature_statement(DIGEST)
        assert verify_bundle(make_bundle(statement, KEY), KEY.public, digest=str(DIGEST)) == statement

    def test_refuses_another_key_and_digest(self) -> None:
        bundle = make_bundle(make_signature_statement(DIGEST), STRANGER)
        with pytest.raises(VerificationError, match="not by this key"):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))
        bundle = make_bundle(make_signature_statement(OTHER), KEY)
        with pytest.raises(VerificationError, match=f"about 'sha256:{OTHER.hex}', not about {DIGEST}"):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))

    def test_an_attestation_never_passes_for_a_signature_nor_the_reverse(self) -> None:
        attestation = make_bundle(make_statement(DIGEST, predicate_type=SPDX, predicate={}, name="a"), KEY)
        with pytest.raises(VerificationError, match=f"is a '{SPDX}', not a {COSIGN_SIGN}"):
            verify_bundle(attestation, KEY.public, digest=str(DIGEST))
        verify_bundle(attestation, KEY.public, digest=str(DIGEST), predicate_type=SPDX)
        signature = make_bundle(make_signature_statement(DIGEST), KEY)
        with pytest.raises(VerificationError, match=f"not a {SPDX}"):
            verify_bundle(signature, KEY.public, digest=str(DIGEST), predicate_type=SPDX)

    @pytest.mark.parametrize("claimed", [None, "", COSIGN_SIGN + "/", COSIGN_SIGN.upper(), [COSIGN_SIGN], 1])
    def test_only_the_exact_predicate_type_counts(self, claimed: object) -> None:
        statement = json.loads(make_signature_statement(DIGEST)) | {"predicateType": claimed}
        bundle = bundle_of(envelope(json.dumps(statement).encode()))
        with pytest.raises(VerificationError, match=f"not a {re.escape(COSIGN_SIGN)}"):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))

    def test_a_statement_of_another_version_is_no_signature(self) -> None:
        statement = json.loads(make_signature_statement(DIGEST)) | {
            "_type": "https://in-toto.io/Statement/v0.1"
        }
        bundle = bundle_of(envelope(json.dumps(statement).encode()))
        with pytest.raises(VerificationError, match=r"Statement/v0\.1"):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))

    @pytest.mark.parametrize(
        "subject",
        [
            None,
            [],
            {},
            "x",
            [{}],
            [{"digest": DIGEST.hex}],
            [{"digest": {"sha512": DIGEST.hex}}],
            [{"digest": {"sha256": DIGEST.hex.upper()}}],
            [{"digest": {"sha256": [DIGEST.hex]}}],
        ],
    )
    def test_a_statement_about_nothing_is_no_signature(self, subject: object) -> None:
        statement = json.loads(make_signature_statement(DIGEST)) | {"subject": subject}
        bundle = bundle_of(envelope(json.dumps(statement).encode()))
        with pytest.raises(VerificationError, match="not about"):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))

    def test_the_signature_covers_the_payload_type(self) -> None:
        statement = make_signature_statement(DIGEST)
        dsse = envelope(statement, kind="text/plain") | {"payloadType": IN_TOTO}
        with pytest.raises(VerificationError, match="not by this key"):
            verify_bundle(bundle_of(dsse), KEY.public, digest=str(DIGEST))
        raw = envelope(statement)
        raw["signatures"] = [
            {"sig": base64.b64encode(KEY.sign(statement)).decode()}
        ]  # over the payload, not PAE
        with pytest.raises(VerificationError, match="not by this key"):
            verify_bundle(bundle_of(raw), KEY.public, digest=str(DIGEST))

    @pytest.mark.parametrize(
        ("bundle", "message"),
        [
            (bundle_of(None), "no DSSE envelope"),
            (bundle_of(envelope(b"{}"), mediaType="application/json"), "is of type 'application/json'"),
            (bundle_of(envelope(b"{}"), messageSignature={}), "messageSignature"),
            (bundle_of(envelope(b"{}", kind="text/plain")), "holds 'text/plain'"),
            (bundle_of(envelope(b"{}") | {"signatures": []}), "exactly one signature"),
            (bundle_of(envelope(b"{}") | {"signatures": [{}, {}]}), "exactly one signature"),
            (bundle_of(envelope(b"{}") | {"signatures": [None]}), "not base64 text"),
            (bundle_of(envelope(b"{}") | {"payload": "e30"}), "is not base64"),
            (bundle_of(envelope(b"{}") | {"payload": "e30=\n"}), "is not base64"),
            (bundle_of(envelope(b"[]")), "not a JSON object"),
            (b"[" * 100_000, "nested too deep|not JSON"),
            (b'{"a":' * 100_000, "nested too deep|not JSON"),
            (b'{"a":NaN}', "NaN is not JSON"),
            (b'{"a":1' + b"0" * 5000 + b"}", "not JSON"),
            (b"\xff", "not JSON"),
        ],
    )
    def test_refuses_what_is_no_such_bundle(self, bundle: bytes, message: str) -> None:
        with pytest.raises(VerificationError, match=message):
            verify_bundle(bundle, KEY.public, digest=str(DIGEST))


# A busy machine is no fault of what is tested.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def refused(call: Callable[[], object]) -> None:
    """Run what must refuse: with the one error, whose message can be printed anywhere."""
    with pytest.raises(VerificationError) as caught:
        call()
    assert "\n" not in caught.value.message
    caught.value.message.encode()
    assert all(character.isprintable() for character in caught.value.message)


@patient
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_the_one_error(data: bytes) -> None:
    refused(lambda: verify_bundle(data, KEY.public, digest=str(DIGEST)))
    refused(lambda: verify_legacy(data, data[:80], KEY.public, digest=str(DIGEST)))
    refused(lambda: load_public_key(data))
    refused(lambda: load_public_key(b"-----BEGIN PUBLIC KEY-----\n" + data + b"\n-----END PUBLIC KEY-----\n"))


@patient
@given(st.dictionaries(st.sampled_from(["mediaType", "dsseEnvelope", "x"]), JSON))
def test_any_document_is_refused_with_the_one_error(document: dict[str, object]) -> None:
    refused(
        lambda: verify_bundle(
            json.dumps({"mediaType": BUNDLE} | document).encode(), KEY.public, digest=str(DIGEST)
        )
    )


@patient
@given(st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures"]), JSON))
def test_any_envelope_is_refused_with_the_one_error(dsse: dict[str, object]) -> None:
    refused(lambda: verify_bundle(bundle_of(envelope(b"{}") | dsse), KEY.public, digest=str(DIGEST)))


@patient
@given(st.dictionaries(st.sampled_from(["_type", "subject", "predicateType", "predicate"]), JSON, min_size=1))
def test_any_signed_statement_passes_only_as_a_signature_of_this_image(changes: dict[str, object]) -> None:
    statement = json.loads(make_signature_statement(OTHER)) | changes
    bundle = bundle_of(envelope(json.dumps(statement).encode()))
    refused(lambda: verify_bundle(bundle, KEY.public, digest=str(DIGEST)))


@patient
@given(JSON)
def test_any_signed_payload_passes_only_as_a_signature_of_this_image(document: object) -> None:
    payload = json.dumps(document).encode()
    refused(lambda: verify_legacy(payload, KEY.sign(payload), KEY.public, digest=str(DIGEST)))


def test_half_a_surrogate_pair_and_control_characters_do_not_reach_a_terminal() -> None:
    statement = json.loads(make_signature_statement(DIGEST)) | {"predicateType": "\x1b[2J\ud800"}
    bundle = bundle_of(envelope(json.dumps(statement).encode()))
    refused(lambda: verify_bundle(bundle, KEY.public, digest=str(DIGEST)))


def test_what_is_longer_than_allowed_is_not_parsed() -> None:
    with pytest.raises(VerificationError, match="the thing has 11 bytes, more than 10"):
        parse_object(b'{"a": "bc"}', what="the thing", max_bytes=10)
