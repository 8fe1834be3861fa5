"""`raypipe calign` and `raypipe colap` against plain loops over the text of the files, in both semantics.

The loops follow the definitions word by word and share no code with raypipe: text is split by hand, types are sets, thresholds
are compared as fractions (default) or float64 (official).
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raypipe import cli_metrics
from raypipe.errors import InputError

EXAMPLES = 2000


# --- the plain reading of the definitions


def lines_of(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def naive_points(text: str, official: bool) -> list[tuple[str, int, int]]:
    """(word, sentence, concept) of every point; the released code counts a repeated line again."""
    points, seen = [], set()
    for line in lines_of(text):
        if line:
            word, _, sentence, token, concept = line.rsplit("|||", 4)
            if official or (sentence, token) not in seen:
                points.append((word, int(sentence), int(concept)))
            seen.add((sentence, token))
    return points


def naive_dictionary(text: str, official: bool) -> dict[str, list[str]]:
    """Official: every line in file order takes a place. Default: best first, single words, each translation once."""
    found: dict[str, list[Any]] = {}
    for i, line in enumerate(lines_of(text)[:-1]):
        if ": Probability = " in line:
            pair, numbers = line.rsplit(": Probability = ", 1)
            source, target = pair.split(" -> ")
            probability, count = map(float, numbers.split(", Count = "))
        else:
            (source, target), probability, count = line.split(), 0.0, 0.0
        if official or (" " not in source and " " not in target):
            found.setdefault(source, []).append(((i,) if official else (-probability, -count, i), target))
    ranked = {source: [target for _, target in sorted(entries)] for source, entries in found.items()}
    return ranked if official else {source: list(dict.fromkeys(targets)) for source, targets in ranked.items()}


def naive_calign(source: str, target: str, dictionary: str, t: dict[str, Any], official: bool) -> dict[str, Any]:
    number = float if official else Fraction
    theta, ratio = number(t["theta"]), number(t["size_ratio"])
    n = max(t["translations"], 1)
    words = {word: found[:n] for word, found in naive_dictionary(dictionary, official).items()}
    sides: list[dict[int, set[str]]] = [{}, {}]
    points = naive_points(source, official)
    for side, mine in zip(sides, (points, naive_points(target, official)), strict=True):
        for word, _, concept in mine:
            side.setdefault(concept, set()).add(word)
    eligible = reachable = 0
    aligned, listed = [], []
    for cs in sorted(sides[0]):
        types = sides[0][cs]
        covered = {w for w in types if w in words}
        whole = len(covered) if t["denominator"] == "covered" else len(types)
        enough = len(types) > t["min_types"] if official else len(types) >= t["min_types"]
        eligible += enough
        if whole and enough:
            share = number(len(covered)) / whole
            reachable += share > theta if official else share >= theta
        best: Any = (None, None, None)
        targets = []
        for ct in sorted(sides[1]):
            others = sides[1][ct]
            m = sum(1 for w in types if any(translation in others for translation in words.get(w, [])))
            q = number(len(types)) / len(others)
            if not official:
                q = Fraction(min(len(types), len(others)), max(len(types), len(others)))
            if best[0] is None or (m / len(types), q) > best[1:]:
                best = (ct, m / len(types), q)
            r = number(m) / whole if whole else None
            if enough and r is not None and ((r > theta and q > ratio) if official else (r >= theta and q >= ratio)):
                pairs = sorted([w, x] for w in types for x in set(words.get(w, [])) if x in others)
                targets.append([ct, m, len(types), len(others), pairs])
                aligned.append([cs, ct])
        listed.append([cs, len(types), len(covered), *best[:2], best[2] and float(best[2]), targets])
    types_of_all = {word for word, _, _ in points}
    n_aligned, total = len({cs for cs, _ in aligned}), len(sides[0])
    return {
        "concepts": total,
        "eligible": eligible,
        "reachable": reachable,
        "aligned": n_aligned,
        "calign": n_aligned / total if total else None,
        "calign_eligible": n_aligned / eligible if eligible else None,
        "calign_reachable": n_aligned / reachable if reachable else None,
        "coverage": len(types_of_all & set(words)) / len(types_of_all) if points else None,
        "occurrence_coverage": sum(1 for word, _, _ in points if word in words) / len(points) if points else None,
        "pairs": aligned,
        "source_concepts": listed,
    }


def naive_colap(text: str, boundary: int, t: dict[str, Any], official: bool) -> dict[str, Any]:
    points = [
        (concept, "1" if sentence <= boundary else "2", word)
        for word, sentence, concept in naive_points(text, official)
    ]
    strings: dict[str, set[str]] = {}
    for _, language, word in points:
        strings.setdefault(word, set()).add(language)

    def overlapping(kept: list[tuple[int, str, str]], min_types: int) -> list[int]:
        counted = set(kept) if t.get("count") == "types" else kept
        sizes = {language: sum(1 for _, of, _ in counted if of == language) for language in "12"}
        found = []
        for concept in sorted({c for c, _, _ in kept}):
            inside = [(language, word) for c, language, word in kept if c == concept]
            n = {side: sum(1 for c, language, _ in counted if (c, language) == (concept, side)) for side in "12"}
            if official:
                ok = all(n[side] / len(inside) * 100 > float(t["theta"]) for side in "12")
            else:
                weigh = t["balance"] == "reweight"
                part = [Fraction(n[side], sizes[side] if weigh else 1) if n[side] else Fraction(0) for side in "12"]
                ok = all(p / sum(part) >= Fraction(t["theta"]) for p in part)
            if ok and len(set(inside)) >= min_types:
                found.append(concept)
        return found

    alone = [point for point in points if len(strings[point[2]]) == 1]
    whole, rest = overlapping(points, t["min_types"]), overlapping(alone, t["min_types"])
    entries = {c: {(language, word) for of, language, word in points if of == c} for c, _, _ in points}
    found: dict[str, Any] = {
        "concepts": len(entries),
        "overlapping": len(whole),
        "overlapping_concepts": whole,
        "overlapping_excl_shared": len(set(whole) & set(rest)),
        "colap": len(whole) / len(entries),
        "points": {side: sum(1 for _, language, _ in points if language == side) for side in "12"},
    }
    for name, least in (("", t["min_types"]), ("_3", 3), ("_5", 5)):
        found[f"eligible{name}"] = sum(1 for mine in entries.values() if len(mine) >= least)
        found[f"overlapping{name}"] = len(overlapping(points, least))
    found["colap_eligible"] = len(whole) / found["eligible"] if found["eligible"] else None
    shares = []
    for c, mine in sorted(entries.items()):
        of_concept = [language for concept, language, _ in points if concept == c]
        for side in "12":
            n = of_concept.count(side)
            shares.append([c, side, n, sum(1 for language, _ in mine if language == side), n / len(of_concept)])
    return found | {"shares": shares}


# --- generated files

WORDS = ["a", "b", "c", "d", "ä", "x|||y", "a|", "->", "2024"]
PLACES = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 3), st.booleans()), max_size=14)
LAYOUT = st.tuples(st.sampled_from(["", "\ufeff"]), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
ENTRY = st.tuples(
    st.sampled_from([*WORDS, "to go"]), st.sampled_from([*WORDS, "to go", "Z"]), st.integers(0, 4), st.integers(0, 2)
)
SHARES = ["0", "0.1", "0.2", "0.25", "0.3", "0.4", "0.5", "0.6", "0.7", "0.75", "0.8", "1"]
PERCENTAGES = ["0", "0.3", "7", "12.5", "14", "20", "24.9", "25", "28", "30", "40", "50"]
ALIGN = st.fixed_dictionaries(
    {
        "theta": st.sampled_from(SHARES),
        "translations": st.integers(0, 4),
        "min_types": st.integers(0, 4),
        "size_ratio": st.sampled_from(["0", "0.5", "0.6", "0.75", "1", "1.25", "2"]),
        "denominator": st.sampled_from(["all", "covered"]),
    }
)
OVERLAP = st.fixed_dictionaries(
    {
        "theta": st.sampled_from(SHARES[1:7]),
        "min_types": st.integers(1, 4),
        "count": st.sampled_from(["tokens", "types"]),
        "balance": st.sampled_from(["none", "reweight"]),
    }
)


def cluster_text(points: list[tuple[str, int, bool]], layout: tuple[str, str, bool, bool], at: int = 100) -> str:
    """Five-field lines; a flagged point is of language 2; the layout adds a mark, CRs, a blank line, a repeated line."""
    mark, end, blank, repeat = layout
    lines = [f"{w}|||{i % 3}|||{i + (at + 1) * two}|||0|||{c}" for i, (w, c, two) in enumerate(points)]
    lines += lines[:2] if repeat else []
    return mark + "".join(line + end for line in ([""] if blank else []) + lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def written(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


def printed(command: Any, *files: Path, **options: Any) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()) as out:
        command(*files, **options, as_json=True)
    return dict(json.loads(out.getvalue()))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLACES, PLACES, LAYOUT, st.lists(ENTRY, min_size=1, max_size=12), st.booleans(), ALIGN)
def test_calign_of_files_is_what_the_plain_loops_give(
    folder: Path, source: Any, target: Any, layout: Any, entries: Any, arrow: bool, asked: dict[str, Any]
) -> None:
    if arrow:
        dictionary = "".join(f"{s} -> {t}: Probability = {p / 4}, Count = {c}\n" for s, t, p, c in entries)
    else:
        dictionary = "a b\n" + "".join(f"{s} {t}\n" for s, t, _, _ in entries if " " not in s + t)
    texts = cluster_text(source, layout), cluster_text(target, layout), dictionary
    paths = written(folder, *texts)
    for official in (False, True):
        t = asked | {"denominator": "all"}
        if not official:  # its ranges are narrower
            t = asked | {name: max(asked[name], 1) for name in ("translations", "min_types")}
            t |= {"theta": "0.9" if t["theta"] == "0" else t["theta"], "size_ratio": min(t["size_ratio"], "1")}
            if not naive_dictionary(dictionary, official):
                with pytest.raises(InputError, match="no usable entry"):
                    printed(cli_metrics.calign, *paths, **t)
                continue
        found = printed(cli_metrics.calign, *paths, **t, official=official)
        expected = naive_calign(*texts, t, official)
        listed = [
            [
                *list(c.values())[:-1],
                [[r["target_concept"], *list(r.values())[2:5], r["word_pairs"]] for r in c["targets"]],
            ]
            for c in found["source_concepts"]
        ]
        assert {name: found[name] for name in expected} | {"source_concepts": listed} == expected


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLACES, LAYOUT, OVERLAP, st.sampled_from(PERCENTAGES))
def test_colap_of_files_is_what_the_plain_counts_give(
    folder: Path, points: Any, layout: Any, asked: dict[str, Any], percent: str
) -> None:
    text = cluster_text([("a", 0, False), ("b", 0, True), *points], layout)
    (path,) = written(folder, text)
    for official in (False, True):
        t = {"theta": percent, "min_types": 1} if official else asked
        found = printed(cli_metrics.colap, path, boundary=100, **t, official=official)
        expected = naive_colap(text, 100, t, official)
        shares = [list(row.values()) for row in found["shares"]]
        assert {name: found[name] for name in expected} | {"shares": shares} == expected


def test_official_percentages_are_compared_as_binary_floats(folder: Path) -> None:
    """Of the whole percentages up to 50, a share of exactly t % stands above t at 7, 14 and 28 alone."""
    above = []
    for percent in range(1, 51):
        points = [("a", 0, i < percent) for i in range(100)]
        (path,) = written(folder, cluster_text(points, ("", "\n", False, False)))
        found = printed(cli_metrics.colap, path, boundary=100, theta=str(percent), official=True)
        above += [percent] if found["overlapping"] else []
    assert above == [7, 14, 28]
