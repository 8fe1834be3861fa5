"""The grid: YAML and flags to one frozen object, and every mistake in one line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import GridError, InputError, RaypipeError
from raypipe.grid import Grid
from raypipe.gridcheck import describe_fields
from raypipe.gridfile import load_grid, plain_value, setting_of

BASE: dict[str, Any] = {
    "models": [{"name": "bert", "path": "org/bert"}],
    "languages": ["en", "de", "fr"],
    "corpus": {"path": "/text/{lang}.txt"},
    "lexicon": {"format": "muse", "path": "/dict/{source}-{target}.txt"},
}


def make(**changed: Any) -> Grid:
    return Grid(**{**BASE, **changed})


def test_the_defaults_are_those_of_the_method() -> None:
    grid = make()
    assert (grid.concepts.k, grid.concepts.n_init, grid.concepts.max_iter, grid.concepts.tol) == ((600,), 1, 300, 1e-4)
    assert (grid.calign.theta, grid.calign.translations, grid.calign.min_types, grid.calign.size_ratio) == (
        (0.8,),
        (10,),
        (5,),
        (0.6,),
    )
    assert (grid.colap.theta, grid.colap.min_types, grid.colap.rule) == ((0.3,), (1,), "all")
    assert (grid.words.max_freq, grid.words.del_freq, grid.words.max_words) == (15, 10_000_000, 299)
    assert grid.resources.memory == 4 * 2**30


def test_yaml_reads_back_to_an_equal_grid() -> None:
    grid = make(layers=[6, 0], resources={"memory": "1500B"}, words={"max_freq": None}, calign={"theta": 0.5})
    assert Grid(**yaml.safe_load(grid.to_yaml())) == grid
    assert grid.layers == (0, 6)
    assert "memory: 1500B" in grid.to_yaml()
    assert "memory: 4GiB" in make().to_yaml()


def test_pairs_directions_and_scopes_follow_the_order_of_languages() -> None:
    assert make().language_pairs() == [("en", "de"), ("en", "fr"), ("de", "fr")]
    some = make(pairs=["fr-en", "en-de"])
    assert some.language_pairs() == [("en", "de"), ("en", "fr")]
    assert some.directions() == [("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")]
    assert some.joint_scopes() == [("de", "en"), ("en", "fr")]
    assert make(colap={"scopes": "all"}).joint_scopes() == [("de", "en", "fr")]
    hyphens = make(languages=["zh-Hans", "en"], pairs=["en-zh-Hans"])
    assert hyphens.language_pairs() == [("zh-Hans", "en")]


def test_layers_are_ids_of_the_model() -> None:
    assert make().layer_ids(3, "m") == (0, 1, 2, 3)
    assert make(layers={"every": 3}).layer_ids(7, "m") == (0, 3, 6, 7)
    assert make(layers=[1, 3]).layer_ids(3, "m") == (1, 3)
    with pytest.raises(GridError, match=r"layers: 9 is outside 0\.\.6 of model m"):
        make(layers=[2, 9]).layer_ids(6, "m")


MISTAKES = [
    ({"layer": 3}, "layer: unknown field; did you mean layers?"),
    ({"words": {"min_word": 3}}, "words.min_word: unknown field; did you mean min_words?"),
    ({"words": {"zzz": 3}}, "words.zzz: unknown field; known here: lines, min_words"),
    (
        {"models": [{"name": "a", "path": "b", "revison": 1}]},
        "models.0.revison: unknown field; did you mean revisions?",
    ),
    ({"calign": {"theta": 1.5}}, r"calign.theta.0: Input should be less than or equal to 1 \(found 1.5\)"),
    ({"colap": {"theta": 30}}, r"colap.theta: 30: fraction expected, did you mean 0.3\?"),
    ({"colap": {"theta": 0.8}}, r"colap.theta: 0.8 is outside \(0, 0.5\]: two languages"),
    ({"colap": {"theta": 0.4, "scopes": "all"}}, "colap.theta 0.4: 3 languages cannot all reach it; lower theta"),
    ({"colap": {"rule": "at_least:3"}}, r"colap.rule at_least:3: m must lie in 2\.\.2"),
    ({"colap": {"rule": "most"}}, r"colap.rule: String should match pattern"),
    ({"layers": "some"}, "layers: expected all, a list of layer ids such as"),
    ({"layers": {"every": 0}}, "layers: expected all"),
    ({"layers": [1, 1]}, "layers: 1 is listed twice"),
    ({"concepts": {"k": []}}, "concepts.k: is empty; give at least one value"),
    ({"calign": {"resamples": 1}}, "calign.resamples: one sample has no spread; give two or more, or 0"),
    ({"colap": {"resamples": 1}}, "colap.resamples: one sample has no spread; give two or more, or 0"),
    ({"calign": {"denominator": "some"}}, "calign.denominator: "),
    ({"colap": {"count": "words"}}, "colap.count: "),
    ({"pairs": ["en-it"]}, "pairs: en-it is not made of two of the languages en, de, fr"),
    (
        {"languages": ["en", False]},
        "languages: YAML reads no, yes, on and off as false and true; write the language .*'no'",
    ),
    (
        {"languages": [f"l{i:03d}" for i in range(60)], "colap": {"theta": 0.01, "scopes": "all"}},
        "colap.scopes: the codes of 60 languages are over 240 characters together, too long for a folder",
    ),
    ({"languages": ["en"]}, "languages: at least two are needed to compare"),
    ({"lexicon": {}}, "lexicon: give either path"),
    (
        {"lexicon": {"induce": "eflomal", "nbest_order": "file"}},
        "lexicon: nbest_order and multiword are about files; leave them out with induce: eflomal",
    ),
    ({"warnings": {"LOW": 0.4}}, "warnings: LOW is no warning with a limit; expected some of LOW_COVERAGE, "),
    ({"warnings": {"LOW_COVERAGE": -1}}, "warnings.LOW_COVERAGE: Input should be greater than or equal to 0"),
    ({"lexicon": {"path": "/a/{source}-{target}"}}, "lexicon: path needs format: muse or arrow"),
    ({"lexicon": {"path": "/a/b", "format": "muse"}}, "lexicon: path must hold {source} and {target}"),
    ({"corpus": {"path": "/a/b.txt"}}, "corpus.path /a/b.txt: {lang} is missing"),
    ({"models": [{"name": "a", "path": "b"}, {"name": "a", "path": "c"}]}, "models: the name a is used twice"),
    ({"models": [{"name": "../a", "path": "b"}]}, "models.0.name: String should match pattern"),
    (
        {"models": [{"name": "a", "path": "b", "components": ["pooler"]}]},
        "models.0.components.0: 'pooler' is not available; expected 'encoder' or 'decoder'",
    ),
    (
        {"models": [{"name": "a", "path": "b", "checkpoint_pattern": "(?P<step>"}]},
        "models.0.checkpoint_pattern: is no regular expression: missing ",
    ),
    (
        {"models": [{"name": "a", "path": "b", "checkpoint_pattern": r"x{99999999999}"}]},
        "models.0.checkpoint_pattern: is no regular expression: the repetition number is too large",
    ),
    (
        {"models": [{"name": "a", "path": "b", "checkpoint_pattern": r"iter_\d+"}]},
        r"models.0.checkpoint_pattern: expected the named group \(\?P<step>...\) and beside it at most stage and tokens, found none",
    ),
    (
        {"models": [{"name": "a", "path": "b", "checkpoint_pattern": r"(?P<phase>.)(?P<step>.)"}]},
        "models.0.checkpoint_pattern: expected .* at most stage and tokens, found phase, step",
    ),
    ({"models": [{"name": "a", "path": "b", "phases": []}]}, "models.0.phases: is empty; give at least one value"),
    ({"models": [{"name": "a", "path": "b", "phases": ["x", "x"]}]}, "models.0.phases: x is listed twice"),
    ({"states": {"source": "all"}}, "states.source: 'all' is not available; expected 'copy', 'empty' or 'pair'"),
    (
        {"concepts": {"algorithm": "dbscan"}},
        "concepts.algorithm.0: 'dbscan' is not available; expected 'kmeans', 'spherical', 'minibatch' or 'agglomerative'",
    ),
    ({"words": {"filter": "joint"}}, "words.filter: 'joint' is not available; expected 'language' or 'pairwise'"),
    ({"words": {"min_words": 9, "max_words": 2}}, "words: min_words 9 is above max_words 2"),
    ({"words": 3}, "words: Input should be a valid dictionary"),
    ({"resources": {"memory": "lots"}}, "resources.memory: could not parse"),
    ({"dtype": {"store": "int8", "compute": "int4"}}, r"dtype.compute: 'int4' is not available.*\(and 1 more\)"),
]


@pytest.mark.parametrize(("changed", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message.replace("{", r"\{").replace("}", r"\}")) as error:
        make(**changed)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(GridError, match="corpus: is required; set it in the grid file or by a flag"):
        Grid(**{name: value for name, value in BASE.items() if name != "corpus"})


def test_a_grid_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        make().name = "other"  # type: ignore[misc]


def test_paths_are_relative_to_the_file_and_flags_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "model").mkdir()
    file = tmp_path / "grids" / "g.yaml"
    relative = {**BASE, "models": [{"name": "m", "path": "model"}], "corpus": {"path": "text/{lang}.txt"}}
    file.write_text(
        yaml.safe_dump(relative | {"lexicon": {"format": "muse", "path": "toy:lexicon/{source}-{target}.txt"}})
    )
    monkeypatch.chdir(tmp_path)
    grid = load_grid(file)
    assert grid.corpus.path == str(tmp_path / "grids" / "text" / "{lang}.txt")
    assert grid.models[0].path == str(tmp_path / "grids" / "model")
    assert grid.lexicon.path == "toy:lexicon/{source}-{target}.txt"
    assert load_grid(file, [("corpus.path", "text/{lang}.txt")]).corpus.path == str(tmp_path / "text" / "{lang}.txt")
    assert load_grid(file, [("models.0.path", "org/bert")]).models[0].path == "org/bert"
    assert load_grid(file, [("models.0.path", "./bert")]).models[0].path == str(tmp_path / "bert")


def test_model_flags_name_models_of_the_file_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bert").mkdir()
    file = tmp_path / "g.yaml"
    file.write_text(yaml.safe_dump(BASE))
    flags = ["bert@step-1", "bert@step-2", "a/bert", "org/bert", "toy:encoder@all"]
    models = load_grid(file, [("models", flags)]).models
    assert [(m.name, m.path, m.revisions) for m in models] == [
        ("bert", "org/bert", ("step-1", "step-2")),
        ("bert-2", str(tmp_path / "a" / "bert"), ("main",)),
        ("bert-3", "org/bert", ("main",)),
        ("encoder", "toy:encoder", ("all",)),
    ]
    rest = [(field, value) for field, value in BASE.items() if field != "models"]
    assert load_grid(None, [("models", [".."]), *rest]).models[0].name == "model"
    with pytest.raises(GridError, match=r"models\.0\.path"):
        load_grid(None, [("models", ["@x"]), *rest])


def test_overrides_step_into_lists_and_say_where_they_cannot(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text(yaml.safe_dump({**BASE, "models": BASE["models"][0]}))
    assert load_grid(file, [("words.max_freq", 3)]).words.max_freq == 3
    file.write_text(yaml.safe_dump(BASE))
    assert load_grid(file, [("models.0.revisions", ["x"]), ("languages.0", "it")]).languages[0] == "it"
    with pytest.raises(GridError, match=r"models\.4\.name: 4 is not a position in a list of 1"):
        load_grid(file, [("models.4.name", "x")])
    with pytest.raises(GridError, match=r"name\.first\.x: name is a plain value and has no fields"):
        load_grid(file, [("name", "x"), ("name.first.x", "x")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2", r"g\.yaml:\d+: not plain YAML"),
        (b"- 1\n- 2\n", r"g\.yaml: a grid is a mapping of fields .*found list"),
        (b"1: x\n", r"g\.yaml: a grid is a mapping of fields"),
        (b"name: \xff\n", r"g\.yaml: not UTF-8 \(invalid start byte at byte 6\)"),
        (b"!!python/object/apply:os.system [ls]\n", r"g\.yaml:1: not plain YAML: could not determine a constructor"),
        (b"name: x\nconcepts:\n  k: 6\n  k: 7\n", r"g\.yaml:4: not plain YAML: k stands there twice"),
        (b"[" * 5000, r"g\.yaml: not plain YAML"),
        (b"name: &a [*a]\n", r"g\.yaml: not plain YAML: its aliases stand for far more than is written; write out"),
        (
            b"".join(
                b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1) if c > 98 else b"x"] * 9))
                for c in range(98, 106)
            ),
            r"g\.yaml: not plain YAML: its aliases stand for far more than is written; write out",
        ),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "g.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_grid(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"none\.yaml: no such grid file; write one with `raypipe grid FLAGS > none\.yaml`"
    ):
        load_grid(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        load_grid(tmp_path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*BASE, "words", "name", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*BASE, "words", "concepts", "layers", "pairs", "colap"]), plain))
def test_no_input_escapes_as_another_error(changed: dict[str, Any]) -> None:
    with suppress(RaypipeError):
        Grid(**{**BASE, **changed})


def test_every_field_is_described() -> None:
    page = describe_fields(Grid)
    assert page["calign.theta"].endswith("Default: [0.8].")
    assert page["resources.memory"].endswith("Default: 4.0GiB.")
    assert page["words.normalise"].startswith("Applied")
    assert all(text and "None" not in text for text in page.values())


def test_a_required_field_is_named() -> None:
    without = {name: value for name, value in BASE.items() if name != "models"}
    with pytest.raises(GridError, match="models: is required; set it in the grid file or by a flag"):
        Grid(**without)


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(GridError, match=r"'~a\\x00b': holds a NUL; expected a path"):
        load_grid(None, [("corpus.path", "~a\0b")])


def test_models_are_not_set_as_a_whole() -> None:
    with pytest.raises(
        GridError, match="--set models=3: expected --model NAME_OR_PATH, or one field such as --set mod"
    ):
        setting_of("models=3")
    with pytest.raises(GridError, match=r"--set models x=3: expected FIELD=VALUE, such as --set words.max_freq=30"):
        setting_of("models\nx=3")


def test_a_flags_value_is_yaml_or_text() -> None:
    assert [plain_value(text) for text in ("3", "[a]", "no", "[", "null")] == [3, ["a"], "no", "[", None]


def test_a_merged_key_may_be_given_another_value() -> None:
    """Also where the mapping that is merged has merged one itself, and is built later."""
    text = "{a: &a {x: 1}, outer: {b: &b {<<: *a, x: 2}}, c: {<<: *b}}"
    assert plain_value(text) == {"a": {"x": 1}, "outer": {"b": {"x": 2}}, "c": {"x": 2}}
