"""edgeverify runs on devices: the standard library and `cryptography`, nothing of edgebuild."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "images/verify/edgeverify"


def test_it_imports_the_standard_library_and_cryptography_alone() -> None:
    modules = sorted(PACKAGE.glob("*.py"))
    assert len(modules) >= 10
    imported = set()
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography", "edgeverify"}
