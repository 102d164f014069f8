"""Running recipes: keys, inputs, tools, failures. The recipes are small ones of these tests."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from edgebuild.artifacts.layers import artifact_layer, find_layer, has_layer
from edgebuild.artifacts.recipe_file import load_recipe
from edgebuild.artifacts.recipes import Artifact, artifact_key, build_artifact
from edgebuild.artifacts.sources import Sources
from edgebuild.artifacts.store import Store
from edgebuild.errors import ToolError
from edgebuild.host import Host
from edgebuild.lock import Lock, LockedArtifact, LockedInput
from edgebuild.oci.digest import Digest
from edgebuild.oci.layer import Role
from edgebuild.oci.platform import LINUX_AMD64, LINUX_ARM64, Platform
from tests.unit.artifacts.telling import Told, host_at

COPY = """
import sys; sys.path.insert(0, __file__.rpartition("/")[0] + "/../lib")
import argparse, shared, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("platform", "inputs", "output", "jobs", "toolchain", "compiler", "cache", "variants"):
    parser.add_argument(f"--{name}", default="")
given = parser.parse_args()
print("copying", flush=True)
output = pathlib.Path(given.output)
output.mkdir(parents=True)
for path in sorted(pathlib.Path(given.inputs).iterdir()):
    shutil.copyfile(path, output / path.name)
