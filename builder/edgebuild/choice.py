"""Choosing what an image holds: type of the weights, type of the key/value cache and length of the context. Pure.

1. Every combination that the profile allows becomes a candidate, with what it takes on the device and what it costs in
   quality: the losses of weights and cache (quantization.py) and that of a shorter context, added.
2. Candidates are ordered by loss; of two that lose the same, the one that needs less memory comes first.
3. The first that was asked for and fits is taken.

Adding the losses is what decides between a smaller cache, a shorter context and smaller weights: a cache of q8_0 costs
less than the step from Q8_0 to Q6_K and is taken first; then come weights down to Q4_K_S, half the context (where
the profile allows it), a cache of q4_0, and weights of 3 and 2 bit.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edgebuild.errors import PlanError
from edgebuild.fit import Fit, make_fit, planned_context
from edgebuild.model_spec import ModelSpec, estimate_quantized
from edgebuild.profile import DeviceProfile
from edgebuild.quantization import (
    AUTO,
    AUTO_QUANTIZATIONS,
    CONTEXT_LOSS,
    KV_LOSS,
    needs_matrix,
    quality_loss,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was decided for an image.

    Attributes:
        quantization: llama.cpp's name of the weights' type.
        kv_type: Element type of the key/value cache.
        context_tokens: Longest sequence of one slot.
    """

    quantization: str
    kv_type: str
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The model in one type.

    Attributes:
        spec: What it is like, or will be.
        is_estimate: Whether its size was computed, since it has not been made yet.
    """

    spec: ModelSpec
    is_estimate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to put the model on the device.

    Attributes:
        choice: The way.
        fit: What it takes.
        loss: What it costs in quality; 0 is the model as it was given, with all of the context.
        weights_loss: What of that the type of the weights costs.
        is_asked_for: Whether profile and options allow it; others are only shown.
    """

    choice: Choice
    fit: Fit
    loss: float
    weights_loss: float
    is_asked_for: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """All candidates for one device and what was chosen among them.

    Attributes:
        profile: Name of the profile.
        candidates: By loss, the best first.
        chosen: The one taken, or None where none fits.
        is_auto: Whether there was a choice between types.
    """

    profile: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    is_auto: bool

    def better_weights(self, quantization: str) -> tuple[Candidate, ...]:
        """List what fits and has weights that lose less than those of a type, the least loss first."""
        limit = min(one.weights_loss for one in self.candidates if one.choice.quantization == quantization)
        return tuple(one for one in self.candidates if one.weights_loss < limit and not one.fit.refusal)

    @property
    def shown(self) -> Candidate:
        """The candidate whose arithmetic is worth showing: the chosen one, else the one that comes nearest."""
        asked = [candidate for candidate in self.candidates if candidate.is_asked_for]
        return self.chosen or min(asked, key=lambda candidate: candidate.fit.excess_bytes)

    @property
    def refusal(self) -> str:
        """Why nothing fits, on one line; empty where something does."""
        if self.chosen is not None:
            return ""
        fit = self.shown.fit
        tried = sum(candidate.is_asked_for for candidate in self.candidates)
        if tried == 1:
            return fit.refusal
        return (
            f"none of {tried} candidates fits; the nearest, {name_choice(self.shown.choice)}, {fit.refusal}"
        )


def name_choice(choice: Choice) -> str:
    """Write a choice for people: "Q4_K_M with a cache of q8_0 for 2048 tokens"."""
    return f"{choice.quantization} with a cache of {choice.kv_type} for {choice.context_tokens} tokens"


def wanted_quantizations(
    model: ModelSpec, profile: DeviceProfile, *, override: str | None, has_matrix: bool = False
) -> tuple[str, ...]:
    """List the types of weights that an image may hold.

    A 16-bit model is quantised to the profile's type, or to the one the user asks for; one that is quantised already is
    taken as it is, since quantising twice only loses.

    Args:
        model: The model as it was given.
        profile: The device.
        override: Type asked for, "auto", or None.
        has_matrix: Whether there is an importance matrix.

    Raises:
        PlanError: The type cannot be had from this model, or only with an importance matrix.
    """
    wanted = override or profile.quantization
    if not model.is_unquantized:
        if override not in {None, AUTO, model.quantization}:
            raise PlanError(
                f"{model.file_name} is {model.quantization} already and cannot be made {override}",
                hint="leave --quantization out, or give the 16-bit GGUF of this model",
            )
        return (model.quantization,)
    if wanted == AUTO:
        return _auto_quantizations(model, profile, has_matrix=has_matrix)
    if needs_matrix(wanted) and not has_matrix:
        raise PlanError(
            f"{model.name} cannot be made {wanted} without an importance matrix",
            hint="add --imatrix auto or FILE, or take a type that needs none, e.g. Q3_K_M",
        )
    return (wanted,)


def _auto_quantizations(model: ModelSpec, profile: DeviceProfile, *, has_matrix: bool) -> tuple[str, ...]:
    named = profile.auto.quantizations or AUTO_QUANTIZATIONS
    if not profile.auto.quantizations and model.quantization != "F32":
        # A model in 16 bit is taken as it is, of whichever of the two kinds.
        named = tuple(model.quantization if name == "F16" else name for name in named)
    possible = tuple(name for name in dict.fromkeys(named) if has_matrix or not needs_matrix(name))
    if not possible:
        raise PlanError(
            f"{profile.name}: all of auto.quantizations ({', '.join(named)}) need an importance matrix",
            hint="add a type that needs none, e.g. Q4_K_M",
        )
    return possible


