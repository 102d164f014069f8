"""What `edgebuild image` refuses, and what it leaves then."""

import json
from pathlib import Path

import pytest

from tests.support.built import Edgebuild, assert_refused
from tests.support.peers.tool import Completed


class TestBadInput:
    """Each is one line `error: …`, a hint, its exit code; nothing is written and nothing is built."""

    @pytest.mark.parametrize(
        ("profile", "parts"),
        [
            ("pi6", ("pi6",)),
            ("./gone.yaml", ("gone.yaml",)),
            ("memmory: 8GiB", ("memmory", "memory", "bad.yaml:4")),
            ("memory: [8GiB", ("bad.yaml",)),
            ("extends: ./bad.yaml", ("bad.yaml",)),
            ("memory: lots\nreserve: 200%", ("memory", "reserve")),
        ],
        ids=["unknown", "missing", "unknown key", "broken", "cycle", "two faults"],
    )
    def test_profile(self, edgebuild: Edgebuild, profile: str, parts: tuple[str, ...]) -> None:
        name = profile
        if ":" in profile:
            name = "./bad.yaml"
            head = "" if profile.startswith("extends") else "extends: x86\n"
            (edgebuild.folder / "bad.yaml").write_text(f"{head}schema_version: 1\nname: bad\n{profile}\n")
        done = self._refused(edgebuild, 3, "--profile", name)
        for part in parts:
            assert part in done.stderr, done.describe()

    def test_model_that_is_none(self, edgebuild: Edgebuild, demo_model: Path) -> None:
        folder = edgebuild.folder
        (folder / "text.gguf").write_text("no model at all\n")
        (folder / "empty.gguf").write_bytes(b"")
        whole = demo_model.read_bytes()
        (folder / "short.gguf").write_bytes(whole[: len(whole) // 2])
        (folder / "header.gguf").write_bytes(whole[:1000])
        for model in ("gone.gguf", "text.gguf", "empty.gguf", "short.gguf", "header.gguf", folder):
            self._refused(edgebuild, 4, "--profile", "x86", "--model", model)
        self._refused(edgebuild, 2, "--profile", "x86", "--model", "https://example.com/model.gguf")

    def test_model_that_is_too_big(self, edgebuild: Edgebuild, demo_model: Path) -> None:
        (edgebuild.folder / "tiny.yaml").write_text(
            "extends: x86\nschema_version: 1\nname: tiny\nmemory: 64MiB\n"
        )
        done = self._refused(edgebuild, 4, "--profile", "./tiny.yaml", "--model", demo_model)
        for part in ("need", "budget", "does not fit"):
            assert part in done.stderr
        fit = edgebuild.run("fit", "--profile", "./tiny.yaml", "--model", demo_model, check=False)
        assert fit.returncode == 4

    def test_output_that_cannot_be_written(self, edgebuild: Edgebuild, demo_model: Path) -> None:
        (edgebuild.folder / "file").write_text("mine")
        for output in ("file", "file/below", "/proc/edgebuild-layout"):
            done = self._refused(edgebuild, 5, "--profile", "x86", "--model", demo_model, "--output", output)
            assert output in done.stderr
            assert "lock: " not in done.stderr, "refused only after the work began"
        assert (edgebuild.folder / "file").read_text() == "mine"

    def test_output_of_others(self, edgebuild: Edgebuild, demo_model: Path) -> None:
        foreign = edgebuild.folder / "foreign"
        foreign.mkdir()
        (foreign / "index.json").write_text("{}")
        self._refused(edgebuild, 6, "--profile", "x86", "--model", demo_model, "--output", "foreign")
        assert [path.name for path in foreign.iterdir()] == ["index.json"]
        (foreign / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (foreign / "index.json").write_text(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [
                        {
                            "mediaType": "application/vnd.oci.image.manifest.v1+json",
                            "digest": "sha256:" + "0" * 64,
                            "size": 2,
                        }
                    ],
                }
            )
        )
        self._refused(edgebuild, 6, "--profile", "x86", "--model", demo_model, "--output", "foreign")
        assert sorted(path.name for path in foreign.iterdir()) == ["index.json", "oci-layout"]

    @pytest.mark.parametrize(
        "flags",
        [
            ("--no-layout",),
            ("--push",),
            ("--no-layout", "--push"),
            ("--no-layout", "--push", "--tag", "127.0.0.1:1/a/b:1", "--output", "x"),
            ("--locked", "--update-lock"),
            ("--profile", "x86"),
            ("--tag", "no registry"),
            ("--password-file", "password"),
            ("--sign", "gone.key"),
            ("--quantization", "Q1"),
            ("--engine", "podman"),
        ],
        ids=" ".join,
    )
    def test_flags_that_make_no_sense(
        self, edgebuild: Edgebuild, demo_model: Path, flags: tuple[str, ...]
    ) -> None:
        self._refused(edgebuild, 2, "--profile", "x86", "--model", demo_model, *flags)

    @pytest.mark.parametrize("text", [None, "", "{", '{"schema_version": 99}', "[]"])
    def test_lock_that_is_missing_or_broken(
        self, edgebuild: Edgebuild, demo_model: Path, text: str | None
    ) -> None:
        lock = edgebuild.folder / "my.lock"
        if text is not None:
            lock.write_text(text)
        self._refused(edgebuild, 3, "--profile", "x86", "--model", demo_model, "--lock", lock, "--locked")
        assert (lock.read_text() if lock.exists() else None) == text

    def test_environment_that_makes_no_sense(self, edgebuild: Edgebuild, demo_model: Path) -> None:
        env = {"SOURCE_DATE_EPOCH": "yesterday"}
        self._refused(edgebuild, 2, "--profile", "x86", "--model", demo_model, env=env)

    def test_as_json(self, edgebuild: Edgebuild) -> None:
        (edgebuild.folder / "bad.yaml").write_text(
            "extends: x86\nschema_version: 1\nname: bad\nmemmory: 8GiB\n"
        )
        done = edgebuild.run("image", "--profile", "./bad.yaml", "--json", check=False)
        assert done.returncode == 3
        error = json.loads(done.stdout)["error"]
        assert set(error) == {"message", "hint", "faults", "exit_code"}
        assert (error["exit_code"], len(error["faults"])) == (3, 1)
        quiet = edgebuild.run("image", "--profile", "./bad.yaml", "--quiet", check=False)
        assert quiet.stdout == ""
        assert quiet.stderr.startswith("error: ")

    def _refused(
        self, edgebuild: Edgebuild, code: int, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> Completed:
        before = set(edgebuild.folder.rglob("*"))
        done = edgebuild.run("image", *arguments, check=False, env=env)
        assert_refused(done, code)
        assert set(edgebuild.folder.rglob("*")) == before, done.describe()
        return done
