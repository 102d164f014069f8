"""Models that lie in registries: the artifacts of Docker Model Runner, ModelPack, ollama and oras, in a real registry."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import httpx2
import pytest

from edgebuild.artifacts.store import Store
from edgebuild.errors import ModelError, RegistryError
from edgebuild.host import Host, make_host
from edgebuild.model.source import ModelFile, find_model, load_model
from edgebuild.model_spec import ModelSpec
from edgebuild.oci.digest import Digest
from edgebuild.progress import SilentProgress
from tests.support.faulty_registry import Answer, Corrupt, CutResponse, FaultyRegistry
from tests.support.peers.registry import Registry
from tests.support.peers.tool import Tool
from tests.support.tiny_gguf import write_tiny_gguf

OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
APACHE = b"\n                                 Apache License\n                           Version 2.0\n"
Layer = tuple[str, bytes, Mapping[str, str]]
Load = Callable[..., ModelFile]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf").read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def load(tmp_path: Path, store: Store) -> Load:
    def load(reference: str, *wanted: str, **environment: str) -> ModelFile:
        host: Host = make_host(
            environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"], **environment},
            working_directory=tmp_path, cpu_count=1, now_s=0, cache=store.root,
        )  # fmt: skip
        return load_model(
            reference, wanted=wanted or ("Q4_K_M",), host=host, store=store, progress=SilentProgress()
        )

    return load


def push(
    host: str, repository: str, layers: tuple[Layer, ...], *, config: tuple[str, bytes], kind: str = OCI,
    artifact_type: str = "", tag: str = "1",
) -> Digest:  # fmt: skip
    """Push an artifact as its own tool does: blobs, then the manifest."""
    with httpx2.Client(base_url=f"http://{host}/v2/{repository}", trust_env=False) as client:

        def blob(media_type: str, data: bytes, annotations: Mapping[str, str]) -> dict[str, object]:
            digest = Digest.of(data)
            place = client.post("/blobs/uploads/").headers["Location"]
            joint = "&" if "?" in place else "?"
            done = client.put(
                f"{place if '://' in place else f'http://{host}{place}'}{joint}digest={digest}", content=data
            )
            assert done.status_code == 201, done.text
            described: dict[str, object] = {"mediaType": media_type, "digest": str(digest), "size": len(data)}
            return described | ({"annotations": dict(annotations)} if annotations else {})

        manifest = {
            "schemaVersion": 2, "mediaType": kind, "config": blob(*config, {}),
            "layers": [blob(*layer) for layer in layers],
        }  # fmt: skip
        if artifact_type:
            manifest["artifactType"] = artifact_type
        raw = json.dumps(manifest).encode()
        done = client.put(f"/manifests/{tag}", content=raw, headers={"Content-Type": kind})
        assert done.status_code == 201, done.text
    return Digest.of(raw)


def push_docker(host: str, gguf: bytes, *more: Layer) -> Digest:
    return push(
        host, "ai/tiny",
        (("application/vnd.docker.ai.gguf.v3", gguf, {}), ("application/vnd.docker.ai.license", APACHE, {}), *more),
        config=("application/vnd.docker.ai.model.config.v0.1+json", b'{"config": {"format": "gguf"}}'),
    )  # fmt: skip


def push_modelpack(
    host: str, gguf: bytes, *, media_type: str = "application/vnd.cncf.model.weight.v1.raw"
) -> Digest:
    config = {"descriptor": {"licenses": ["Apache-2.0", "MIT"]}, "config": {}, "modelfs": {}}
    return push(
        host, "acme/pack",
        (
            (media_type, gguf, {"org.cncf.model.filepath": "weights/pack-F16.gguf"}),
            ("application/vnd.cncf.model.doc.v1.raw", b"# doc", {"org.cncf.model.filepath": "README.md"}),
        ),
        config=("application/vnd.cncf.model.config.v1+json", json.dumps(config).encode()),
        artifact_type="application/vnd.cncf.model.manifest.v1+json",
    )  # fmt: skip


def push_ollama(host: str, gguf: bytes) -> Digest:
    return push(
        host, "library/tiny",
        (
            ("application/vnd.ollama.image.model", gguf, {}),
            ("application/vnd.ollama.image.template", b"{{ .Prompt }}", {}),
            ("application/vnd.ollama.image.license", APACHE, {}),
        ),
        config=("application/vnd.docker.container.image.v1+json", b'{"model_format": "gguf"}'),
        kind=DOCKER,
    )  # fmt: skip


def test_the_header_alone_is_read(registry: Registry, store: Store, tmp_path: Path) -> None:
    """Of a layer no more is taken than its beginning; one that is packed is fetched whole."""
    gguf = write_tiny_gguf(tmp_path / "b.gguf", dim=512, ff=2048, layers=3).read_bytes()
    push_docker(registry.host, gguf)
    host = make_host(
        environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        working_directory=tmp_path, cpu_count=1, now_s=0, cache=store.root,
    )  # fmt: skip

    def look(repository: str) -> ModelSpec:
        reference = f"oci://{registry.host}/{repository}:1"
        with find_model(
            reference, wanted=("Q4_K_M",), host=host, store=store, progress=SilentProgress()
        ) as found:
            return found.spec

    spec = look("ai/tiny")
    assert (spec.file_bytes, spec.licence) == (len(gguf), "Apache License")
    assert store.find_download(Digest.of(gguf), "tiny.gguf") is None
    push_modelpack(
        registry.host,
        packed({"pack.gguf": gguf}, mode="w"),
        media_type="application/vnd.cncf.model.weight.v1.tar",
    )
    assert look("acme/pack").file_bytes == len(gguf)


def test_what_follows_the_header_is_fetched_and_nothing_is_asked_twice(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    gguf = write_tiny_gguf(tmp_path / "b.gguf", dim=512, ff=2048, layers=2).read_bytes()
    push_docker(registry.host, gguf)
    before = len(registry.accesses())
    host = make_host(
        environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        working_directory=tmp_path, cpu_count=1, now_s=0, cache=store.root,
    )  # fmt: skip
    reference = f"oci://{registry.host}/ai/tiny:1"
    with find_model(
        reference, wanted=("Q4_K_M",), host=host, store=store, progress=SilentProgress()
    ) as found:
        assert found.load().path.read_bytes() == gguf
    asked = [access for access in registry.accesses()[before:] if access.method == "GET"]
    of_model = [access for access in asked if str(Digest.of(gguf)) in access.path]
    assert [(one.status, one.body_bytes) for one in of_model] == [
        (206, 1 << 20),
        (206, len(gguf) - (1 << 20)),
    ]
    others = [access.path for access in asked if access not in of_model]
    assert len(others) == len(set(others)) == 3, "manifest, configuration and licence"


@pytest.mark.parametrize(
    ("repository", "pushed", "file", "licence"),
    [
        ("ai/tiny", push_docker, "tiny.gguf", "Apache License"),
        ("acme/pack", push_modelpack, "pack-F16.gguf", "Apache-2.0 AND MIT"),
        ("library/tiny", push_ollama, "tiny.gguf", "Apache License"),
    ],
)
def test_artifacts_of_each_kind(
    registry: Registry, load: Load, store: Store, gguf: bytes, repository: str,
    pushed: Callable[[str, bytes], Digest], file: str, licence: str,
) -> None:  # fmt: skip
    digest = pushed(registry.host, gguf)
    found = load(f"oci://{registry.host}/{repository}:1")
    assert found.path.read_bytes() == gguf
    assert found.source.to_json() == {
        "kind": "oci",
        "reference": f"oci://{registry.host}/{repository}@{digest}",
        "revision": str(digest),
        "file": file,
        "digest": str(Digest.of(gguf)),
        "licence": licence,
    }
    assert load(found.source.reference).path == found.path
    blobs = [
        access
        for access in registry.accesses()
        if str(Digest.of(gguf)) in access.path and access.method == "GET"
    ]
    assert len(blobs) == 1
    assert store.verify() == ()


def test_what_oras_pushed(registry: Registry, load: Load, gguf: bytes, oras: Tool, tmp_path: Path) -> None:
    (tmp_path / "tiny-F16.gguf").write_bytes(gguf)
    oras.run(
        "push", "--plain-http", f"{registry.host}/acme/oras:latest", "tiny-F16.gguf:application/octet-stream",
        cwd=tmp_path,
    )  # fmt: skip
    assert load(f"oci://{registry.host}/acme/oras").source.file == "tiny-F16.gguf"


def test_login(auth_registry: Registry, load: Load, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="401") as caught:
        load(f"oci://{auth_registry.host}/ai/tiny:1")
    assert "docker login" in caught.value.hint
    auth_registry.write_docker_config(tmp_path / "docker")
    with pytest.raises(RegistryError, match="is not there"):
        load(f"oci://{auth_registry.host}/ai/tiny:1", DOCKER_CONFIG=str(tmp_path / "docker"))


def packed(files: Mapping[str, bytes], *, mode: Literal["w", "w:gz"] = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_model_in_an_archive(
    registry: Registry, load: Load, store: Store, gguf: bytes, mode: Literal["w", "w:gz"]
) -> None:
    """Names in it lead nowhere."""
    data = packed({"../../pack-F16.gguf": gguf, "README.md": b"#"}, mode=mode)
    media_type = f"application/vnd.cncf.model.weight.v1.tar{'+gzip' if mode == 'w:gz' else ''}"
    digest = push_modelpack(registry.host, data, media_type=media_type)
    found = load(f"oci://{registry.host}/acme/pack:1")
    assert found.path.read_bytes() == gguf
    assert found.path.is_relative_to(store.root)
    assert (found.source.file, found.source.sha256) == ("pack-F16.gguf", "")
    assert found.source.revision == str(digest)
    assert load(f"oci://{registry.host}/acme/pack:1").path == found.path
    assert store.verify() == ()


def test_digest_needs_no_network_again(faulty_registry: FaultyRegistry, load: Load, gguf: bytes) -> None:
    push_docker(faulty_registry.host, gguf)
    first = load(f"oci://{faulty_registry.host}/ai/tiny:1")
    before = len(faulty_registry.requests)
    again = load(first.source.reference)
    assert (again.path, again.source) == (first.path, first.source)
    assert len(faulty_registry.requests) == before


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((("application/vnd.oci.image.layer.v1.tar+gzip", b"x", {}),), "holds no GGUF file but"),
        (
            (("application/vnd.cncf.model.weight.v1.tar", b"x", {"org.cncf.model.filepath": "a.gguf"}),),
            "cannot be unpacked",
        ),
        (
            (
                (
                    "application/vnd.cncf.model.weight.v1.tar+gzip",
                    packed({}),
                    {"org.cncf.model.filepath": "a.gguf"},
                ),
            ),
            "holds 0 GGUF files",
        ),
        (
            (("application/vnd.cncf.model.weight.v1.tar+zstd", b"x", {"org.cncf.model.filepath": "a.gguf"}),),
            "holds no GGUF file but",
        ),
        (
            (
                ("application/vnd.docker.ai.gguf.v3", b"a", {"org.cncf.model.filepath": "a-Q6_K.gguf"}),
                ("application/vnd.docker.ai.gguf.v3", b"b", {"org.cncf.model.filepath": "b-Q6_K.gguf"}),
            ),
            "holds 2 models",
        ),
        ((("application/vnd.docker.ai.safetensors", b"x", {}),), "holds no GGUF file but"),
        ((), "holds no GGUF file but nothing"),
    ],
)
def test_artifacts_that_are_no_use(
    registry: Registry, load: Load, layers: tuple[Layer, ...], said: str
) -> None:
    push(registry.host, "acme/x", layers, config=("application/vnd.oci.empty.v1+json", b"{}"))
    with pytest.raises(ModelError, match=said) as caught:
        load(f"oci://{registry.host}/acme/x:1")
    assert caught.value.hint


def test_projectors_are_left_aside(registry: Registry, load: Load, gguf: bytes) -> None:
    push_docker(
        registry.host,
        gguf,
        ("application/vnd.docker.ai.mmproj", b"x", {"org.cncf.model.filepath": "mmproj.gguf"}),
    )
    assert load(f"oci://{registry.host}/ai/tiny:1").source.file == "tiny.gguf"


def test_index_of_one_model(registry: Registry, load: Load, gguf: bytes) -> None:
    digest = push_docker(registry.host, gguf)
    with httpx2.Client(trust_env=False) as client:
        manifest = client.get(
            f"{registry.url}/v2/ai/tiny/manifests/{digest}", headers={"Accept": OCI}
        ).content
        kind = "application/vnd.oci.image.index.v1+json"
        entry = {"mediaType": OCI, "digest": str(digest), "size": len(manifest)}
        for tag, count in (("one", 1), ("two", 2)):
            index = {"schemaVersion": 2, "mediaType": kind, "manifests": [entry] * count}
            client.put(
                f"{registry.url}/v2/ai/tiny/manifests/{tag}", json=index, headers={"Content-Type": kind}
            ).raise_for_status()
    assert load(f"oci://{registry.host}/ai/tiny:one").source.revision == str(digest)
    with pytest.raises(ModelError, match="an index of 2 manifests"):
        load(f"oci://{registry.host}/ai/tiny:two")


def test_cut_is_resumed_by_the_same_run(faulty_registry: FaultyRegistry, load: Load, gguf: bytes) -> None:
    push_docker(faulty_registry.host, gguf)
    digest = str(Digest.of(gguf))
    cut = faulty_registry.inject(CutResponse(after_bytes=1000), method="GET", path=digest)
    assert load(f"oci://{faulty_registry.host}/ai/tiny:1").path.read_bytes() == gguf
    assert cut.hits == 1
    assert ranges(faulty_registry, digest) == ["", "bytes=1000-"]


def test_broken_download_goes_on_in_the_next_run(
    faulty_registry: FaultyRegistry, load: Load, store: Store, gguf: bytes
) -> None:
    push_docker(faulty_registry.host, gguf)
    digest = str(Digest.of(gguf))
    faulty_registry.inject(CutResponse(after_bytes=1000), method="GET", path=digest)
    faulty_registry.inject(Answer(status=403), method="GET", path=digest)
    with pytest.raises(RegistryError, match="403"):
        load(f"oci://{faulty_registry.host}/ai/tiny:1")
    assert store.verify() == ()
    assert load(f"oci://{faulty_registry.host}/ai/tiny:1").path.read_bytes() == gguf
    assert ranges(faulty_registry, digest) == ["", "bytes=1000-", "bytes=1000-"]


def test_wrong_bytes_are_fetched_once_more_and_then_refused(
    faulty_registry: FaultyRegistry, load: Load, store: Store, gguf: bytes
) -> None:
    push_docker(faulty_registry.host, gguf)
    digest = str(Digest.of(gguf))
    faulty_registry.inject(Corrupt(), method="GET", path=digest, times=2)
    with pytest.raises(RegistryError, match="the registry says"):
        load(f"oci://{faulty_registry.host}/ai/tiny:1")
    assert store.verify() == ()
    assert not list(store.scratch("partial").glob("*"))
    faulty_registry.inject(Corrupt(), method="GET", path=digest, times=1)
    assert load(f"oci://{faulty_registry.host}/ai/tiny:1").path.read_bytes() == gguf


def ranges(registry: FaultyRegistry, digest: str) -> list[str]:
    return [
        request.headers.get("range", "")
        for request in registry.requests
        if request.method == "GET" and digest in request.path
    ]
