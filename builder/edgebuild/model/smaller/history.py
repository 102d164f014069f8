"""What was done to a model, one step after another: kept beside it in edgebuild-model.json, and told on its card."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgebuild.errors import ModelError
from edgebuild.model.smaller.folders import read_json_object

HISTORY_FILE = "edgebuild-model.json"
_FORMAT = 1
_FENCE = "---\n"
_FRONT_MATTER = re.compile(rb"(?:\xef\xbb\xbf)?---\r?\n(.*?)^---\r?$", re.DOTALL | re.MULTILINE)
# What a card says of licence, language and use holds for what is made of the model too.
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "model_description")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        kind: "prune" or "distill".
        document: Everything about it, as JSON.
        text: The same for people, as Markdown without a heading.
    """

    kind: str
    document: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a model says of itself.

    Attributes:
        facts: Front matter of its README.
        steps: What was done to it before, oldest first.
    """

    facts: Mapping[str, Any]
    steps: tuple[Step, ...]

    def name(self, folder: Path) -> str:
        """Name of the model as the card states it, else the folder's."""
        return str(self.facts.get("model_name") or folder.resolve().name)

    @property
    def licence(self) -> str:
        """Licence as the front matter states it, with its name where that is only "other"; "" when it states none."""
        stated = str(self.facts.get("license") or "")
        return str(self.facts.get("license_name") or stated) if stated == "other" else stated


def read_card(folder: Path) -> Card:
    """Read the card and history of a checkpoint; a model without either says nothing.

    Raises:
        ModelError: The history is damaged, or the card cannot be read.
    """
    return Card(facts=_front_matter(folder / "README.md"), steps=_steps(folder / HISTORY_FILE))


def _front_matter(readme: Path) -> Mapping[str, Any]:
    """Take the YAML between the fences at the top; what is no front matter is text for people, in whatever encoding."""
    try:
        found = _FRONT_MATTER.match(readme.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(
            f"{readme}: cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from error
    if found is None:
        return {}
    try:
        facts = yaml.safe_load(found[1].decode("utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        # YAML's errors show the place over several lines.
        raise ModelError(
            f"{readme}: its front matter cannot be read: {' '.join(str(error).split())}",
            hint="mend the lines between the two --- at the top, which state the licence",
        ) from error
    return facts if isinstance(facts, dict) else {}


def _steps(path: Path) -> tuple[Step, ...]:
    if not path.exists():
        return ()
    document = read_json_object(path)
    try:
        if document["format"] != _FORMAT:
            raise ModelError(
                f"{path} is of format {document['format']}, and this edgebuild reads {_FORMAT}",
                hint="use the edgebuild that wrote it, or a later one",
            )
        return tuple(
            Step(kind=str(step["kind"]), document=step["document"], text=str(step["text"]))
            for step in document["steps"]
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged", hint="make the model again, or remove the file") from error


def write_card(folder: Path, card: Card, step: Step, *, name: str, sources: str) -> None:
    """Write README.md and edgebuild-model.json of a model that came out of one more step.

    Args:
        folder: The model's folder.
        card: Of the model that it was made from.
        step: What was done.
        name: The new model's name.
        sources: What it was made from, as Markdown.

    Raises:
        OSError: They cannot be written.
    """
    steps = (*card.steps, step)
    facts = {"model_name": name} | {key: card.facts[key] for key in _INHERITED if key in card.facts}
    licence = (
        f"Licence: {card.licence}, as the card of that model states it."
        if card.licence
        else "Licence: the card of that model states none; find out before you pass this one on."
    )
    parts = [
        f"{_FENCE}{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}{_FENCE}# {name}",
        f"Made by edgebuild from {sources}.",
        licence,
        *(f"## {number}. {_TITLES[done.kind]}\n\n{done.text}" for number, done in enumerate(steps, 1)),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    document = {
        "format": _FORMAT,
        "steps": [{"kind": done.kind, "document": dict(done.document), "text": done.text} for done in steps],
    }
    (folder / HISTORY_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


_TITLES = {"prune": "Layers left out", "distill": "Distilled"}


def markdown_table(header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    """Write a table; all columns but the first are figures."""
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
