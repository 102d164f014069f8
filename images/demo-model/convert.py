"""Make the 16-bit GGUF of the demo model with llama.cpp's own converter.

    python convert.py --llama-cpp DIR

DIR is a source tree of llama.cpp, for instance `vendor/llama.cpp` of the llama-cpp-python sdist. Equal input gives
equal bytes: the file is made twice and compared. The converter reads name, licence and description from the model
card's front matter, and tokens and scores from `tokenizer.model`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
MAX_BYTES = 8_000_000


def convert(llama_cpp: Path, model: Path, output: Path) -> None:
    """Run llama.cpp's converter on a Hugging Face folder, weights as F16."""
    script = llama_cpp / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), str(model), "--outtype", "f16", "--outfile", str(output)]
    subprocess.run(command, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert twice, compare, and put the file in its place."""
    parser = argparse.ArgumentParser(description="Make the demo model's 16-bit GGUF.")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="source tree of llama.cpp")
    parser.add_argument("--model", type=Path, default=HERE / "hf", help="Hugging Face folder")
    parser.add_argument("--output", type=Path, default=HERE / "edge-alert-4m.F16.gguf", help="file to write")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        made = []
        for name in ("first.gguf", "second.gguf"):
            convert(options.llama_cpp, options.model, Path(scratch, name))
            made.append(Path(scratch, name).read_bytes())
    if made[0] != made[1]:
        sys.exit("convert.py: two conversions gave different bytes")
    if len(made[0]) > MAX_BYTES:
        sys.exit(f"convert.py: the file has {len(made[0])} bytes, more than {MAX_BYTES}")
    options.output.write_bytes(made[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
