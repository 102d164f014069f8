"""What `--model` may say."""

import pytest

from edgebuild.errors import UsageError
from edgebuild.model.reference import (
    HubReference,
    LocalReference,
    ModelReference,
    RegistryReference,
    WebReference,
    parse_model_reference,
)
from edgebuild.oci.digest import Digest
from edgebuild.oci.reference import Reference

SHA = "ab" * 32
COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("demo", LocalReference(path="")),
        ("./demo", LocalReference(path="./demo")),
        ("models/a.gguf", LocalReference(path="models/a.gguf")),
        ("hf://acme/tiny", HubReference(repository="acme/tiny")),
        ("hf://acme/tiny/", HubReference(repository="acme/tiny")),
        ("HF://acme/tiny@v1.0", HubReference(repository="acme/tiny", revision="v1.0")),
        ("hf://acme/tiny/a/b.gguf", HubReference(repository="acme/tiny", file="a/b.gguf")),
        (f"hf://acme/t.i-n_y@{COMMIT}/b.gguf", HubReference(repository="acme/t.i-n_y", revision=COMMIT, file="b.gguf")),
        ("hf://acme/tiny@refs/pr/3/b.gguf", HubReference(repository="acme/tiny", revision="refs/pr/3", file="b.gguf")),
        ("hf://acme/tiny@feature%2Fx", HubReference(repository="acme/tiny", revision="feature/x")),
        (f"https://h.example/a.gguf#sha256={SHA}", WebReference(url="https://h.example/a.gguf", digest=Digest(SHA))),
        (
            f"https://h.example/a.gguf?x=1#sha256={SHA.upper()}",
            WebReference(url="https://h.example/a.gguf?x=1", digest=Digest(SHA)),
        ),
        ("oci://r.example/acme/m", RegistryReference(reference=Reference.parse("r.example/acme/m:latest"))),
        ("oci://r.example:5000/acme/m:1", RegistryReference(reference=Reference.parse("r.example:5000/acme/m:1"))),
        (f"oci://r.example/m@sha256:{SHA}", RegistryReference(reference=Reference.parse(f"r.example/m@sha256:{SHA}"))),
    ],
)  # fmt: skip
def test_forms(text: str, expected: ModelReference) -> None:
    assert parse_model_reference(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://acme", "names no repository"),
        ("hf://acme/tiny@", "names no repository"),
        ("hf://acme/tiny/../x.gguf", "names no repository"),
        ("hf://acme/ti ny", "names no repository"),
        ("hf://-x/tiny", "names no repository"),
        ("https://h.example/a.gguf", "without its sha256"),
        ("https://h.example/a.gguf#sha256=12", "is not a sha256"),
        (f"https://h.example/a.gguf#md5={SHA[:32]}", "is not a sha256"),
        ("https:///a.gguf#sha256=" + SHA, "names no host"),
        ("https://[::1/a.gguf#sha256=" + SHA, "is not a web address"),
        ("https://h:99999999/a.gguf#sha256=" + SHA, "is not a web address"),
        ("oci://acme/m", "names no registry"),
        ("oci://r.example/Acme", "is not a repository"),
        ("s3://bucket/a.gguf", "s3:// is no source"),
    ],
)
def test_what_has_no_such_form(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_model_reference(text)
    assert caught.value.hint


def test_commit_is_what_never_changes() -> None:
    assert HubReference(repository="a/b", revision=COMMIT).is_pinned
    assert not HubReference(repository="a/b", revision="main").is_pinned
    assert not HubReference(repository="a/b", revision=COMMIT[:7]).is_pinned


def test_secrets_of_an_address_are_not_shown() -> None:
    text = f"https://user:secret@h.example:8443/a/b%20c.gguf?X-Signature=secret#sha256={SHA}"
    reference = parse_model_reference(text)
    assert isinstance(reference, WebReference)
    assert reference.shown == "https://h.example:8443/a/b%20c.gguf"
    assert reference.file == "b c.gguf"
    with pytest.raises(UsageError) as caught:
        parse_model_reference("https://user:secret@h.example/a.gguf?X-Signature=secret")
    assert "secret" not in caught.value.message + caught.value.hint
