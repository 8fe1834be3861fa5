"""The grid's sections of scores: thresholds of CALIGN and COLAP, and the measures beside them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Measure = Literal[
    "cka",
    "mexa",
    "anc",
    "language_probe",
    "retrieval",
    "stability",
    "expert_overlap",
    "structural_rsa",
    "structural_procrustes",
    "false_friends",
    "am2ico",
]
OF_SENTENCES: tuple[Measure, ...] = ("cka", "mexa", "anc", "language_probe")  # measured on states of sentences
MEANINGS = ("am2ico", "am2ico_last")  # of marked words, and for decoders at the last piece

LIMITS = {  # of the warnings that have one, concept_metrics.md section 7; UNKNOWN_PIECES is our own
    "LOW_COVERAGE": 0.5,  # of types; also of the eligible concepts, those that are reachable
    "CASE_MISMATCH": 0.05,  # coverage gained
    "DIRECTION_GAP": 0.2,  # between the scores
    "TINY_CONCEPTS": 0.3,  # of the concepts
    "FEW_POINTS": 20,  # per concept
    "GIANT_CONCEPT": 0.2,  # of the points
    "GIANT_CONCEPT_MEAN": 50,  # times the mean
    "ANISOTROPY": 0.9,  # mean cosine
    "ANISOTROPY_VARIANCE": 0.5,  # of it in three dimensions
    "LANGUAGE_IMBALANCE": 0.8,  # of an equal share
    "SHARED_STRINGS": 0.5,  # of the overlapping concepts
    "NULL_LIKE": 2,  # standard deviations above the null's mean
    "LOST_WORDS": 0.01,  # of the words
    "UNKNOWN_PIECES": 0.05,  # of the words
    "DUPLICATE_LINES": 0.01,  # of the lines
}

Fraction01 = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 2)]
Draws = Annotated[int, Field(ge=0, le=1_000_000)]
Drawn = Annotated[Draws, Field(ge=1)]
T = TypeVar("T")


class Part(BaseModel):
    """A section of the grid: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def listed(value: Any) -> Any:
    """A single value as a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values themselves, at least one and none twice."""
    if not values:
        raise ValueError("is empty; give at least one value")
    return distinct(values)


def all_or_unique(values: Any) -> Any:
    """`all`, or values as `unique` takes them."""
    return values if values == "all" else unique(values)


def spread(samples: int) -> int:
    """A number of bootstrap samples for an interval, which one alone does not give."""
    if samples == 1:
        raise ValueError("one sample has no spread; give two or more, or 0")
    return samples


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values themselves, none twice."""
    seen = set[Any]()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} is listed twice")
        seen.add(value)
    return values


Listed = Annotated[tuple[T, ...], BeforeValidator(listed)]
"""Values; a single one is a list of one."""
Axis = Annotated[tuple[T, ...], BeforeValidator(listed), AfterValidator(unique)]
"""At least one value and none twice."""


def names_both(field: str, path: str) -> None:
    """Raises ValueError where a file of a pair does not name both languages."""
    if not {"{source}", "{target}"} <= set(re.findall(r"\{\w+\}", path)):
        raise ValueError(f"{field} must hold {{source}} and {{target}}")


class CalignSettings(Part):
    """Thresholds of CALIGN (spec 3.1)."""

    theta: Axis[Fraction01] = Field((0.8,), description="theta_align, fraction of types.")
    translations: Axis[Positive] = Field((10,), description="Best translations per word.")
    min_types: Axis[Positive] = Field((5,), description="Least types of a source concept.")
    size_ratio: Axis[Annotated[float, Field(ge=0, le=1)]] = Field(
        (0.6,), description="Least smaller/larger type count; 0 = off."
    )
    placings: Literal["same", "all"] = Field(
        "same",
        description="Components whose concepts meet: those of the same one, or also the encoder's with the decoder's (all), where a "
        "model that is read by its decoder alone meets the encoder of another one of the grid with the same path and revision.",
    )
    denominator: Literal["all", "covered"] = Field(
        "all",
        description="Types that theta is a share of: all of a source concept, or those covered by the dictionary.",
    )
    null_draws: Draws = Field(
        20, description="Draws of each null: shuffled dictionaries, permuted labels, random clusterings; 0 = no null."
    )
    resamples: Draws = Field(
        50,
        description="Bootstrap samples of the sentences whose spread gives the interval, two or more; 0 = no interval.",
    )

    _spread = field_validator("resamples")(spread)


class ColapSettings(Part):
    """Thresholds of COLAP (spec 3.2)."""

    theta: Axis[float] = Field((0.3,), description="theta_overlap, fraction of what is counted.")
    min_types: Axis[Positive] = Field((1,), description="Least types of a concept.")
    rule: str = Field(
        "all",
        pattern=r"^(all|at_least:[0-9]{1,9})$",
        description="Languages that must reach theta: all, or at_least:m.",
    )
    count: Literal["tokens", "types"] = Field(
        "tokens",
        description="What shares are made of: points (tokens), or each distinct word of a concept once (types).",
    )
    balance: Literal["none", "reweight"] = Field(
        "none", description="Shares as counted, or (reweight) of the count over the language's count in the scope."
    )
    scopes: Literal["pairs", "all"] = Field("pairs", description="A joint scope per pair, or one of all languages.")
    null_draws: Draws = Field(20, description="Permutations of the languages drawn for the ceiling.")
    resamples: Draws = Field(
        200, description="Bootstrap samples of the sentences drawn for the interval, two or more; 0 = no interval."
    )

    _spread = field_validator("resamples")(spread)

    @field_validator("theta")
    @classmethod
    def _fraction(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if value > 1:
                raise ValueError(f"{value:g}: fraction expected, did you mean {value / 100:g}?")
            if not 0 < value <= 0.5:
                raise ValueError(
                    f"{value:g} is outside (0, 0.5]: two languages cannot both hold more than half of a concept"
                )
        return values


class SimilaritySettings(Part):
    """The neighbouring measures of each pair at each layer."""

    measures: Listed[Measure] = Field(
        (),
        description="cka, mexa, anc and language_probe (states of sentences: `states.also`), retrieval (of the lexicon's words), "
        "stability (of concepts between `concepts.seeds`), expert_overlap (states of neurons and `corpus.labels`), structural_rsa "
        "and structural_procrustes (`corpus.upos`), false_friends (`similarity.concept_table`), am2ico (`similarity.am2ico`). One "
        "whose input is not named is dropped, and its rows say why.",
    )
    concept_table: str | None = Field(
        None,
        description="For false_friends, a CSV file with a concept per row and a column of word forms per language.",
    )
    am2ico: str | None = Field(
        None,
        description="For am2ico, a tab-separated file with {source} and {target} in its name and the columns context1 (of the source, "
        "words marked as <word>Apollo</word>), context2 (of the target) and label (T or F); that of the other order serves too.",
    )
    experts: Positive = Field(50, description="Neurons taken as experts of a label (expert_overlap).")
    permutations: Drawn = Field(200, description="Permutations drawn for the null of each.")
    resamples: Drawn = Field(1000, description="Bootstrap samples drawn for the interval of each.")

    _distinct = field_validator("measures")(distinct)

    @model_validator(mode="after")
    def _of_pairs(self) -> SimilaritySettings:
        if self.am2ico is not None:
            names_both("am2ico", self.am2ico)
        return self
