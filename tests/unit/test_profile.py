"""Profiles: what ships is right, what is wrong is told whole, with file, path and line."""

import json
from pathlib import Path

import pytest

from edgebuild.data import data_path
from edgebuild.errors import ProfileError
from edgebuild.profile import CPU_VARIANTS, DeviceProfile, load_profile, profile_names, profile_schema

GIB = 2**30
COMPLETE = """\
schema_version: 1
name: box
platform: linux/amd64
cpu: {model: Haswell, variant: haswell, cores: 2}
memory: 2GiB
storage: 8GB
"""


def load(folder: Path, text: str, name: str = "my.yaml") -> DeviceProfile:
    (folder / name).write_text(text, encoding="utf-8")
    return load_profile(f"./{name}", working_directory=folder)


def faults_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ProfileError) as caught:
        load(folder, text)
    return caught.value.faults or (caught.value.message,)


def test_built_in_profiles_load_and_name_a_variant_that_is_built() -> None:
    assert profile_names() == ("jetson", "pi4", "pi5", "x86")
    for name in profile_names():
        profile = load_profile(name, working_directory=Path("/"))
        assert profile.name == name
        assert profile.cpu.variant in CPU_VARIANTS[profile.oci_platform.architecture]
        assert profile.reserve == 300


def test_extends_overlays_key_by_key() -> None:
    pi4, pi5 = (load_profile(name, working_directory=Path("/")) for name in ("pi4", "pi5"))
    assert (pi5.memory, pi5.cpu.cores, pi5.server.limits.request_s) == (8 * GIB, 4, 180)
    assert pi5.server.limits.output_tokens == pi4.server.limits.output_tokens


def test_user_profile_extends_a_built_in_one_and_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: pi4\nname: base\nmemory: 2GiB\n")
    profile = load(tmp_path, "extends: ./base.yaml\nname: mine\ncontext: 512\n")
    assert (profile.name, profile.memory, profile.context, profile.platform) == (
        "mine",
        2 * GIB,
        512,
        "linux/arm64",
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * GIB),
        ("512 MiB", 512 * 2**20),
        ("32GB", 32 * 10**9),
        ("1.5GiB", GIB * 3 // 2),
        ("1073741824", GIB),
    ],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, COMPLETE.replace("2GiB", text)).memory == size


@pytest.mark.parametrize(("text", "reserve"), [("30%", 300), ("12.5%", 125), ("0.3", 300), ("0%", 0)])
def test_reserve_and_budget(tmp_path: Path, text: str, reserve: int) -> None:
    profile = load(tmp_path, f"{COMPLETE}reserve: {text}\n")
    assert profile.reserve == reserve
    assert profile.budget_bytes == 2 * GIB * (1000 - reserve) // 1000


def test_all_faults_are_told_at_once_with_line_and_suggestion(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        "extends: pi4\nname: My\nmemry: 3GiB\ncpu:\n  modle: a72\n  cores: many\nreserve: 300%\nserver:\n  limits:\n    body: 3zb\n",
    )
    text = "\n".join(faults)
    for expected in (
        "my.yaml:2: name:",
        "my.yaml:3: memry: unknown key; did you mean 'memory'?",
        "my.yaml:5: cpu.modle: unknown key; did you mean 'model'?",
        "my.yaml:6: cpu.cores:",
        "my.yaml:7: reserve:",
        "my.yaml:10: server.limits.body: '3zb' is not a size",
    ):
        assert expected in text
    assert len(faults) == 6


def test_missing_keys_are_named(tmp_path: Path) -> None:
    text = "\n".join(faults_of(tmp_path, "schema_version: 1\nname: box\ncpu:\n  model: x\n"))
    for key in ("platform", "memory", "storage", "cpu.variant", "cpu.cores"):
        assert f"{key}: is required" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [1\n", "my.yaml:2: not YAML"),
        ("a: b: c\n", "my.yaml:1: not YAML"),
        ("- 1\n", "not a mapping"),
        ("", "not a mapping"),
        ("x: &a 1\ny: *a\n", "my.yaml:2: aliases are not supported"),
        ("name: a\nname: b\n", "my.yaml:2: key 'name' stands there twice"),
        ("name: !!python/object:os.system x\n", "cannot be read as a value"),
        ("[1]: 2\n", "a key is not plain text"),
        ("extends: 3\n", "my.yaml:1: extends is not text"),
        ("extends: pi6\n", "unknown profile 'pi6'"),
        ("extends: ./gone.yaml\n", "no such profile file"),
        (COMPLETE.replace("haswell", "armv8.0_1"), "'armv8.0_1' is not built for linux/amd64"),
        (COMPLETE.replace("2GiB", "0"), "memory"),
        (
            COMPLETE + "tuning: {kv_type: q8_0, flash_attention: off}\n",
            "my.yaml:7: tuning: kv_type: a cache of q8_0 needs flash attention, which is off",
        ),
        (
            COMPLETE + "server: {limits: {window_tokens: 100, window_stride_tokens: 101}}\n",
            "server.limits.window_stride_tokens: 101 would skip text between windows of 100 tokens",
        ),
        (
            COMPLETE + "context: 64\nserver: {limits: {past_context: shift}}\n",
            "server.limits.keep_tokens: 32 is not less than half of the context of 64 tokens",
        ),
        ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 40)), "nested more than"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(faults_of(tmp_path, text))


def test_not_utf8_and_too_large(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * 70_000)
    for name, expected in (("latin.yaml", "byte 9 is not UTF-8"), ("large.yaml", "larger than 64 KiB")):
        with pytest.raises(ProfileError, match=expected):
            load_profile(f"./{name}", working_directory=tmp_path)


def test_cycle_in_extends(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\nname: b\n")
    with pytest.raises(ProfileError, match=r"extends itself: a.yaml → b.yaml → a.yaml"):
        load_profile("./a.yaml", working_directory=tmp_path)


def test_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("jetsn", working_directory=Path("/"))
    assert caught.value.message == "unknown profile 'jetsn'"
    assert "did you mean 'jetson'?" in caught.value.hint
    assert caught.value.exit_code == 3


def test_committed_schema_is_the_models_schema() -> None:
    committed = json.loads((data_path("profiles") / "schema.json").read_text(encoding="utf-8"))
    assert committed == profile_schema(), "run: edgebuild profiles schema > profiles/schema.json"
