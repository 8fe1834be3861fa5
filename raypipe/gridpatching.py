"""The grid's section of concept patching."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from raypipe.gridscores import Axis, Drawn, Natural, Part, Positive, all_or_unique

Setting = Literal["seen", "seen_fixed_k", "seen_disjoint", "tgt", "tgt_tgt", "en_en", "self", "src_matched"]
ENGLISH = "en"
MATCHED, DISJOINT = "src_matched", "seen_disjoint"


class PatchingSettings(Part):
    """Concept patching of every checkpoint of every decoder; off without a table."""

    table: str | None = Field(
        None,
        description="Concept table: CSV with the column concept and one of word forms per language. With it, a grid may leave out corpus "
        "and lexicon.",
    )
    targets: Literal["all"] | tuple[str, ...] = Field(
        "all",
        description="Prompts that are patched: all ordered pairs of languages, or a list such as [fr-es] (from French to Spanish).",
    )
    frequencies: str | None = Field(
        None,
        description="Words of a language with their counts, `word count` per line, {lang} in the file's name: strata are then also by the "
        "tercile of the word of s in I; targets from a language without a file have none.",
    )
    names: dict[str, Annotated[str, Field(pattern=r'^[^"\n]+$')]] = Field(
        {}, description="How languages call themselves in prompts, where the built-in name is missing or another."
    )
    settings: Axis[Setting] = Field(
        ("seen", "tgt", "tgt_tgt", "en_en", "self"),
        description="Where the states put in come from; also seen_fixed_k (seen from as many source prompts for every target), "
        "seen_disjoint (seen without the source prompts in whose languages s may start like in O) "
        "and src_matched (nothing is put in: s is asked for behind the shots of the patched prompt).",
    )
    pairs: Positive = Field(256, description="Concept pairs (source, target).")
    shots: Positive = Field(5, description="Translations shown before the queried word.")
    seed: Natural = Field(42, description="Seed of pairs, shots, third concepts and bootstrap.")
    generate: Annotated[int, Field(ge=1, le=1024)] = Field(10, description="Most new tokens of an answer.")
    resamples: Drawn = Field(2000, description="Bootstrap samples of concept pairs.")
    path: Literal["auto", "fast", "hook"] = Field(
        "auto",
        description="How patched runs are made: the exchanged cache where it is proven equal to hooks, or one of the two.",
    )
    window: Positive | None = Field(
        None, description="Blocks whose outputs are replaced, from the start layer on; null takes all that follow."
    )

    _some_target = field_validator("targets")(all_or_unique)

    def directions(self, languages: Sequence[str]) -> list[tuple[str, str]]:
        """The (input, output) languages of the patched prompts, in the order of `languages`."""
        every = {f"{a}-{b}": (a, b) for a, b in permutations(languages, 2)}
        for target in () if self.targets == "all" else self.targets:
            if target not in every:
                raise ValueError(
                    f"patching.targets: {target} is not made of two of the languages {', '.join(languages)}"
                )
        return [pair for name, pair in every.items() if self.targets == "all" or name in self.targets]


def source_pairs(setting: str, target: tuple[str, str], trained: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """The (input, output) languages of the prompts whose states are averaged for a setting (concept_patching.md 2.7).

    `target` is (I, O) of the patched prompt. `seen_fixed_k` takes the pairs that the target leaves in an order drawn by the seed, and of
    them as many as the target that leaves fewest has: one of two trained languages other than English.

    Returns:
        Nothing where the setting does not exist: `seen` with less than two languages left, `self` into English, `en_en` without
        English; nor for `tgt_tgt`, which puts in the patched prompt's own states.
    """
    others = [language for language in trained if language != ENGLISH]
    left = [pair for pair in permutations(others, 2) if not set(pair) & set(target)]
    if setting in ("seen", DISJOINT):
        return left
    if setting == "seen_fixed_k":
        every = list(permutations(others, 2))
        order = [every[i] for i in np.random.Generator(np.random.PCG64(seed)).permutation(len(every))]
        return sorted(left, key=order.index)[: len(list(permutations(others[2:], 2)))]
    if setting == "en_en":
        return [(ENGLISH, ENGLISH)] if ENGLISH in trained else []
    if setting == "self":
        return [(target[1], target[1])] if target[1] != ENGLISH else []
    return [target] if setting == "tgt" else []
