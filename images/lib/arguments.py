"""The command line that every recipe has, and how a recipe fails.

A recipe is one program: `python3 recipe.py --platform linux/arm64 --inputs DIR --output DIR --jobs N [--toolchain DIR]
[--compiler DIR] [--cache DIR] [--variants A,B]`. It reads only its own folder, `images/lib` and the files in `--inputs`, which were
verified before; it opens no network connection and writes a deterministic tree below `--output`. Each line on its
standard output says in a few words what it is doing.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


class RecipeError(Exception):
    """A recipe that cannot be finished: what is wrong and where, on one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What a recipe is told.

    Attributes:
        platform: "linux/arm64" or "linux/amd64": what the output is for.
        machine: The kernel's name of that processor: "aarch64" or "x86_64".
        inputs: Folder of verified files.
        output: Empty folder that takes the tree, as it lies below the artifact's prefix in the image.
        jobs: Programs that may run at once, at least 1.
        toolchain: Tree of the artifact "toolchain", or None.
        compiler: Tree of the artifact "compiler", or None.
        cache: Folder that may keep work between runs; its content never changes the output.
        variants: CPU variants asked for; empty means the recipe's own choice.
    """

    platform: str
    machine: str
    inputs: Path
    output: Path
    jobs: int
    toolchain: Path | None
    compiler: Path | None
    cache: Path | None
    variants: tuple[str, ...]

    def tools(self, name: str) -> Path:
        """Return the tree of an artifact of tools, "toolchain" or "compiler".

        Raises:
            RecipeError: None was given.
        """
        tree = {"toolchain": self.toolchain, "compiler": self.compiler}[name]
        if tree is None:
            raise RecipeError(f"this recipe needs --{name} DIR, the tree of the artifact {name}")
        return tree

    def input(self, pattern: str) -> Path:
        """Return the one input whose name matches.

        Raises:
            RecipeError: None matches, or several do.
        """
        found = sorted(self.inputs.glob(pattern))
        if len(found) != 1:
            raise RecipeError(f"{len(found)} inputs are called {pattern}, not one")
        return found[0]


def say(text: str) -> None:
    """Tell what is being done now."""
    print(text, flush=True)


def run_recipe(build: Callable[[Arguments], None]) -> None:
    """Read the command line, build, and end the program with 0 or 1."""
    parser = argparse.ArgumentParser(description="Build one artifact from verified inputs, offline.")
    parser.add_argument("--platform", required=True, choices=sorted(MACHINES))
    parser.add_argument("--inputs", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--jobs", required=True, type=int)
    parser.add_argument("--toolchain", type=Path)
    parser.add_argument("--compiler", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--variants", default="")
    given = parser.parse_args()
    arguments = Arguments(
        platform=given.platform,
        machine=MACHINES[given.platform],
        inputs=given.inputs.absolute(),
        output=given.output.absolute(),
        jobs=max(1, given.jobs),
        toolchain=given.toolchain and given.toolchain.absolute(),
        compiler=given.compiler and given.compiler.absolute(),
        cache=given.cache and given.cache.absolute(),
        variants=tuple(name for name in given.variants.split(",") if name),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    if any(arguments.output.iterdir()):
        sys.exit(f"{arguments.output} is not empty")
    try:
        build(arguments)
    except RecipeError as error:
        sys.exit(str(error))
