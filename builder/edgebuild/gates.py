"""How far a model may be from its original: a part of profiles and of project files."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from edgebuild.documents import Section

# No float enters a document: shares and divergences are whole millionths inside.
MILLION = 1_000_000
_MOST = 1000


def parse_millionths(value: object) -> object:
    """Read "2%" or a number such as 0.05 as millionths; anything else is refused."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,4})?)\s*%\s*", value)):
        return round(float(match[1]) * MILLION / 100)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST:
        return round(value * MILLION)
    raise ValueError(f"{value!r} is no share or number from 0 up; write e.g. 2% or 0.02")


def _checked_share(value: object) -> object:
    found = parse_millionths(value)
    if isinstance(found, int) and found > MILLION:
        raise ValueError(f"{value!r} is more than all; write e.g. 99% or 0.99")
    return found


def _schema(most: int, example: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": most},
                {"type": "string", "pattern": r"^\s*[0-9]{1,3}(\.[0-9]{1,4})?\s*%\s*$"},
            ],
            "examples": [example],
        }
    )


Millionths = Annotated[int, BeforeValidator(parse_millionths), _schema(_MOST, "2%")]
ShareOfAll = Annotated[int, BeforeValidator(_checked_share), _schema(1, "99%")]


class QualityGates(Section):
    """What a quantised model must keep of its original; past one of these, no image is built."""

    perplexity_increase: Millionths | None = Field(
        default=None, description="Most that the perplexity may be above the original's, e.g. 2%"
    )
    kl_divergence: Millionths | None = Field(
        default=None,
        description="Largest mean Kullback-Leibler divergence from the original, in nats, e.g. 0.05",
    )
    exact_match: ShareOfAll | None = Field(
        default=None, description="Least share of the tasks that are answered to the letter, e.g. 99%"
    )

    @property
    def needs_text(self) -> bool:
        """Whether a text has to be measured."""
        return self.perplexity_increase is not None or self.kl_divergence is not None

    @property
    def needs_tasks(self) -> bool:
        """Whether tasks have to be answered."""
        return self.exact_match is not None


def stricter(one: QualityGates, other: QualityGates) -> QualityGates:
    """Return gates that only lets pass what both do."""
    return QualityGates.model_construct(
        perplexity_increase=_least(one.perplexity_increase, other.perplexity_increase),
        kl_divergence=_least(one.kl_divergence, other.kl_divergence),
        exact_match=max(
            (item for item in (one.exact_match, other.exact_match) if item is not None), default=None
        ),
    )


def _least(one: int | None, other: int | None) -> int | None:
    return min((item for item in (one, other) if item is not None), default=None)
