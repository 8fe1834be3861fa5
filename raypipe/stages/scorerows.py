"""Rows of the score tables, made from one score each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raypipe.schema import TABLES
from raypipe.science.calign import Calign, Cooccurrence
from raypipe.science.calign_concepts import source_concepts
from raypipe.science.calign_draws import NULLS, null, resampled
from raypipe.science.colap import Overlap
from raypipe.science.intervals import NullSummary, percentiles, share_interval, spread_interval, summarise
from raypipe.science.thresholds import AlignThresholds, OverlapThresholds

Row = dict[str, Any]


def align_key(t: AlignThresholds) -> Row:
    """The columns that name a setting of CALIGN."""
    return {
        "theta": float(t.theta),
        "translations": t.translations,
        "min_types": t.min_types,
        "size_ratio": float(t.size_ratio),
        "denominator": t.denominator,
    }


def overlap_key(t: OverlapThresholds) -> Row:
    """The columns that name a setting of COLAP."""
    return {"theta": float(t.theta), "min_types": t.min_types, "rule": t.rule, "count": t.count}


def calign_row(score: Calign) -> Row:
    """The figures of a CALIGN score."""
    row = score.to_json() | {"occurrence_coverage": score.occurrence_coverage}
    del row["pairs"]
    return (
        row
        | {"reason": "" if score.coverage else "no_coverage"}
        | _ends("", share_interval(score.aligned, score.concepts))
    )


def source_rows(prepared: Cooccurrence, scores: Sequence[Calign], settings: Sequence[AlignThresholds]) -> Iterator[Row]:
    """Every source concept with its best target, which rests on the number of translations and on no other threshold."""
    for depth, (score, t) in {t.translations: (s, t) for s, t in zip(scores, settings, strict=True)}.items():
        for c in source_concepts(prepared, score, t):
            row = {name: getattr(c, name) for name in ("types", "covered_types", "best_target", "fraction")}
            yield row | {"translations": depth, "source_concept": c.concept, "size_ratio_found": c.size_ratio}


def _ends(name: str, interval: tuple[float | None, float | None]) -> Row:
    return {f"{name}lo": interval[0], f"{name}hi": interval[1]}


def nulls(
    prepared: Cooccurrence, scores: Sequence[Calign], settings: Sequence[AlignThresholds], draws: int, seed: int
) -> list[Row]:
    """The columns of every null, for each setting; all None without draws."""
    rows = [Row() for _ in scores]
    for kind in NULLS:
        found, types = null(prepared, draws, seed, settings, kind) if draws else (None, None)
        for i, score in enumerate(scores):
            rows[i] |= _null(kind, score.calign, None if found is None else found[:, i])
            if kind == "labels":
                of_draws = None if types is None else float(types.mean())
                rows[i] |= {"target_types": float(prepared.types_target.mean()), "labels_types": of_draws}
    return rows


def intervals(
    prepared: Cooccurrence,
    scores: Sequence[Calign],
    settings: Sequence[AlignThresholds],
    sentences: tuple[Any, Any],
    resamples: int,
    seed: int,
) -> list[Row]:
    """The columns of the interval over sentences, for each setting; all None without resamples or source concepts."""
    if not resamples or not scores[0].concepts:
        return [dict.fromkeys(("sentences_lo", "sentences_hi", "sentences_mean")) for _ in scores]
    again = resampled(prepared, sentences, resamples, seed, settings)
    return [
        _ends("sentences_", spread_interval(score.calign or 0.0, draws)) | {"sentences_mean": float(draws.mean())}
        for draws, score in zip(again.T, scores, strict=True)
    ]


def folded_coverage(words: Iterable[str], covered: Iterable[str]) -> float:
    """Coverage of the distinct words by a dictionary's source words, were both in NFC and lower case."""
    types, known = ({unicodedata.normalize("NFC", word).lower() for word in side} for side in (words, covered))
    return len(types & known) / len(types)


def _null(kind: str, observed: float | None, draws: Any) -> Row:
    """The columns of one null; those of the shuffled dictionary came first and are named `null`."""
    null = summarise(observed, draws) if draws is not None and observed is not None else None
    mean, rest = ("null_calign", "null") if kind == "dictionary" else (f"{kind}_mean", kind)
    return {(mean if f == "mean" else f"{rest}_{f}"): getattr(null, f, None) for f in NullSummary._fields}


def colap_row(overlap: Overlap, thresholds: OverlapThresholds, draws: Any, again: Any) -> Row:
    """The figures of a COLAP score; `draws` of its ceiling and `again` of its sentences are float64 [draws], or None."""
    score = overlap.evaluate(thresholds)
    names = ("concepts", "eligible", "overlapping", "overlapping_excl_shared", "colap", "colap_eligible")
    row: Row = {name: getattr(score, name) for name in names}
    for n, (eligible, overlapping) in score.beside.items():
        row |= {f"eligible_{n}": eligible, f"overlapping_{n}": overlapping}
    ceiling = None if draws is None else summarise(score.colap or 0.0, draws)
    row |= {"permuted_colap": ceiling.mean if ceiling else None, "permuted_sd": ceiling.sd if ceiling else None}
    row |= _ends("", share_interval(score.overlapping, score.concepts))
    row |= _ends("sentences_", (None, None) if again is None else percentiles(again))
    return row | {"points": overlap.counts.tokens.sum(axis=0).tolist(), "reason": ""}


def unscored(table: str, row: Row, reason: str) -> Row:
    """The row of a score that could not be computed."""
    empty: Row = dict.fromkeys(column.name for column in TABLES[table])
    return empty | row | {"reason": reason}
