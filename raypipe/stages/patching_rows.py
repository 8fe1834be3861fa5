"""Rows of one patched target: probabilities of token sets, and generated answers compared with the accepted forms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypipe.gridpatching import ENGLISH, MATCHED
from raypipe.interop.concepttable import Concept, letters
from raypipe.schema import arrow_schema
from raypipe.science.answers import Known, cut_answer, label, matches

Row = dict[str, Any]
Sets = Mapping[str, Mapping[str, tuple[int, ...]]]  # concept -> language -> the ids its forms may start with
Floats = NDArray[np.float32]


class Outcome(NamedTuple):
    """What one run over all pairs gave.

    Attributes:
        setting: Whose it is.
        layer: Start layer, -1 = unpatched.
        logprobs: Per pair, of the wanted ids, [m].
        answers: Per pair, the new ids.
        texts: Per pair, their text.
        sources: Per pair, the source prompts that were averaged, [n]; a pair of which none is left has no row. None without sources.
        overlap: Per pair, the share of them that may give the answer's first token away, [n]; None without sources.
    """

    setting: str
    layer: int
    logprobs: Sequence[Floats]
    answers: Sequence[NDArray[np.int32]]
    texts: Sequence[str]
    sources: Sequence[int] | None = None
    overlap: Sequence[float] | None = None


class Target:
    """The concept pairs as one target language pair (I, O) sees them.

    Args:
        pairs: Rows of the table `patching_pairs`.
        concepts: Every concept by its id.
        sets: Token sets of the concepts of the pairs.
        languages: Of the grid, in its order.
        direction: (I, O).

    Attributes:
        wanted: Per pair the ids whose log-probability is needed, ascending, int64 [m].
    """

    def __init__(
        self,
        pairs: Sequence[Row],
        concepts: Mapping[str, Concept],
        sets: Sets,
        languages: Sequence[str],
        direction: tuple[str, str],
    ) -> None:
        self._pairs, self._concepts, self._sets, self._languages = pairs, concepts, sets, languages
        self._in, self._out = direction
        self.wanted: list[NDArray[np.int64]] = []
        self._sums: list[NDArray[np.float64]] = []
        for row in pairs:
            groups = list(self._groups(row))
            ids = np.unique(np.array([i for group in groups for i in group], np.int64))
            self.wanted.append(ids)
            self._sums.append(np.stack([np.isin(ids, list(group)) for group in groups], axis=1).astype(np.float64))
        self._meanings = defaultdict[str, list[Concept]](list)
        for concept in concepts.values():
            for form in concept.forms[self._in]:
                self._meanings[form].append(concept)

    def _groups(self, row: Row) -> Iterable[Iterable[int]]:
        """The sets whose probability is summed: s per language, t per language, s without its set in O, u in O."""
        source, target = self._sets[row["source_concept"]], self._sets[row["target_concept"]]
        yield from (source[x] for x in self._languages)
        yield from (target[x] for x in self._languages)
        yield from (set(source[x]) - set(source[self._out]) for x in self._languages)
        yield self._sets[row["third_concept"]][self._out]

    def overlap(self, sources: Sequence[tuple[str, str]]) -> list[float]:
        """Per pair, the share of source prompts (A, B) in whose languages s may start with a token that it may start with in O."""
        return [float(share) for share in meeting(self._pairs, self._sets, sources, self._out).mean(axis=1)]

    def scores(self, keys: Row, outcomes: Sequence[Outcome]) -> pa.Table:
        """The table `patching_scores`; `keys` are the columns that all rows share."""
        count = len(self._languages)
        # Every run of a pair at once: [runs, m] @ [m, sets]; float64 sums in the order of the ids.
        per_pair = [
            np.exp(np.stack([o.logprobs[n] for o in outcomes]).astype(np.float64)) @ sums
            for n, sums in enumerate(self._sums)
        ]
        values = np.minimum(np.stack(per_pair, axis=1), 1.0).astype(np.float32).reshape(-1, 3 * count + 1)
        lists = {name: values[:, i * count : (i + 1) * count] for i, name in enumerate(("p_src", "p_tgt", "p_srcx"))}
        columns: Row = {name: _lists(of_name) for name, of_name in lists.items()}
        columns["p_third"] = values[:, -1]
        blank = [None] * len(self._pairs)
        columns["n_sources"] = [count for o in outcomes for count in (o.sources or blank)]
        columns["form_overlap"] = [share for o in outcomes for share in (o.overlap or blank)]
        return self._table("patching_scores", keys, outcomes, columns)

    def answers(self, keys: Row, outcomes: Sequence[Outcome]) -> pa.Table:
        """The table `patching_answers`."""
        rows = defaultdict[str, list[Any]](list)
        roles = {"src_unpatched": "source", MATCHED: "matched"}
        known = {role: [self._known(row, role) for row in self._pairs] for role in ("source", "matched", "target")}
        first = [frozenset(self._sets[row["source_concept"]][self._out]) for row in self._pairs]
        seen: dict[tuple[Any, ...], tuple[bool, bool, str]] = {}
        for outcome in outcomes:
            role = roles.get(outcome.setting, "target")
            for n, (raw, ids) in enumerate(zip(outcome.texts, outcome.answers, strict=True)):
                cut, closed = cut_answer(raw)
                starts = bool(len(ids)) and int(ids[0]) in first[n]
                key = (role, n, cut, closed, starts)
                if key not in seen:
                    mine = known[role][n]
                    seen[key] = (*matches(cut, mine.gold), label(cut, closed, starts, mine))
                found = (raw, cut, closed, len(ids), *seen[key], starts)
                for name, value in zip(_ANSWER, found, strict=True):
                    rows[name].append(value)
        return self._table("patching_answers", keys, outcomes, rows)

    def _known(self, row: Row, role: str) -> Known:
        """What the answers of a pair to the prompts of a role are compared with."""
        source, target = self._concepts[row["source_concept"]], self._concepts[row["target_concept"]]
        others = [x for x in self._languages if x != self._out]
        word = source.forms[self._in][0]
        meanings = [concept for concept in self._meanings[word] if concept.id != source.id]
        return Known(
            gold=source.forms[self._out],
            source=word,
            visible=target.forms[self._in][0] if role == "target" else word,
            target=target.forms[self._out],
            target_other=tuple(form for x in others for form in target.forms[x]),
            english=source.forms[ENGLISH] if ENGLISH in others else (),
            wrong_language=tuple(form for x in others if x != ENGLISH for form in source.forms[x]),
            senses=tuple(form for concept in meanings for form in concept.forms[self._out]),
            shots=tuple(
                self._concepts[shot].forms[self._out][0]
                for shot in row["source_shots" if role == "source" else "target_shots"]
            ),
        )

    def strata(
        self, sub_tokens: Mapping[str, Sequence[int]], counts: Mapping[str, int] | None = None
    ) -> dict[str, list[str]]:
        """Per stratum the level of each pair (section 5).

        Args:
            sub_tokens: Stratum -> pieces of the queried word in each pair's prompt.
            counts: Of words of I; without them there is no stratum of frequency.
        """
        found = defaultdict[str, list[str]](list)
        for row in self._pairs:
            source = self._concepts[row["source_concept"]]
            word = source.forms[self._in][0]
            elsewhere = any(word in concept.forms[self._out] for concept in self._concepts.values())
            same = word in source.forms[self._out]
            found["form"].append("cognate" if same else "false_friend" if elsewhere else "different")
            found["polysemy"].append("1" if len(self._meanings[word]) == 1 else "2+")
            scripts = ["+".join(sorted(letters(form))) for form in (word, source.forms[self._out][0])]
            found["script"].append(" to ".join(scripts))
            found["shot_collision"].append(str(self._out in row["shot_collision"]).lower())
            found["partial_char"].append(str(row["partial_char"]).lower())
        for name, of_pairs in sub_tokens.items():
            found[name] = [str(pieces) if pieces < 3 else "3+" for pieces in of_pairs]
        if counts is not None:
            words = [self._concepts[row["source_concept"]].forms[self._in][0] for row in self._pairs]
            listed = [counts[word] for word in words if word in counts]
            ends = np.quantile(listed, [1 / 3, 2 / 3]) if listed else np.zeros(2)
            names = ("low", "middle", "high")
            found["frequency"] = [
                names[int(np.searchsorted(ends, counts[word]))] if word in counts else "not listed" for word in words
            ]
        return dict(found)

    def _table(self, name: str, keys: Row, outcomes: Sequence[Outcome], columns: Mapping[str, Any]) -> pa.Table:
        count = len(self._pairs)
        columns = dict(columns) | {
            "setting": [o.setting for o in outcomes for _ in range(count)],
            "layer": [o.layer for o in outcomes for _ in range(count)],
            "pair": [row["pair"] for _ in outcomes for row in self._pairs],
        }
        rows = count * len(outcomes)
        schema = arrow_schema(name)
        arrays = {
            field.name: pa.repeat(pa.scalar(keys[field.name], field.type), rows)
            if field.name in keys
            else pa.array(columns[field.name], field.type)
            for field in schema
        }
        kept = [averaged != 0 for o in outcomes for averaged in (o.sources or [1] * count)]
        return pa.table(arrays, schema=schema).filter(pa.array(kept))


def meeting(pairs: Sequence[Row], sets: Sets, sources: Sequence[tuple[str, str]], out: str) -> NDArray[np.bool_]:
    """Whether in the languages of a source prompt (A, B) s may start with a token that it may start with in O, [pairs, sources]."""
    found = []
    for row in pairs:
        of_source = sets[row["source_concept"]]
        meets = {x: not set(of_source[x]).isdisjoint(of_source[out]) for x in of_source}
        found.append([meets[a] or meets[b] for a, b in sources])
    return np.array(found)


_ANSWER = ("raw", "cut", "closed", "n_new", "exact", "loose", "label", "first_token_in_set")


def _lists(values: Floats) -> pa.Array:
    """[rows, m] as a column of lists."""
    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))
