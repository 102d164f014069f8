"""Compiles Python ahead for the image, with a copy of the image's own Python for the host's architecture.

The pyc files are of the "unchecked-hash" kind (PEP 552): no times in them, and valid on a read-only file system. They
are written with marshal version 2, because later versions depend on reference counts, which differ from run to run.
"""

import subprocess
from pathlib import Path

from arguments import RecipeError

_COMPILE = r"""
import importlib._bootstrap_external as boot, importlib.util, marshal, os, sys
root, prefix = sys.argv[1], sys.argv[2]
for folder, names, files in os.walk(root):
    names.sort()
    for name in sorted(files):
        if not name.endswith(".py"):
            continue
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            source = file.read()
        inside = os.path.join(prefix, os.path.relpath(path, root))
        try:
            code = compile(source, inside, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError) as error:
            sys.exit(f"{inside} does not compile: {error}")
        data = boot.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
        target = importlib.util.cache_from_source(path, optimization="")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(data + marshal.dumps(code, 2))
"""


def compile_tree(tools: Path, root: Path, *, prefix: str) -> None:
    """Write a pyc file beside every Python source below `root`.

    Args:
        tools: Tree of the artifact "toolchain".
        root: Absolute folder.
        prefix: Absolute path of `root` in the image, for tracebacks.

    Raises:
        RecipeError: A source does not compile.
    """
    done = subprocess.run(
        [*python_argv(tools), "-S", "-B", "-P", "-c", _COMPILE, root, prefix],
        env=python_environment(tools),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RecipeError(f"bytecode for {prefix}: {last}")


def python_argv(tools: Path) -> list[str]:
    """Give the words that start the toolchain's Python through its own loader, wherever the tree lies."""
    loaders = sorted(tools.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*"))
    if len(loaders) != 1:
        raise RecipeError(f"{tools} is no toolchain: {len(loaders)} loaders found, not one")
    return [str(loaders[0]), "--library-path", str(loaders[0].parent), str(tools / "usr/bin/python3.13")]


def python_environment(tools: Path) -> dict[str, str]:
    """Give the whole environment for the toolchain's Python."""
    return {
        "PYTHONHOME": str(tools / "usr"),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
