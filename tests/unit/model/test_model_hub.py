"""Models from a hub that refuses, fails, cuts, lies and says nothing: a real server on loopback."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild.artifacts.store import Store
from edgebuild.artifacts.tries import Patience
from edgebuild.errors import EdgebuildError, ModelError, ToolError
from edgebuild.host import Host
from edgebuild.model.hub import find_hub_model
from edgebuild.model.reference import HubReference
from edgebuild.oci.digest import Digest
from edgebuild.oci.seals import WHOLE_FILE
from tests.support.checkpoints import copy_demo, shard_demo
from tests.support.file_server import Page
from tests.support.hub import TOKEN, LoopbackHub
from tests.unit.artifacts.telling import Told
from tests.unit.model.conftest import Load

QUICK = Patience(attempts=2, deadline_s=20, backoff_s=0.01, idle_s=0.5)
CHECKPOINT = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors", "README.md"), b"{}")


@pytest.fixture
def tiny(hub: LoopbackHub, models: dict[str, bytes]) -> str:
    """The commit of acme/tiny, which holds two types."""
    return hub.add(
        "acme/tiny",
        {"README.md": b"# tiny", "tiny-Q4_K_M.gguf": models["0"], "tiny-Q8_0.gguf": models["1"]},
        licence="apache-2.0",
        in_git=("README.md",),
    )


def quick(reference: str, host: Host, store: Store, told: Told) -> None:
    find_hub_model(
        HubReference(repository=reference), wanted=("Q4_K_M",), host=host, store=store, progress=told, patience=QUICK
    ).fetch({})  # fmt: skip


def assert_store_is_good(store: Store) -> None:
    assert store.verify() == ()
    assert not list((store.root / "v1" / "temporary").glob("*"))


def test_file_of_the_profiles_type_is_taken_and_all_is_recorded(
    hub: LoopbackHub, tiny: str, load: Load, models: dict[str, bytes], told: Told
) -> None:
    found = load("hf://acme/tiny", "Q8_0")
    assert found.path.read_bytes() == models["1"]
    assert found.source.to_json() == {
        "kind": "huggingface",
        "reference": f"hf://acme/tiny@{tiny}/tiny-Q8_0.gguf",
        "revision": tiny,
        "file": "tiny-Q8_0.gguf",
        "digest": str(Digest.of(models["1"])),
        "licence": "apache-2.0",
    }
    assert found.spec.licence == "apache-2.0"
    assert told.advanced_bytes == len(models["1"])
    assert any(f"taking tiny-Q8_0.gguf at commit {tiny}" in note for note in told.notes)
    assert not [path for path, _ in hub.store.asked if Digest.of(models["0"]).hex in path]


def test_what_is_recorded_gives_the_same_file_and_without_network(
    hub: LoopbackHub, tiny: str, load: Load, models: dict[str, bytes]
) -> None:
    first = load("hf://acme/tiny@main/tiny-Q4_K_M.gguf")
    calls = len(hub.server.asked)
    hub.server.pages.clear()
    again = load(first.source.reference)
    assert (again.path, again.source) == (first.path, first.source)
    assert len(hub.server.asked) == calls
    assert load(first.source.reference, HF_HUB_OFFLINE="1").path == first.path
    with pytest.raises(ToolError, match="HF_HUB_OFFLINE forbids"):
        load("hf://acme/tiny", HF_HUB_OFFLINE="1")


def test_branch_is_asked_for_anew_and_old_commits_stay(
    hub: LoopbackHub, tiny: str, load: Load, models: dict[str, bytes]
) -> None:
    assert load("hf://acme/tiny").source.revision == tiny
    newer = hub.add("acme/tiny", {"tiny-Q4_K_M.gguf": models["1"]})
    assert load("hf://acme/tiny").source.revision == newer
    assert load(f"hf://acme/tiny@{tiny}").source.revision == tiny


def test_file_is_hashed_as_it_comes_and_not_again_for_quantising(
    tiny: str, load: Load, store: Store, models: dict[str, bytes]
) -> None:
    found = load("hf://acme/tiny")
    assert store.known_digest(found.path, WHOLE_FILE) == Digest.of(models["0"])


def test_same_bytes_under_two_names_are_stored_once(
    hub: LoopbackHub, load: Load, store: Store, models: dict[str, bytes]
) -> None:
    hub.add("acme/one", {"one-Q4_K_M.gguf": models["0"]})
    hub.add("acme/two", {"two-Q4_K_M.gguf": models["0"]})
    one, two = load("hf://acme/one"), load("hf://acme/two")
    assert one.path == two.path
    assert (one.spec.file_name, two.spec.file_name) == ("one-Q4_K_M.gguf", "two-Q4_K_M.gguf")
    assert next(kind for kind in store.info() if kind.kind == "download").entries == 1


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1"])
def test_revisions(hub: LoopbackHub, load: Load, models: dict[str, bytes], revision: str) -> None:
    commit = hub.add("acme/tiny", {"a.gguf": models["0"]}, branch=revision)
    assert load(f"hf://acme/tiny@{revision}/a.gguf").source.revision == commit


def test_private_repository_and_its_token(hub: LoopbackHub, load: Load, models: dict[str, bytes]) -> None:
    hub.add("acme/secret", {"a.gguf": models["0"]}, token=TOKEN)
    with pytest.raises(ModelError, match="is not there") as caught:
        load("hf://acme/secret")
    assert "HF_TOKEN" in caught.value.hint
    with pytest.raises(ToolError, match="refuses the token") as refused:
        load("hf://acme/secret", HF_TOKEN="hf_wrong")
    assert "hf_wrong" not in refused.value.message + refused.value.hint
    assert load("hf://acme/secret", HF_TOKEN=TOKEN).path.read_bytes() == models["0"]
    assert set(hub.store.authorizations) == {""}, "the token went to the storage"


def test_token_of_a_login(hub: LoopbackHub, load: Load, models: dict[str, bytes], tmp_path: Path) -> None:
    hub.add("acme/secret", {"a.gguf": models["0"]}, token=TOKEN)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(TOKEN + "\n")
    assert load("hf://acme/secret", HF_HOME=str(tmp_path / "hf")).path.is_file()


def test_token_never_goes_over_plain_http_to_another_machine(load: Load) -> None:
    with pytest.raises(ToolError, match=r"would go to http://hub\.example"):
        load("hf://acme/tiny", HF_ENDPOINT="http://hub.example", HF_TOKEN=TOKEN)
    with pytest.raises(ToolError, match="HF_TOKEN is no token"):
        load("hf://acme/tiny", HF_TOKEN="two words")


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("hf://acme/gone", ModelError, "hf://acme/gone is not there"),
        ("hf://acme/tiny@gone", ModelError, "has no revision gone"),
        (f"hf://acme/tiny@{'0' * 40}", ModelError, f"has no revision {'0' * 40}"),
        ("hf://acme/tiny/gone.gguf", ModelError, "has no file gone.gguf"),
        ("hf://acme/tiny/README.md", ModelError, "is no GGUF file"),
        ("hf://acme/small", ModelError, "is kept in git"),
        ("hf://acme/pickles", ModelError, "pickled weights only"),
        ("hf://acme/mute", ModelError, "holds no tokenizer"),
        ("hf://acme/empty", ModelError, "holds no model"),
        ("hf://acme/many", ModelError, "holds 2 models"),
    ],
)
def test_what_is_not_there_or_no_use(
    hub: LoopbackHub, tiny: str, load: Load, models: dict[str, bytes], reference: str,
    kind: type[EdgebuildError], said: str,
) -> None:  # fmt: skip
    hub.add("acme/small", {"a.gguf": models["0"]}, in_git=("a.gguf",))
    hub.add("acme/pickles", {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    hub.add("acme/mute", {name: data for name, data in CHECKPOINT.items() if name != "tokenizer.json"})
    hub.add("acme/empty", {"README.md": b""})
    hub.add("acme/many", {"a-Q6_K.gguf": models["0"], "b-Q6_K.gguf": models["1"]})
    with pytest.raises(kind, match=said) as caught:
        load(reference)
    assert caught.value.hint
    assert hub.store.asked == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_hub_that_recovers(hub: LoopbackHub, tiny: str, load: Load, status: int) -> None:
    hub.api("acme/tiny").failures = [status]
    assert load("hf://acme/tiny").source.revision == tiny


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (429, "", "cannot be asked: 429 Too Many Requests"),
        (500, "", "cannot be asked: 500"),
        (403, "GatedRepo", "is not open to this request"),
        (403, "", "is not open to this request"),
        (418, "", "answers 418"),
    ],
)
def test_hub_that_refuses(
    hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told, status: int, code: str, said: str
) -> None:
    page = hub.api("acme/tiny")
    page.refuse, page.headers = status, {"X-Error-Code": code} if code else {}
    with pytest.raises(ToolError, match=said) as caught:
        quick("acme/tiny", host, store, told)
    assert caught.value.hint
    page.refuse = 0
    quick("acme/tiny", host, store, told)
    assert_store_is_good(store)


def test_hub_that_names_its_limit(hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told) -> None:
    page = hub.api("acme/tiny")
    page.refuse, page.headers = 429, {"Retry-After": "300"}
    with pytest.raises(ToolError, match="asked to wait 300 s"):
        quick("acme/tiny", host, store, told)
    assert len(hub.api_calls) == 1


@pytest.mark.parametrize("spoilt", ["stalls", "cuts"])
def test_hub_that_says_nothing_more(
    hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told, spoilt: str
) -> None:
    setattr(hub.api("acme/tiny"), spoilt, [10] * QUICK.attempts)
    with pytest.raises(ToolError, match="cannot be asked"):
        quick("acme/tiny", host, store, told)
    quick("acme/tiny", host, store, told)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"<html>",
        b"{}",
        b'{"id": 1, "sha": 5, "siblings": 7}',
        b'{"id": "a", "sha": "main", "siblings": []}',
        json.dumps({"id": "a", "sha": "a" * 40, "siblings": [{"rfilename": 3}]}).encode(),
        json.dumps({"id": "a", "sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": -1}]}).encode(),
        json.dumps(
            {
                "id": "a",
                "sha": "a" * 40,
                "siblings": [{"rfilename": "a.gguf", "lfs": {"sha256": "../x", "size": 1, "pointerSize": 1}}],
            }
        ).encode(),
    ],
)
def test_server_that_is_no_hub(hub: LoopbackHub, host: Host, store: Store, told: Told, answer: bytes) -> None:
    hub.server.pages["/api/models/acme/tiny"] = Page(answer, content_type="application/json")
    with pytest.raises(ToolError, match="does not answer as a hub does"):
        quick("acme/tiny", host, store, told)


def test_hub_that_is_away(host: Host, load: Load, store: Store, told: Told) -> None:
    away = replace(host, environment={**host.environment, "HF_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(ToolError, match=r"the hub http://127\.0\.0\.1:9 cannot be asked"):
        quick("acme/tiny", away, store, told)


def test_commit_that_is_answered_with_another(hub: LoopbackHub, tiny: str, load: Load) -> None:
    other = "f" * 40
    hub.server.pages[f"/api/models/acme/tiny/revision/{other}"] = hub.api("acme/tiny")
    with pytest.raises(ToolError, match="answered with another commit"):
        load(f"hf://acme/tiny@{other}")


def test_broken_download_goes_on_where_it_stopped(
    hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told, models: dict[str, bytes]
) -> None:
    """More cuts than one run has tries for; the next run asks for the rest alone."""
    page = hub.storage(models["0"])
    page.cuts = [1000, 0, 0]
    with pytest.raises(ToolError, match="cannot be downloaded") as caught:
        quick("acme/tiny", host, store, told)
    assert "what arrived is kept" in caught.value.hint
    assert_store_is_good(store)
    page.cuts = []
    before = len(hub.store.asked)
    quick("acme/tiny", host, store, told)
    assert [asked for _, asked in hub.store.asked[before:]] == ["bytes=1000-"]
    assert_store_is_good(store)


def test_other_bytes_than_the_hub_named(
    hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told, models: dict[str, bytes]
) -> None:
    good = hub.storage(models["0"]).body
    hub.storage(models["0"]).body = bytes(len(good))
    with pytest.raises(ToolError, match="has sha256") as caught:
        quick("acme/tiny", host, store, told)
    assert "damaged or hostile" in caught.value.hint
    assert_store_is_good(store)
    assert not list(store.scratch("partial").glob("*"))
    hub.storage(models["0"]).body = good
    quick("acme/tiny", host, store, told)


@pytest.mark.parametrize(("status", "said"), [(401, "401"), (404, "404"), (403, "403")])
def test_file_that_is_refused(
    hub: LoopbackHub, tiny: str, host: Host, store: Store, told: Told, status: int, said: str
) -> None:
    hub.server.pages[f"/acme/tiny/resolve/{tiny}/tiny-Q4_K_M.gguf"] = Page(b"", refuse=status)
    with pytest.raises(
        ToolError, match=f"tiny-Q4_K_M.gguf from 127.0.0.1 cannot be downloaded: {said}"
    ) as caught:
        quick("acme/tiny", host, store, told)
    assert "/acme/tiny" in caught.value.hint


def checkpoint_of(folder: Path, **config: object) -> dict[str, bytes]:
    made = copy_demo(folder, config=config)
    return {path.name: path.read_bytes() for path in made.iterdir()}


def test_quantised_checkpoint_is_refused_before_anything_else_is_fetched(
    hub: LoopbackHub, load: Load, told: Told, tmp_path: Path
) -> None:
    files = checkpoint_of(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    hub.add("acme/awq", files)
    with pytest.raises(ModelError, match="hf://acme/awq is quantised already, by awq"):
        load("hf://acme/awq")
    config = Digest.of(files["config.json"]).hex
    assert [path.split("?")[0] for path, _ in hub.store.asked] == [f"/{config}"]
    assert not [title for title in told.titles if "set up" in title]


def test_shard_that_the_index_names_and_the_hub_lacks(hub: LoopbackHub, load: Load, tmp_path: Path) -> None:
    shards = shard_demo(tmp_path / "model")
    hub.add(
        "acme/model",
        {path.name: path.read_bytes() for path in shards.iterdir() if "00002-of" not in path.name},
    )
    with pytest.raises(ModelError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        load("hf://acme/model")


@pytest.mark.parametrize("status", [404, 403])
def test_small_file_that_is_refused(hub: LoopbackHub, load: Load, tmp_path: Path, status: int) -> None:
    commit = hub.add("acme/model", checkpoint_of(tmp_path / "model"), in_git=("config.json",))
    hub.server.pages[f"/acme/model/resolve/{commit}/config.json"].refuse = status
    with pytest.raises(
        ToolError, match=f"config.json of hf://acme/model cannot be downloaded: {status}"
    ) as caught:
        load("hf://acme/model")
    assert "/acme/model" in caught.value.hint


def test_small_file_that_is_another_than_the_hub_lists(
    hub: LoopbackHub, load: Load, store: Store, tmp_path: Path
) -> None:
    awq = checkpoint_of(tmp_path / "awq", quantization_config={"quant_method": "awq"})
    commit = hub.add("acme/awq", awq, in_git=("config.json",))
    page = hub.server.pages[f"/acme/awq/resolve/{commit}/config.json"]
    good = page.body
    page.body = b"{}"
    with pytest.raises(ToolError, match="is not what the hub's listing names"):
        load("hf://acme/awq")
    # A failure that passes is tried again; what came is kept, and a note that leads to another file is not believed.
    page.body, page.failures = good, [503]
    for _ in range(2):
        with pytest.raises(ModelError, match="by awq"):
            load("hf://acme/awq")
    asked = [path for path, _ in hub.server.asked if "config.json" in path]
    assert len(asked) == 3
    (note,) = (store.root / "v1" / "notes").glob("git-*.txt")
    note.write_text(Digest.of(awq["tokenizer.json"]).hex)
    with pytest.raises(ModelError, match="by awq"):
        load("hf://acme/awq")
    assert_store_is_good(store)
