"""The columns of concept patching's tables (concept_patching.md section 7)."""

from __future__ import annotations

import pyarrow as pa

from raypipe.columns import STATES, Column

_STR, _I32, _I64, _F64, _BOOL = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()

_PAIR = Column("pair", _I32, "0-based concept pair")
_PROBABILITIES = pa.list_(pa.float32())
_PATCHED = (
    *STATES,
    Column("commit", _STR, "Hub commit; empty for a local checkpoint"),
    Column("step", _I64, "training step, from the revision's name; null where it has none", "steps"),
    Column("tokens_seen", _F64, "training tokens, from the revision's name; null where it has none", "tokens"),
    Column(
        "target_in",
        _STR,
        "input language I of the patched prompts; null for the mean over the targets that have the setting, once all are finished",
    ),
    Column("target_out", _STR, "output language O of the patched prompts; null for that mean"),
    Column(
        "setting",
        _STR,
        "src_unpatched, tgt_unpatched, src_matched (s behind the shots of t), third (the null), or where the states put in come from",
    ),
    Column(
        "layer",
        _I32,
        "start layer j: the outputs of blocks j, j + 1, ... (of `patching.window` blocks) are replaced; -1 = unpatched",
        "layer",
    ),
)
_MEAN = (
    Column("mean", _F64, "mean over concept pairs; for nps the ratio of two"),
    Column(
        "lo",
        _F64,
        "lower end of its 95 % bootstrap interval over concept pairs; it covers no variance over training seeds",
    ),
    Column("hi", _F64, "upper end"),
    Column("n_pairs", _I32, "concept pairs", "pairs"),
)


def _interval(name: str, meaning: str, unit: str) -> tuple[Column, ...]:
    ends = (
        Column(f"{name}_{end}", _F64, f"{which} end of its 95 % bootstrap interval", unit)
        for end, which in (("lo", "lower"), ("hi", "upper"))
    )
    return (Column(name, _F64, meaning, unit), *ends)


