"""Asks edgetorch about texts and models, in the environment of torch: run as a script, JSON in, JSON out."""

import dataclasses
import json
import sys
from typing import Any

from edgetorch.events import Events, WorkerError
from edgetorch.models import load_tokenizer
from edgetorch.texts import load_text, parse_material


def main() -> None:
    """Answer every request of the list on standard input: rows as text, what is learnt of them, or the error."""
    events = Events.on_standard_output()
    request: dict[str, Any] = json.load(sys.stdin)
    tokenizer = load_tokenizer(request["tokenizer"])
    answers: list[dict[str, Any]] = []
    for given in request["materials"]:
        material = parse_material(given)
        try:
            found = load_text(material, tokenizer, context_tokens=material.context_tokens, events=events)
        except WorkerError as error:
            answers.append({"error": str(error)})
            continue
        answers.append(
            {
                part: [
                    {
                        **dataclasses.asdict(row),
                        "asked": tokenizer.decode(row.tokens[: row.first]),
                        "learnt": tokenizer.decode(row.tokens[row.first :]),
                    }
                    for row in rows
                ]
                for part, rows in (("training", found.training), ("held_out", found.held_out))
            }
        )
    events.result({"answers": answers})


if __name__ == "__main__":
    main()
