"""Thresholds as exact decimals: 0.8 means 8/10, never the nearest binary float."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.errors import GridError

THETA_ALIGN = 0.8
TRANSLATIONS = 10
MIN_TYPES_ALIGN = 5
SIZE_RATIO = 0.6
THETA_OVERLAP = 0.3
MIN_TYPES_OVERLAP = 1
MIN_TYPES_BESIDE = (3, 5)  # COLAP's counts at these are always reported beside those asked for

Decimal = float | int | str | Fraction
"""How a threshold is written: a number, its text ("0.8", "4/5") or a fraction."""


def exact(name: str, value: Decimal) -> Fraction:
    """The fraction that a threshold's shortest decimal text stands for (0.1 is 1/10); GridError, with its name, where it is no number."""
    try:
        return _fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise GridError(f"{name} {value!r}: not a number; expected a decimal such as 0.8") from None


@lru_cache(1024)
def _fraction(text: str) -> Fraction:
    _, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > 999:
        raise ValueError(text)  # exact, it would be a number of that many digits
    return Fraction(text)


def least(share: Fraction, totals: NDArray[Any]) -> NDArray[Any]:
    """The smallest count that is at least `share` of each total, ceil(share x total), without rounding error.

    `totals` are integer counts of any shape, Python integers of any size in object arrays; the counts have their shape and dtype.
    """
    # Python integers where the numerator of a threshold such as 0.30000000000000004 times a count leaves int64.
    fits = totals.dtype != object and share.numerator * int(totals.max(initial=0)) < 2**62 > share.denominator
    wide = totals.astype(np.int64 if fits else object)
    return np.asarray(-((-share.numerator * wide) // share.denominator)).astype(totals.dtype)


@dataclass(frozen=True)
class AlignThresholds:
    """When a source concept is aligned.

    Attributes:
        theta: Least share of its types with a translation in the target concept, in (0, 1]; also 0 in the official mode.
        translations: Translations kept per word.
        min_types: Least types of a source concept.
        size_ratio: Least ratio of the smaller to the larger type count; 0 = no limit.
        official: Compare as the released code: float64, strictly above each threshold, one-sided ratio source / target.
        denominator: `all` types of the source concept, or those `covered` by the dictionary.

    Raises:
        GridError: A value is outside its range.
    """

    theta: Decimal = THETA_ALIGN
    translations: int = TRANSLATIONS
    min_types: int = MIN_TYPES_ALIGN
    size_ratio: Decimal = SIZE_RATIO
    official: bool = False
    denominator: str = "all"

    def __post_init__(self) -> None:
        theta = exact("theta", self.theta)
        if not 0 <= theta <= 1 or (theta == 0 and not self.official):
            raise GridError(f"theta {self.theta}: expected a fraction above 0 and at most 1")
        if self.translations < (0 if self.official else 1):
            raise GridError(f"translations {self.translations}: must be at least {0 if self.official else 1}")
        if self.min_types < (0 if self.official else 1):
            raise GridError(f"min_types {self.min_types}: must be at least {0 if self.official else 1}")
        ratio = exact("size_ratio", self.size_ratio)
        if ratio < 0 or (ratio > 1 and not self.official):
            raise GridError(f"size_ratio {self.size_ratio}: expected 0 to 1")
        if self.denominator not in ("all", "covered"):
            raise GridError(f"denominator {self.denominator!r}: expected all or covered")
        if self.official and self.denominator != "all":
            raise GridError("denominator 'covered': not in the official mode; use all")


@dataclass(frozen=True)
class OverlapThresholds:
    """When the languages of a concept overlap.

    Attributes:
        theta: Least share of the concept's points in each language, a fraction; a percentage in the official mode.
        min_types: Least (language, type) entries of a concept.
        rule: `all` languages must reach theta, or `at_least:M` of them.
        official: Compare as the released code: float64 percentages, strictly above theta, exactly two languages.
        count: What shares are made of: `tokens` (points), or `types`, each (language, type) entry of a concept once.

    Raises:
        GridError: A value is outside its range.
    """

    theta: Decimal = THETA_OVERLAP
    min_types: int = MIN_TYPES_OVERLAP
    rule: str = "all"
    official: bool = False
    count: str = "tokens"

    def __post_init__(self) -> None:
        theta = exact("theta", self.theta)
        if self.count not in ("tokens", "types"):
            raise GridError(f"count {self.count!r}: expected tokens or types")
        if self.official:
            if not 0 <= theta <= 100:
                raise GridError(f"theta {self.theta}: expected a percentage from 0 to 100")
            if self.count != "tokens":
                raise GridError(f"count {self.count}: not in the official mode; use tokens")
            if self.min_types != 1 or self.rule != "all":
                raise GridError(
                    f"min_types {self.min_types}, rule {self.rule}: the official mode has neither; use 1, all"
                )
            return
        if 1 < theta <= 100:
            raise GridError(f"theta {self.theta}: fraction expected, did you mean {float(theta / 100):g}?")
        if not 0 < theta <= 1:
            raise GridError(f"theta {self.theta}: expected a fraction above 0 and at most 1")
        if self.min_types < 1:
            raise GridError(f"min_types {self.min_types}: must be at least 1")
        if self.rule != "all" and not re.fullmatch("at_least:[0-9]{1,9}", self.rule):
            raise GridError(f"rule {self.rule!r}: expected all or at_least:M, such as at_least:2")

    def required(self, languages: int) -> int:
        """How many of a scope's languages must reach theta; GridError where the rule does not fit them, or no concept can meet it."""
        if self.official:
            if languages != 2:
                raise GridError(f"{languages} languages: the official mode takes exactly 2")
            return 2
        if languages < 2:
            raise GridError(f"joint scope: {languages} languages; expected 2 or more")
        required = languages if self.rule == "all" else int(self.rule.removeprefix("at_least:"))
        if not 2 <= required <= languages:
            raise GridError(f"rule {self.rule}: expected at_least:2 to at_least:{languages}, the scope's languages")
        if required * exact("theta", self.theta) > 1:
            raise GridError(
                f"theta {self.theta}: {required} languages cannot each hold that share; lower theta or use at_least:2"
            )
        return required