PATCHING: dict[str, tuple[Column, ...]] = {
    "patching_pairs": (
        _PAIR,
        Column("source_concept", _STR, "concept s, whose states are put in"),
        Column("target_concept", _STR, "concept t, which stands in the prompt"),
        Column("third_concept", _STR, "concept u of the null"),
        Column("third_pair", _I32, "pair whose source concept u is; its states are put in for the null"),
        Column("target_shots", pa.list_(_STR), "concepts shown before the target prompt's word"),
        Column("source_shots", pa.list_(_STR), "concepts shown before the source prompts' word"),
        Column("shot_collision", pa.list_(_STR), "output languages in which a target shot shares a first token with s"),
        Column("partial_char", _BOOL, "a form of s or t may start with a token that is a part of a character"),
    ),
    "patching_prompts": (
        _PAIR,
        Column(
            "role", _STR, "source (asks for s), target (asks for t) or matched (asks for s behind the target's shots)"
        ),
        Column("lang_in", _STR, "language of the queried word"),
        Column("lang_out", _STR, "language of the answer"),
        Column("text", _STR, "the prompt, up to the answer's opening quote"),
        Column("n_tokens", _I32, "its length", "tokens"),
        Column("write_pos", _I32, "0-based position of the word's last sub-token", "tokens"),
        Column("n_sub_word", _I32, "sub-tokens of the word", "tokens"),
    ),
    "patching_scores": (
        *_PATCHED,
        _PAIR,
        Column(
            "p_src",
            _PROBABILITIES,
            "P(s in X) as the next token, per language X of the grid, in its order",
            "probability",
        ),
        Column("p_tgt", _PROBABILITIES, "P(t in X), per language", "probability"),
        Column("p_srcx", _PROBABILITIES, "the same over T(s, X) minus T(s, O), per language", "probability"),
        Column("p_third", pa.float32(), "P(u in O)", "probability"),
        Column(
            "n_sources",
            _I32,
            "source prompts that were averaged (K); a pair of seen_disjoint without any has no row",
            "prompts",
        ),
        Column("form_overlap", _F64, "share of them in whose languages s may start like in O", "fraction"),
    ),
    "patching_answers": (
        *_PATCHED,
        _PAIR,
        Column("raw", _STR, "what was generated"),
        Column("cut", _STR, "the same up to the closing quote or newline"),
        Column("closed", _BOOL, "whether there was one"),
        Column("n_new", _I32, "generated tokens", "tokens"),
        Column("exact", _BOOL, "equals an accepted form of s in O, normalised"),
        Column("loose", _BOOL, "the same without diacritics"),
        Column("label", _STR, "the first rule it fits (see README)"),
        Column("first_token_in_set", _BOOL, "its first token is one of T(s, O)"),
    ),
    "patching_curves": (
        *_PATCHED,
        Column(
            "measure",
            _STR,
            "p_source (s in O), p_target (t in O), p_source_other (s in `lang` with a first token that s in O has not), nps, effect "
            "(p_source minus that of the null) or accuracy (exact answers)",
        ),
        Column("lang", _STR, "language of p_source_other; null otherwise"),
        *_MEAN,
    ),
    "patching_checkpoints": (
        *_PATCHED[:-1],
        *_interval("nps_max", "normalised patching score at its best layer, biased upward", "ratio"),
        *_interval("nps_split", "the same at the split-half layers", "ratio"),
        *_interval("effect_max", "largest effect over layers, biased upward", "probability"),
        *_interval("effect_split", "effect at the split-half layers", "probability"),
        *_interval("accuracy", "exact answers at the split-half layers", "fraction"),
        *_interval("p_source", "P(s in O) at the split-half layers", "probability"),
        *_interval(
            "prefix_share", "answers that start like s in O and are another word, of those that start so", "fraction"
        ),
        *_interval("gain_ability", "wrong to gold, net of gold to wrong, from src_unpatched", "fraction"),
        *_interval("gain_behaviour", "copying to gold, net", "fraction"),
        *_interval("gain_sense", "another sense to gold, net", "fraction"),
        *_interval("gain_output_language", "another language to gold, net", "fraction"),
        Column("layer_max", _I32, "start layer of effect_max", "layer"),
        Column("crossing", _F64, "start layer at which P(t in O) overtakes P(s in O), interpolated", "layer"),
        Column("crossing_rel", _F64, "the same / (L - 1)", "fraction"),
        Column("n_crossings", _I32, "downward crossings"),
        Column(
            "emerged",
            _BOOL,
            "the lower bound of effect_split is above 0, and there is room for it (no `no_room`), here and at every later checkpoint",
        ),
        Column("n_pairs", _I32, "concept pairs", "pairs"),
        Column(
            "null_reason",
            _STR,
            "why figures are null: no_source_languages (or no pair has a source in every target); "
            "unfinished_targets (the mean lacks one); "
            "no_room (the ceiling does not stand above the floor), never_source, "
            "never_target; joined by ;",
        ),
    ),
    "patching_transitions": (
        *_PATCHED[:-1],
        Column("from_label", _STR, "label of the answer of src_unpatched"),
        Column("to_label", _STR, "label of the patched answer at the split-half layer"),
        Column(
            "from_group", _STR, "its group: gold, copying, sense, language, wrong, or gold_copy, which stands apart"
        ),
        Column("to_group", _STR, "group of to_label"),
        Column("count", _I32, "concept pairs", "pairs"),
        Column("share", _F64, "of all concept pairs", "fraction"),
        Column("lo", _F64, "lower end of its 95 % bootstrap interval"),
        Column("hi", _F64, "upper end"),
    ),
    "patching_strata": (
        *_PATCHED[:-1],
        Column(
            "stratum",
            _STR,
            "form (of s: cognate, false_friend, different), polysemy (rows of the table that share its word), sub_tokens, "
            "frequency (tercile of its count in `patching.frequencies`), form_overlap, shot_collision or partial_char",
        ),
        Column("level", _STR, "its value"),
        Column("measure", _STR, "p_source, effect or accuracy, at the split-half layers"),
        *_MEAN,
    ),
    "patching_emergence": (
        *STATES,
        Column("step", _I64, "training step, from the revision's name; null where it has none", "steps"),
        Column(
            "measure",
            _STR,
            "patching_effect (effect_split of seen over all targets), calign, colap or a measure of `similarity`: means over directions "
            "and seeds at the grid's first settings",
        ),
        Column("layer", _I32, "absolute layer id; null for patching_effect"),
        Column("value", _F64, "the measure"),
        Column("lo", _F64, "lower end of the 95 % bootstrap interval of patching_effect"),
        Column("hi", _F64, "its upper end"),
        Column(
            "r",
            _F64,
            "Spearman correlation with patching_effect over the checkpoints; null below three, or if one is constant",
        ),
        Column("n", _I32, "checkpoints it is over", "checkpoints"),
    ),
    "patching_costs": (
        *STATES,
        Column("target_in", _STR, "input language of the patched prompts"),
        Column("target_out", _STR, "their output language"),
        Column("part", _STR, "source, clean, slots or patched"),
        Column(
            "token_forwards",
            _I64,
            "tokens run through all blocks; those of sources stand with the pair that needed them first",
            "tokens",
        ),
        Column("path", _STR, "how patched runs were made: fast (an exchanged cache) or hook"),
        Column("path_reason", _STR, "why this path"),
        Column("seconds", _F64, "of the whole cell", "s"),
        Column("peak_memory", _I64, "largest resident memory of the worker so far", "bytes"),
    ),
}
"""By the tables' names."""
