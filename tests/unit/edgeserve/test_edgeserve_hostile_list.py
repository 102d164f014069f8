"""docs/hostile.md names tests that exist."""

import re
from pathlib import Path

_ROOT = Path(__file__).parents[3]


def test_every_kind_has_its_tests() -> None:
    text = (_ROOT / "docs" / "hostile.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 16
    for row in rows:
        named = re.findall(r"`(\w+)::(test_\w+)`", row)
        assert named, row
        for module, test in named:
            files = [
                *_ROOT.glob(f"tests/*/test_edgeserve_{module}.py"),
                *_ROOT.glob(f"tests/*/*/test_edgeserve_{module}.py"),
            ]
            assert any(f"def {test}(" in file.read_text() for file in files), (module, test)