def wanted_types(profiles: Iterable[DeviceProfile], *, override: str | None) -> tuple[str, ...]:
    """List the types of weights that devices want, each once: what decides between several files of one model."""
    return tuple(dict.fromkeys(override or profile.quantization for profile in profiles))


def make_versions(
    model: ModelSpec, profiles: Iterable[DeviceProfile], *, override: str | None, has_matrix: bool = False
) -> Mapping[str, Version]:
    """Describe the model in every type that a device may get or that is worth showing beside it.

    Raises:
        PlanError: A type that is asked for cannot be had from this model.
    """
    names = {model.quantization: None}
    for profile in profiles:
        names |= dict.fromkeys(wanted_quantizations(model, profile, override=override, has_matrix=has_matrix))
    if model.is_unquantized:
        names |= dict.fromkeys(AUTO_QUANTIZATIONS)
    return {
        name: Version(
            spec=estimate_quantized(model, name, has_matrix=has_matrix),
            is_estimate=name != model.quantization,
        )
        for name in names
    }


def make_selection(
    model: ModelSpec,
    profile: DeviceProfile,
    *,
    versions: Mapping[str, Version],
    override: str | None,
    has_matrix: bool = False,
) -> Selection:
    """Decide what the image for a device holds.

    Args:
        model: The model as it was given.
        profile: The device.
        versions: The model by type: computed, or as it came out of quantising.
        override: Type asked for, "auto", or None for the profile's own.
        has_matrix: Whether there is an importance matrix.

    Raises:
        PlanError: The type that is asked for cannot be had from this model.
    """
    wanted = wanted_quantizations(model, profile, override=override, has_matrix=has_matrix)
    shown = (*wanted, *(name for name in versions if name not in wanted and name in AUTO_QUANTIZATIONS))
    # Step 1.
    candidates = [
        _candidate(
            versions[name],
            profile,
            choice,
            loss=0.0 if name == model.quantization else quality_loss(name, has_matrix=has_matrix),
            is_asked_for=name in wanted,
        )
        for name in shown
        for choice in _choices(versions[name].spec, profile)
    ]
    # Step 2.
    candidates.sort(key=lambda candidate: (candidate.loss, candidate.fit.need_bytes))
    # Step 3.
    chosen = next((one for one in candidates if one.is_asked_for and not one.fit.refusal), None)
    return Selection(
        profile=profile.name,
        candidates=tuple(candidates),
        chosen=chosen,
        is_auto=sum(candidate.is_asked_for for candidate in candidates) > 1,
    )


def verify_selection(selection: Selection, *, model_name: str) -> Choice:
    """Return what was chosen.

    Raises:
        PlanError: Nothing fits.
    """
    if selection.chosen is not None:
        return selection.chosen.choice
    about = " (computed before quantising)" if selection.shown.fit.is_estimate else ""
    what = f"{model_name} as {selection.shown.choice.quantization}" if not selection.is_auto else model_name
    raise PlanError(
        f"{what} does not fit {selection.profile}{about}: {selection.refusal}",
        hint="take a smaller model, a smaller --quantization or --quantization auto, or a profile with less context, fewer slots, a smaller tuning.kv_type or more memory",
    )


def _choices(model: ModelSpec, profile: DeviceProfile) -> Iterator[Choice]:
    for context in _contexts(model, profile):
        # An encoder has no cache to choose a type for.
        kv_types = () if model.is_encoder else profile.auto.kv_types
        for kv_type in dict.fromkeys(kv_types or (profile.tuning.kv_type,)):
            yield Choice(quantization=model.quantization, kv_type=kv_type, context_tokens=context)


def _contexts(model: ModelSpec, profile: DeviceProfile) -> tuple[int, ...]:
    """Halve the context from what is wished down to the least that is allowed."""
    wished = planned_context(model, profile)
    least = min(profile.auto.context.least or wished, wished)
    found = [wished]
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return (*found, least) if found[-1] > least else tuple(found)


def _candidate(
    version: Version, profile: DeviceProfile, choice: Choice, *, loss: float, is_asked_for: bool
) -> Candidate:
    """Size one way to put the model on the device; `loss` is that of the weights."""
    halvings = math.log2(planned_context(version.spec, profile) / choice.context_tokens)
    fit = make_fit(
        version.spec,
        profile,
        is_estimate=version.is_estimate,
        kv_type=choice.kv_type,
        context_tokens=choice.context_tokens,
    )
    return Candidate(
        choice=choice,
        fit=fit,
        loss=loss + KV_LOSS[choice.kv_type] + CONTEXT_LOSS * halvings,
        weights_loss=loss,
        is_asked_for=is_asked_for,
    )


def describe_verdict(candidate: Candidate, *, chosen: Candidate | None) -> str:
    """Say on one line what became of a candidate."""
    if candidate is chosen:
        return "taken"
    if candidate.fit.refusal:
        return f"refused: {candidate.fit.refusal}"
    if not candidate.is_asked_for:
        return "fits; not asked for"
    return "fits; of less quality"
