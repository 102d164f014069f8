"""The model's own chat template, rendered in a sandbox with bounds on time, loops and size.

The template comes with the model and is code that somebody else wrote; the messages come from clients. So:
- Jinja's immutable sandbox, with a short list of string methods and filters that cannot blow up a text;
- every loop and macro body counts a step, every intermediate text is measured, and the whole has a time limit;
- what clients wrote can never become a control token: its spellings of control tokens are marked before rendering,
  and the marked parts are tokenised as plain text afterwards.

Rendering follows transformers' `apply_chat_template` (chat_template_utils.py): trim_blocks, lstrip_blocks, loop
controls, `raise_exception`, a `tojson` that keeps Unicode, the tag `generation`. `strftime_now` is left out: a prompt
shall not depend on a clock, and templates that want one test whether it is there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_MOST_STEPS: Final = 200_000
_LONGEST_RENDERING_S: Final = 5.0
_LONGEST_TEMPLATE: Final = 1 << 18
_OPENERS: Final = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))  # Unicode's noncharacters
_METHODS: Final = frozenset(
    """
    capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join lower lstrip partition
    removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase
    title upper
    """.split()  # noqa: SIM905
)
_FILTERS: Final = frozenset(
    """
    abs batch capitalize count d default dictsort e escape first float groupby int items last length list lower
    map max min reject rejectattr replace reverse round safe select selectattr slice sort string sum title trim unique
    upper
    """.split()  # noqa: SIM905
)


class TemplateError(Exception):
    """The template cannot be used at all: bad syntax, too long, a filter that is not allowed."""


class RenderError(Exception):
    """The template refuses these messages or exceeds a bound; the message may be shown to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the prompt; only in `special` parts do the spellings of control tokens stand for them."""

    text: str
    special: bool


class _Meter:
    """What one rendering may still use."""

    __slots__ = ("_end", "_longest", "_steps")

    def __init__(self, longest: int) -> None:
        self._steps = _MOST_STEPS
        self._end = time.monotonic() + _LONGEST_RENDERING_S
        self._longest = longest

    def step(self) -> str:
        """Count one turn of a loop."""
        self._steps -= 1
        if self._steps < 0:
            raise RenderError(f"the model's chat template runs more than {_MOST_STEPS} loop steps")
        if time.monotonic() > self._end:
            raise RenderError(f"the model's chat template takes longer than {_LONGEST_RENDERING_S:.0f} s")
        return ""

    def check(self, size: int) -> None:
        """Measure a text or list, before it is made where its size is known."""
        if size > self._longest:
            raise RenderError(
                f"the model's chat template makes a text longer than {self._longest} characters"
            )

    def measured(self, value: Any) -> Any:
        """Measure what an operation made."""
        if isinstance(value, (str, list, tuple, dict)):
            self.check(len(value))
        return value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; `meter` belongs to the rendering in progress, of which there is one at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.meter = _Meter(0)
        self.filters = {name: self._bounded(self.filters[name]) for name in sorted(_FILTERS)}
        self.filters |= {"tojson": self._to_json, "replace": self._replace, "join": self._join}
        self.globals = {
            "range": self._range,
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise_exception,
            "_step": self._step,
            "_concat": self._concat,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow of strings only the methods that make nothing longer than what they get."""
        if isinstance(obj, str) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` to `is_safe_attribute`, which refuses it: a width makes a text of any length."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Measure what methods return, and what `replace` and `join` are about to."""
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace" and len(args) > 1:
                self.meter.check(len(owner) + owner.count(str(args[0])) * len(str(args[1])))
            elif name == "join" and args and isinstance(args[0], (list, tuple)):
                self.meter.check(len(owner) * len(args[0]))
        return self.meter.measured(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Bound the operators that can make much from little."""
        if operator in {"**", "%"} and not (
            isinstance(left, (int, float)) and isinstance(right, (int, float))
        ):
            raise RenderError(
                f"the model's chat template uses the operator {operator} on something else than numbers"
            )
        if operator == "**" and max(abs(left), abs(right)) > 1024:
            raise RenderError("the model's chat template raises too large numbers to a power")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    self.meter.check(len(one) * other)
        return self.meter.measured(super().call_binop(context, operator, left, right))

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(*args: Any, **kwargs: Any) -> Any:
            return self.meter.measured(function(*args, **kwargs))

        # Jinja marks filters that want the environment or context by an attribute.
        bounded.__dict__.update(getattr(function, "__dict__", {}))
        return bounded

    def _to_json(self, value: Any, indent: int | None = None, **_options: Any) -> str:
        if indent is None:
            text: str = self.meter.measured(json.dumps(value, ensure_ascii=False))
            return text
        # What is nested deeply is indented at each line, so that the whole can be far longer than what came in.
        parts: list[str] = []
        size = 0
        for part in json.JSONEncoder(ensure_ascii=False, indent=min(indent, 8)).iterencode(value):
            size += len(part)
            self.meter.check(size)
            parts.append(part)
        return "".join(parts)

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = str(value), str(old), str(new)
        self.meter.check(len(text) + text.count(old) * len(new))
        return text.replace(old, new, count)

    def _join(self, values: Iterable[Any], separator: Any = "", attribute: str | int | None = None) -> str:
        texts: list[str] = []
        size = 0
        for value in values:
            texts.append(str(value if attribute is None else self.getitem(value, attribute)))
            size += len(texts[-1]) + len(separator)
            self.meter.check(size)
        return str(separator).join(texts)

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self.meter.check(len(numbers))
        return numbers

    def _step(self) -> str:
        return self.meter.step()

    def _concat(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        self.meter.check(sum(map(len, texts)))
        return "".join(texts)


class _Generation(Extension):
    """The tag `generation`, which marks the assistant's words for training; here its body stands as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(NodeTransformer):
    """Makes every loop and macro body count a step and every concatenation be measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - named after the node
        self._count(node)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self._count(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:  # noqa: N802
        self._count(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return _call("_concat", node.nodes, node.lineno)

    def _count(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> None:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("_step", [], node.lineno)], lineno=node.lineno))


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load", lineno=line), arguments, [], None, None, lineno=line)


def _raise_exception(message: object = "") -> NoReturn:
    raise RenderError(f"the model's chat template refuses the messages: {str(message)[:200]}")


class ChatTemplate:
    """A compiled template; `render` is for one thread at a time."""

    def __init__(self, source: str, *, bos_text: str, eos_text: str, control_texts: Sequence[str]) -> None:
        if len(source) > _LONGEST_TEMPLATE:
            raise TemplateError(f"longer than {_LONGEST_TEMPLATE} characters")
        self._environment = _Environment()
        try:
            tree = _Counting().visit(self._environment.parse(source))
            code = self._environment.compile(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        self._template = jinja2.Template.from_code(
            self._environment, code, self._environment.make_globals(None)
        )
        self._source_characters = frozenset(source)
        self._constants = {"bos_token": bos_text, "eos_token": eos_text}
        # The longest first, for one spelling may begin another.
        spellings = sorted((text for text in control_texts if text), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, spellings))) if spellings else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        longest: int,
        tools: Sequence[Mapping[str, Any]] = (),
        has_generation_prompt: bool = True,
    ) -> tuple[Segment, ...]:
        """Render the prompt of a chat.

        Args:
            messages: Each with `role`, from a fixed set, and what else belongs to it, as the client wrote it: JSON.
            longest: Most characters of the prompt and of anything made on the way.
            tools: What the model may call, as the client wrote it; a template is not told of none.
            has_generation_prompt: Whether what comes before an answer follows.

        Raises:
            RenderError: The template refuses the messages, fails on them or exceeds a bound.
        """
        self._environment.meter = meter = _Meter(longest)
        parts: list[str] = []
        size = 0
        try:
            opener, closer = self._unused(tuple(_texts((messages, tools))))
            given = {"messages": self._marked(messages, opener, closer)}
            if tools:
                given["tools"] = self._marked(tools, opener, closer)
            for part in self._template.generate(
                **given, **self._constants, add_generation_prompt=has_generation_prompt
            ):
                size += len(part)
                meter.check(size)
                parts.append(part)
        except RenderError:
            raise
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise RenderError(
                f"the model's chat template fails on these messages: {type(error).__name__}"
            ) from error
        except RecursionError as error:
            raise RenderError("the messages or the model's chat template are nested too deeply") from error
        return tuple(_split("".join(parts), opener, closer))

    def _unused(self, texts: Sequence[str]) -> tuple[str, str]:
        """Choose two characters that stand neither in the template nor in what clients wrote."""
        free = [
            mark
            for mark in _OPENERS
            if mark not in self._source_characters and not any(mark in text for text in texts)
        ]
        if len(free) < 2:
            raise RenderError("the messages use nearly all of Unicode's noncharacters U+FDD0 to U+FDEF")
        return free[0], free[1]

    def _marked(self, value: Any, opener: str, closer: str) -> Any:
        """Mark the spellings of control tokens in every text of a JSON value, names included."""
        control = self._control
        if isinstance(value, str):
            return (
                value if control is None else control.sub(lambda match: f"{opener}{match[0]}{closer}", value)
            )
        if isinstance(value, Mapping):
            return {
                self._marked(key, opener, closer): self._marked(item, opener, closer)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._marked(item, opener, closer) for item in value]
        return value


def _texts(value: object) -> Iterator[str]:
    """Go through all texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _split(text: str, opener: str, closer: str) -> list[Segment]:
    """Cut the rendered text at the marks; a mark whose partner the template cut away holds to the next mark or the end."""
    segments: list[Segment] = []
    is_special = True
    for part in re.split(f"([{opener}{closer}])", text):
        if part in {opener, closer}:
            is_special = part == closer
        elif part:
            segments.append(Segment(text=part, special=is_special))
    return segments
