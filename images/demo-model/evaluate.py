"""Measure the demo model: the share of held-out lines that it answers to the letter, decoding greedily.

    python evaluate.py --url http://127.0.0.1:8080

asks a server of the OpenAI kind, POST /v1/chat/completions at temperature 0, so that chat template, tokenizer and
weights are measured together, as a user meets them. Standard library only. The exit status is 1 when the share is
below `--at-least`.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = Path(__file__).parent / "heldout.jsonl"
OUTPUT_TOKENS = 128  # the longest alert of 20,000 lines has 54 tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was asked, what the rules expect and what the model said."""

    prompt: str
    expected: str
    given: str


def http_url(text: str) -> str:
    """Accept an http or https URL.

    Raises:
        argparse.ArgumentTypeError: another scheme, or none.
    """
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is no http:// or https:// URL")
    return text.rstrip("/")


def load_lines(path: Path) -> tuple[tuple[str, str], ...]:
    """Read (prompt, expected) pairs from a file of JSON lines."""
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple((document["prompt"], document["expected"]) for document in documents)


def ask(url: str, prompt: str, *, model: str, timeout_s: float) -> str:
    """Send one chat request to an http or https server and return the text of the answer.

    Raises:
        OSError: no connection, an HTTP error (urllib.error.HTTPError) or no answer within `timeout_s`.
        ValueError: the answer is not JSON.
        LookupError: the answer is JSON but holds no message.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": OUTPUT_TOKENS,
    }
    request = urllib.request.Request(  # noqa: S310 - http_url lets nothing else through
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 - as above
        document = json.load(response)
    return str(document["choices"][0]["message"]["content"])


def answers(lines: Sequence[tuple[str, str]], options: argparse.Namespace) -> Iterator[Answer]:
    """Ask for every line, `options.parallel` at a time; answers come in the order of the lines."""

    def one(line: tuple[str, str]) -> Answer:
        given = ask(options.url, line[0], model=options.model, timeout_s=options.timeout)
        return Answer(prompt=line[0], expected=line[1], given=given)

    with ThreadPoolExecutor(options.parallel) as pool:
        yield from pool.map(one, lines)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure the demo model's exact matches on held-out lines.")
    parser.add_argument(
        "--url", type=http_url, default="http://127.0.0.1:8080", help="server to ask (%(default)s)"
    )
    parser.add_argument("--heldout", type=Path, default=HELD_OUT, help="file of JSON lines (%(default)s)")
    parser.add_argument("--limit", type=int, help="ask only the first so many lines")
    parser.add_argument("--model", default="edge-alert-4m", help="model name in the request (%(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="requests at a time (%(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one answer (%(default)s)")
    parser.add_argument("--at-least", type=float, default=0.99, help="share needed for success (%(default)s)")
    parser.add_argument("--show", type=int, default=10, help="wrong answers to print (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, compare and print one JSON document; wrong answers go to standard error."""
    options = parse_options(argv)
    try:
        lines = load_lines(options.heldout)[: options.limit]
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"evaluate.py: cannot read {options.heldout}: {type(error).__name__}: {error}")
    if not lines:
        sys.exit(f"evaluate.py: {options.heldout} holds no lines")
    begin = time.monotonic()
    try:
        got = tuple(answers(lines, options))
    except urllib.error.HTTPError as error:
        sys.exit(
            f"evaluate.py: {options.url} answered {error.code}: {error.read(500).decode(errors='replace')}"
        )
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"evaluate.py: {options.url}: {type(error).__name__}: {error}")
    wrong = [answer for answer in got if answer.given != answer.expected]
    for answer in wrong[: options.show]:
        sys.stderr.write(f"asked    {answer.prompt}\nexpected {answer.expected}\ngiven    {answer.given}\n\n")
    share = 1 - len(wrong) / len(got)
    seconds = round(time.monotonic() - begin, 1)
    report = {"lines": len(got), "exact": len(got) - len(wrong), "share": share, "seconds": seconds}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if share >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
