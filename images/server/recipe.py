"""The server: the package edgeserve, and edgeverify beside it, with bytecode."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

from arguments import Arguments, RecipeError, run_recipe, say
from bytecode import compile_tree
from trees import settle_modes

_IMAGES = Path(__file__).resolve().parent.parent
_PACKAGES = (_IMAGES / "server/edgeserve", _IMAGES / "verify/edgeverify")


def build(arguments: Arguments) -> None:
    """Build the artifact."""
    say("copy the server")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*~", "*.swp", "*.orig")
    for package in _PACKAGES:
        if not (package / "__init__.py").is_file():
            raise RecipeError(f"{package.name} is not beside this recipe")
        shutil.copytree(package, arguments.output / package.name, ignore=ignored)
    compile_tree(arguments.tools("toolchain"), arguments.output, prefix="/opt/edge/server")
    settle_modes(arguments.output)


if __name__ == "__main__":
    run_recipe(build)