(output / "told").write_text(f"{given.platform} {given.variants} {bool(given.toolchain)} {bool(given.compiler)}")
"""
INPUT = LockedInput(
    kind="pypi", name="p", version="1", file="p.whl", sha256=Digest.of(b"wheel").hex, size_bytes=5
)
PYTHON = INPUT.model_copy(update={"name": "python3.13-minimal", "version": "1:3.13.5-2+deb13u5"})


class Workshop:
    """A folder of recipes, and everything that runs them."""

    def __init__(self, folder: Path, store: Store, told: Told) -> None:
        self.images = folder / "images"
        self.store = store
        self.host = host_at(folder)
        self.told = told
        self.lock = Lock(
            epoch_s=1,
            artifacts=(
                *self.entries("toolchain", PYTHON),
                *self.entries("compiler"),
                *self.entries("thing", INPUT),
            ),
        )
        for name, target in (("thing", "target"), ("toolchain", "host"), ("compiler", "host")):
            self.write(name, "recipe.py", COPY)
            self.write(name, "recipe.toml", f'[artifact]\ndescription = "x"\nfor = "{target}"\n')
        self.write("lib", "shared.py", "import deeper")
        self.write("lib", "deeper.py", "")
        store.make("download", Digest(INPUT.sha256), lambda folder: put(folder / "p.whl", b"wheel"))

    @property
    def sources(self) -> Sources:
        """Those of a new run: recipes are read once in each."""
        return Sources(host=self.host, store=self.store, progress=self.told, images=self.images)

    def entries(self, name: str, *inputs: LockedInput) -> tuple[LockedArtifact, LockedArtifact]:
        return (
            LockedArtifact(artifact=name, platform="linux/amd64", inputs=inputs),
            LockedArtifact(artifact=name, platform="linux/arm64", inputs=inputs),
        )

    def write(self, name: str, file: str, text: str) -> None:
        path = self.images / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(
        self,
        *,
        platform: Platform = LINUX_ARM64,
        lock: Lock | None = None,
        host: Host | None = None,
        variants: tuple[str, ...] = (),
    ) -> Artifact:
        return build_artifact(
            "thing",
            platform=platform,
            lock=lock or self.lock,
            host=host or self.host,
            store=self.store,
            progress=self.told,
            sources=self.sources,
            variants=variants,
        )

    def with_input(self, **fields: object) -> Lock:
        thing = self.entries("thing", INPUT.model_copy(update=fields))
        return self.lock.model_copy(update={"artifacts": (*self.lock.artifacts[:-2], *thing)})

    def edited(self, name: str, file: str, text: str) -> Self:
        self.write(name, file, text)
        return self

    def needing(self, *tools: str) -> Self:
        quoted = ", ".join(f'"{tool}"' for tool in tools)
        self.write(
            "thing", "recipe.toml", f'[artifact]\ndescription = "x"\nfor = "target"\nneeds = [{quoted}]\n'
        )
        return self


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.fixture
def workshop(tmp_path: Path, store: Store, told: Told) -> Workshop:
    return Workshop(tmp_path, store, told)


def test_recipe_gets_its_inputs_and_its_tree_is_kept(workshop: Workshop, told: Told) -> None:
    key = artifact_key(
        "thing", platform=LINUX_ARM64, lock=workshop.lock, host=workshop.host, sources=workshop.sources
    )
    assert workshop.store.find("artifact", key) is None
    artifact = workshop.build()
    assert artifact.key == key
    assert (artifact.tree / "p.whl").read_bytes() == b"wheel"
    assert (artifact.tree / "told").read_text() == "linux/arm64  False False"
    assert workshop.store.find("artifact", key) == artifact.tree.parent
    assert told.titles == ["build thing for linux/arm64"]
    assert told.statuses == ["copying"]
    document = json.loads((artifact.tree.parent / "artifact.json").read_text())
    assert document["inputs"] == [["p.whl", INPUT.sha256]]
    assert sorted(path.name for path in artifact.tree.parent.iterdir()) == ["artifact.json", "tree"]
    assert workshop.build() == artifact
    assert told.titles == ["build thing for linux/arm64"]


CHANGES: dict[str, Callable[[Workshop], Artifact]] = {
    "platform": lambda w: w.build(platform=LINUX_AMD64),
    "variants": lambda w: w.build(variants=("a",)),
    "name of an input": lambda w: w.build(lock=w.with_input(file="q.whl")),
    "recipe": lambda w: w.edited("thing", "recipe.py", COPY + "\n").build(),
    "data beside the recipe": lambda w: w.edited("thing", "more.patch", "").build(),
    "shared code": lambda w: w.edited("lib", "shared.py", "#").build(),
    "code that shared code imports": lambda w: w.edited("lib", "deeper.py", "#").build(),
    "need of Python": lambda w: w.needing("toolchain").build(),
    "need of a compiler": lambda w: w.needing("compiler").build(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with_everything_that_matters(workshop: Workshop, change: str) -> None:
    before = workshop.build()
    assert CHANGES[change](workshop).key != before.key


def test_key_does_not_change_with_anything_else(workshop: Workshop) -> None:
    before = workshop.build()
    workshop.write("other", "recipe.py", "")
    workshop.write("thing", "README.md", "")
    workshop.write("lib", "unused.py", "")
    workshop.write("thing", "__pycache__/recipe.pyc", "")
    workshop.write("thing", "folder/unnamed.txt", "")
    workshop.write("thing", "recipe.py~", "")
    lock = workshop.with_input(version="99").model_copy(update={"epoch_s": 7})
    host = replace(workshop.host, cpu_count=9, now_s=5)
    assert workshop.build(lock=lock, host=host).key == before.key


def test_sources_that_a_recipe_names_belong_to_its_key(workshop: Workshop) -> None:
    workshop.write(
        "thing", "recipe.toml", '[artifact]\ndescription="x"\nfor="target"\nsources=["server/pack"]\n'
    )
    workshop.write("server", "pack/a.py", "1")
    before = workshop.build().key
    workshop.write("server", "pack/__pycache__/a.pyc", "")
    assert workshop.build().key == before
    workshop.write("server", "pack/sub/b.py", "1")
    assert workshop.build().key != before


def test_tools_are_built_for_the_host(workshop: Workshop, told: Told) -> None:
    workshop.needing("compiler", "toolchain")
    artifact = workshop.build()
    assert told.titles == [
        "build compiler for linux/amd64",
        "build toolchain for linux/amd64",
        "build thing for linux/arm64",
    ]
    assert (artifact.tree / "told").read_text() == "linux/arm64  True True"


def test_compiler_belongs_to_the_key_and_of_python_only_the_version(workshop: Workshop) -> None:
    workshop.needing("compiler", "toolchain")
    before = workshop.build().key

    def with_python(version: str) -> Lock:
        python = workshop.entries("toolchain", PYTHON.model_copy(update={"version": version}))
        return workshop.lock.model_copy(update={"artifacts": (*python, *workshop.lock.artifacts[2:])})

    assert workshop.build(lock=with_python("1:3.13.5-2+deb13u6")).key == before
    assert workshop.build(lock=with_python("3.13.5-9")).key == before
    assert workshop.build(lock=with_python("3.13.6-1")).key != before
    workshop.write("compiler", "recipe.py", COPY + "#")
    assert workshop.build().key != before


def test_failing_recipe_leaves_nothing_and_tells_its_last_line(workshop: Workshop) -> None:
    workshop.write("thing", "recipe.py", 'import sys\nprint("so far")\nsys.exit("the oven is cold")')
    with pytest.raises(ToolError) as caught:
        workshop.build()
    assert caught.value.message == "recipe thing for linux/arm64 failed: the oven is cold"
    log = Path(caught.value.hint.rpartition(" ")[2])
    assert log.read_text() == "so far\nthe oven is cold\n"
    assert list((workshop.store.root / "v1/temporary").iterdir()) == []
    workshop.write("thing", "recipe.py", COPY)
    assert workshop.build().tree.is_dir()


def test_full_disk_inside_a_recipe_is_told_as_such(workshop: Workshop) -> None:
    workshop.write("thing", "recipe.py", 'raise OSError(28, "No space left on device")')
    with pytest.raises(ToolError, match="no space is left") as caught:
        workshop.build()
    assert "cache prune" in caught.value.hint


def test_recipe_sees_nothing_of_the_users_environment(workshop: Workshop) -> None:
    show = "import os, pathlib\npathlib.Path(given.output, 'environment').write_text(' '.join(sorted(os.environ)))"
    workshop.write("thing", "recipe.py", COPY + show)
    host = replace(
        workshop.host, environment={**workshop.host.environment, "SECRET": "1", "PYTHONPATH": "/x"}
    )
    seen = (workshop.build(host=host).tree / "environment").read_text().split()
    assert seen == ["HOME", "LC_ALL", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[artifact", "cannot be read"),
        ('[artifact]\ndescription="x"\nfor="moon"\n', "artifact.for"),
        ('[artifact]\ndescription="x"\nfor="host"\nspeed=1\n', "artifact.speed"),
        ('[artifact]\ndescription="x"\nfor="host"\n[[pypi]]\nproject="p"\n', "pypi.0"),
    ],
)
def test_broken_declaration_is_one_clear_error(workshop: Workshop, text: str, told: str) -> None:
    workshop.write("thing", "recipe.toml", text)
    with pytest.raises(ToolError) as caught:
        workshop.build()
    assert told in caught.value.message
    assert "thing/recipe.toml" in caught.value.message


def test_unknown_recipe(workshop: Workshop) -> None:
    with pytest.raises(ToolError, match="no recipe builds 'absent'"):
        load_recipe(workshop.images, "absent")


def test_layer_is_compressed_once(workshop: Workshop) -> None:
    artifact = workshop.build()
    layer = artifact_layer(artifact, role=Role.ENGINE, prefix="opt/edge/engine", store=workshop.store)
    assert layer.blob.size_bytes == layer.size_bytes
    assert Digest.of(layer.blob.read()) == layer.digest
    again = artifact_layer(artifact, role=Role.ENGINE, prefix="opt/edge/engine", store=workshop.store)
    assert again == layer
    other = artifact_layer(artifact, role=Role.ENGINE, prefix="opt/other", store=workshop.store)
    assert other.diff_id != layer.diff_id


def test_layer_is_there_without_its_tree(workshop: Workshop) -> None:
    artifact = workshop.build()
    prefix, store = "opt/edge/engine", workshop.store
    assert not has_layer(artifact.key, prefix, store)
    assert find_layer(artifact.key, role=Role.ENGINE, prefix=prefix, store=store) is None
    layer = artifact_layer(artifact, role=Role.ENGINE, prefix=prefix, store=store)
    (artifact.tree / "p.whl").write_bytes(b"touched")
    assert store.find("artifact", artifact.key) is None
    assert has_layer(artifact.key, prefix, store)
    assert find_layer(artifact.key, role=Role.ENGINE, prefix=prefix, store=store) == layer
    assert find_layer(artifact.key, role=Role.ENGINE, prefix="opt/other", store=store) is None


def test_recipe_is_read_once_in_a_run(workshop: Workshop) -> None:
    sources = workshop.sources
    before = sources.recipe("thing").files
    workshop.write("thing", "recipe.py", "pass")
    assert sources.recipe("thing").files == before
    assert workshop.sources.recipe("thing").files != before
    assert [recipe.name for recipe in sources.recipes()] == ["compiler", "thing", "toolchain"]


def test_interpreter_of_recipes_is_this_one(workshop: Workshop) -> None:
    workshop.write(
        "thing",
        "recipe.py",
        COPY + "import sys\npathlib.Path(given.output, 'python').write_text(sys.executable)",
    )
    assert (workshop.build().tree / "python").read_text() == sys.executable
