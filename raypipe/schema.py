"""Every column of every artefact, once: name, Arrow type, unit and meaning.

Writers build their tables from here, so that a column exists under one name and one type; the docs page is rendered from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raypipe.columns import STATES, Column
from raypipe.schemapatching import PATCHING

_STR, _I32, _I64, _F64, _BOOL = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()

_WORD = (
    Column("sentence", _I32, "0-based line of the input file"),
    Column("token", _I32, "0-based position of the word in its sentence"),
    Column("word", _STR, "the word as written"),
)

_POINTS = (
    Column("language", _STR, "language code of the grid"),
    *_WORD,
)

_VARIANT = (
    Column(
        "variant", _STR, "short name of the fields that change states without being an axis; v-default for the defaults"
    ),
    Column("semantics", _STR, "default or official"),
    Column("layer", _I32, "absolute layer id, 0 = embeddings"),
)
_CONCEPTS = (
    Column("algorithm", _STR, "clustering algorithm"),
    Column("k", _I32, "concepts asked for in a scope"),
    Column("seed", _I64, "seed of the clustering"),
)

_CALIGN_KEY = (
    *STATES,
    Column("source_component", _STR, "component the source states come from"),
    Column("target_component", _STR, "component the target states come from"),
    *_VARIANT,
    Column("source", _STR, "source language"),
    Column("target", _STR, "target language"),
    *_CONCEPTS,
    Column(
        "theta", _F64, "least share of a source concept's types with a translation in the target concept", "fraction"
    ),
    Column("translations", _I32, "translations kept per source word", "words"),
    Column("min_types", _I32, "least types of an eligible source concept", "types"),
    Column("size_ratio", _F64, "least ratio of the smaller to the larger type count", "fraction"),
    Column("denominator", _STR, "types that theta is a share of: all of a source concept, or those covered"),
)

_COLAP_KEY = (
    *STATES,
    Column("component", _STR, "component the states come from"),
    *_VARIANT,
    Column("scope", _STR, "sorted language codes joined by +"),
    Column("languages", _I32, "languages in the scope"),
    *_CONCEPTS,
    Column("theta", _F64, "least share of a concept's points (or types, see count) in each language", "fraction"),
    Column("min_types", _I32, "least (language, type) entries of an eligible concept", "types"),
    Column("rule", _STR, "all, or at_least:m languages must reach theta"),
    Column("count", _STR, "what shares are made of: tokens (points) or types"),
    Column("balance", _STR, "none, or reweight: shares of the count over the language's count in the scope"),
)

_OVER_SENTENCES = (
    Column("sentences_lo", _F64, "lower end of the 95 % bootstrap interval over sentences", "fraction"),
    Column("sentences_hi", _F64, "its upper end", "fraction"),
)

_REASON = Column(
    "reason",
    _STR,
    "why the figures are null (no_lexicon; input_failed: the scopes whose clustering failed) or a warning stands (no_coverage); "
    "empty otherwise",
)

_NULLS = {
    "banded": "translation lists shuffled within five bands of word frequency",
    "labels": "concepts permuted among the target's points",
    "clusterings": "both clusterings replaced by random ones of the same sizes",
}
_NULL_FIGURES = (
    ("mean", "mean CALIGN", "fraction"),
    ("sd", "standard deviation of CALIGN", "fraction"),
    ("max", "largest CALIGN", "fraction"),
    ("p", "(1 + draws >= observed) / (1 + draws)", "probability"),
)

TABLES: Mapping[str, tuple[Column, ...]] = {
    "sentences": (
        Column("sentence", _I32, "0-based line of the input file"),
        Column("words", pa.list_(_STR), "the words of the line, as written"),
        Column(
            "dropped",
            _STR,
            "why the line is dropped: too_short, too_long, or not_read (outside words.lines); empty when kept",
        ),
    ),
    "occurrences": _WORD,
    "lexicon": (
        Column("source_word", _STR, "word of the source language"),
        Column("target_word", _STR, "its translation"),
        Column("rank", _I32, "rank among the word's translations, 0 = best"),
        Column("probability", _F64, "translation probability; null where the file gives none", "fraction"),
        Column("count", _I64, "links counted; null where the file gives none", "links"),
    ),
    "lost": (
        *_POINTS,
        Column(
            "why",
            _STR,
            "no_piece (the tokenizer drops the word), truncated (longer than a window), too_long (its sentence was skipped), "
            "no_context (nothing stands before it to predict it from), no_alignment (its pieces cannot be told apart) or "
            "no_source (the length filter dropped the line that the encoder was to read)",
        ),
    ),
    "points": _POINTS,
    "states_of_sentences": (_POINTS[0], _WORD[0]),
    "lost_sentences": (
        _POINTS[0],
        _WORD[0],
        Column(
            "why",
            _STR,
            "no_piece (the tokenizer leaves nothing of it), truncated (its end was cut off), too_long (it was skipped), "
            "no_context (nothing stands before its only piece) or no_source (the line that the encoder was to read was dropped)",
        ),
    ),
    "labels": (*_POINTS, Column("concept", _I32, "concept id, 0-based")),
    "centroids": (
        Column("concept", _I32, "concept id, 0-based"),
        Column("points", _I64, "points of the concept", "points"),
        Column(
            "first_row",
            _I64,
            "row of the labels whose point the concept started from (k-means++); null for other algorithms",
        ),
        Column(
            "centroid",
            pa.list_(pa.float32()),
            "mean of the concept's states as they were scaled, [d]; of the sampled ones where a sample is clustered (agglomerative: those "
            "in the tree)",
        ),
    ),
    "sample": (
        Column(
            "row",
            _I64,
            "row of the labels that k-means++ looked at, that are in Ward's tree, or that were clustered (concepts.sample); the table is "
            "absent where it is all",
        ),
    ),
    "calign": (
        *_CALIGN_KEY,
        Column("concepts", _I32, "non-empty source concepts", "concepts"),
        Column("eligible", _I32, "those with at least min_types types", "concepts"),
        Column("reachable", _I32, "eligible ones whose covered share alone reaches theta", "concepts"),
        Column("aligned", _I32, "eligible ones with a qualifying target", "concepts"),
        Column("calign", _F64, "aligned / concepts, the headline", "fraction"),
        Column("lo", _F64, "lower end of its 95 % bootstrap interval over source concepts", "fraction"),
        Column("hi", _F64, "its upper end", "fraction"),
        *_OVER_SENTENCES,
        Column(
            "sentences_mean",
            _F64,
            "mean CALIGN of the bootstrap samples of sentences, which hold fewer types than the text; the interval takes only their "
            "spread: 1.96 standard deviations on both sides of the score",
            "fraction",
        ),
        Column("calign_eligible", _F64, "aligned / eligible", "fraction"),
        Column("calign_reachable", _F64, "aligned / reachable", "fraction"),
        Column("mutual", _I32, "concept pairs that qualify in both directions", "pairs"),
        Column("coverage", _F64, "covered source types / source types", "fraction"),
        Column("occurrence_coverage", _F64, "the same weighted by points", "fraction"),
        Column("coverage_folded", _F64, "coverage, were both sides in NFC and lower case", "fraction"),
        Column(
            "dropped_multiword", _I64, "dictionary entries dropped because a side has more than one word", "entries"
        ),
        Column(
            "dropped_duplicates", _I64, "dictionary entries dropped because a better one has the same words", "entries"
        ),
        Column("null_calign", _F64, "mean CALIGN with the dictionary's translation lists shuffled", "fraction"),
        Column("null_sd", _F64, "standard deviation of the null draws", "fraction"),
        Column("null_max", _F64, "largest null draw", "fraction"),
        Column("null_p", _F64, "(1 + draws >= observed) / (1 + draws)", "probability"),
        *(
            Column(f"{null}_{name}", _F64, f"{meaning}, {what}", unit)
            for null, what in _NULLS.items()
            for name, meaning, unit in _NULL_FIGURES
        ),
        Column("target_types", _F64, "mean types of a target concept", "types"),
        Column("labels_types", _F64, "the same in the draws with permuted labels", "types"),
        _REASON,
    ),
    "aligned": (
        *_CALIGN_KEY,
        Column("source_concept", _I32, "aligned source concept"),
        Column("target_concept", _I32, "a target concept that qualifies"),
        Column("matched", _I32, "source types with a translation in the target concept", "types"),
        Column("types_source", _I32, "types of the source concept", "types"),
        Column("types_target", _I32, "types of the target concept", "types"),
        Column("fraction", _F64, "matched / types_source", "fraction"),
        Column("size_ratio_found", _F64, "smaller / larger type count", "fraction"),
        Column("word_pairs", pa.list_(pa.struct([("source", _STR), ("target", _STR)])), "the matching words, sorted"),
    ),
    "colap": (
        *_COLAP_KEY,
        Column("concepts", _I32, "non-empty concepts", "concepts"),
        Column("eligible", _I32, "those with at least min_types types", "concepts"),
        Column("overlapping", _I32, "eligible ones in which the languages overlap", "concepts"),
        Column(
            "overlapping_excl_shared",
            _I32,
            "still overlapping without strings that occur in several languages",
            "concepts",
        ),
        Column("colap", _F64, "overlapping / concepts, the headline", "fraction"),
        Column("lo", _F64, "lower end of its 95 % bootstrap interval over concepts", "fraction"),
        Column("hi", _F64, "its upper end", "fraction"),
        *_OVER_SENTENCES,
        Column("colap_eligible", _F64, "overlapping / eligible", "fraction"),
        *(
            Column(f"{name}_{n}", _I32, f"{name} concepts were min_types {n}", "concepts")
            for n in (3, 5)  # always reported beside those asked for
            for name in ("eligible", "overlapping")
        ),
        Column("points", pa.list_(_I64), "points of each language of the scope, in its order", "points"),
        Column(
            "permuted_colap", _F64, "mean COLAP with the points' languages permuted: a ceiling, not a null", "fraction"
        ),
        Column("permuted_sd", _F64, "standard deviation of those draws", "fraction"),
        _REASON,
    ),
    "overlap": (
        *_COLAP_KEY[:-5],
        Column("concept", _I32, "concept id, 0-based"),
        Column("language", _STR, "language code"),
        Column("points", _I32, "points of the language in the concept", "points"),
        Column("types", _I32, "types of the language in the concept", "types"),
        Column("share", _F64, "points of the language / points of the concept", "fraction"),
    ),
    "robustness": (
        *STATES,
        Column("component", _STR, "component the states come from; of CALIGN both, where they differ"),
        _VARIANT[0],
        *_CONCEPTS[:2],
        Column("metric", _STR, "calign or colap"),
        Column("setting", _STR, "the threshold that varies; the others are at their default"),
        Column("value", _F64, "its value"),
        Column("default", _BOOL, "whether this is its default, or the grid's first value where the grid lacks that"),
        Column("score", _F64, "mean over layers and pairs, seeds averaged", "fraction"),
        Column(
            "tau",
            _F64,
            "Kendall's tau-b between the order of (layer, pair) here and at the default; null where all are equal",
        ),
        Column("cells", _I32, "layers x pairs that are ordered"),
        Column("left_out", _I32, "layers x pairs without a score at some value"),
        Column("same_from", _F64, "first value of the unbroken range around the default in which tau is 1"),
        Column("same_to", _F64, "its last value"),
        Column("near_from", _F64, "first value of the range in which tau is at least 0.9"),
        Column("near_to", _F64, "its last value"),
        Column("plateau_from", _F64, "first value of the range in which the score stays within 0.05 of the default's"),
        Column("plateau_to", _F64, "its last value"),
    ),
    "conclusions": (
        Column("metric", _STR, "calign or colap"),
        Column(
            "kind",
            _STR,
            "what is ordered: layer (means over pairs), pair (means over layers) or checkpoint (means over both)",
        ),
        Column("model", _STR, "the grid's short name of the model; null for checkpoints"),
        Column("revision", _STR, "its revision; null for checkpoints"),
        Column("component", _STR, "its component, of CALIGN both where they differ; null for checkpoints"),
        Column("higher", _STR, "what scores higher at the default setting, seeds averaged"),
        Column("lower", _STR, "than what"),
        Column("difference", _F64, "by how much", "fraction"),
        Column("seed_sd", _F64, "standard deviation of that difference over seeds; null with one seed", "fraction"),
        Column("settings", _I32, "settings (algorithm, k, seed, thresholds) of the grid in which both have a score"),
        Column("share", _F64, "share of these in which the statement holds", "fraction"),
        *(
            Column(f"share_{axis}", _F64, f"the same where only {what} from the default", "fraction")
            for axis, what in (("seed", "the seed differs"), ("k", "k differs"), ("algorithm", "the algorithm differs"))
        ),
        Column("share_thresholds", _F64, "the same where only thresholds differ from the default", "fraction"),
    ),
    "warnings": (
        Column("code", _STR, "name of the failure signature"),
        Column("where", _STR, "the worst case, and how many more there are"),
        Column("value", _STR, "what was measured there"),
        Column("limit", _STR, "what it is held against"),
        Column("advice", _STR, "what it means and what to try"),
    ),
    "agreement": (
        *STATES,
        Column("component", _STR, "component the states come from"),
        _VARIANT[0],
        _VARIANT[2],
        Column("scope", _STR, "the clustering's scope, as in its folder"),
        *_CONCEPTS,
        Column("axis", _STR, "what differs from the clustering it is compared with: seed, k or algorithm"),
        Column("reference", _STR, "that one's value, the grid's first"),
        Column("ari", _F64, "adjusted Rand index of the two; 0 by chance, 1 when equal"),
        Column("ami", _F64, "adjusted mutual information of the two; 0 by chance, 1 when equal"),
        Column("jaccard", _F64, "mean over the reference's concepts of the best Jaccard with a concept of this one"),
        Column("largest", _F64, "share of the points in this one's largest concept", "fraction"),
        Column("empty", _I32, "concepts without points", "concepts"),
        Column("reason", _STR, "input_failed: the clusterings that failed; empty otherwise"),
    ),
    "similarity": (
        *STATES,
        Column("component", _STR, "component the states come from"),
        _VARIANT[0],
        _VARIANT[2],
        Column("source", _STR, "source language; for measures without a direction the first of the pair"),
        Column("target", _STR, "target language; for measures without a direction the second of the pair"),
        Column(
            "measure",
            _STR,
            "retrieval, retrieval_centred or stability (of the source's concepts), for each direction; the others (joint_stability "
            "among them) once per pair",
        ),
        Column("k", _I32, "concepts asked for in a scope; null but for stability and joint_stability"),
        Column("value", _F64, "the measure"),
        Column("lo", _F64, "lower end of the 95 % bootstrap interval over items; null where a resample is undefined"),
        Column("hi", _F64, "its upper end"),
        Column("chance", _F64, "what the formula expects without any relation; null where no formula gives it"),
        Column("excess", _F64, "(value - chance) / (1 - chance): 0 at chance, 1 at a value of 1"),
        Column("null_mean", _F64, "mean of the permutation draws"),
        Column("null_sd", _F64, "their standard deviation"),
        Column("null_max", _F64, "the largest"),
        Column("null_p", _F64, "(1 + draws >= observed) / (1 + draws)", "probability"),
        Column("items", _I32, "what was resampled: sentences, dictionary entries, concepts, labels, words or examples"),
        Column(
            "left_out", _I32, "constant columns of the states (anc); labels or word classes that one language alone has"
        ),
        Column(
            "unpaired",
            _I32,
            "sentences with a state in one language alone; dictionary entries or examples with a word without a state; null "
            "where nothing is paired",
        ),
        Column(
            "reason",
            _STR,
            "why the figures are null: no_lexicon, no_labels, no_upos, no_am2ico; needs: what the grid does not name or sets "
            "otherwise; input_failed: the states or clusterings that failed; undefined (no variance); or what the measure found too "
            "little of; empty otherwise",
        ),
    ),
    **PATCHING,
}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of `TABLES`."""
    return pa.schema([pa.field(c.name, c.type) for c in TABLES[table]])


def make_table(table: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows (one mapping per row, every column present) as a table with the columns of `TABLES[table]`."""
    schema = arrow_schema(table)
    return pa.table({f.name: pa.array([row[f.name] for row in rows], f.type) for f in schema}, schema=schema)


def page() -> str:
    """The reference page of all tables, in Markdown."""
    lines = ["# Tables", "", "Generated from `raypipe/schema.py`; `make docs` writes it."]
    for name, columns in TABLES.items():
        lines += ["", f"## {name}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| {c.name} | {c.type} | {c.unit} | {c.meaning} |" for c in columns]
    return "\n".join(lines) + "\n"
