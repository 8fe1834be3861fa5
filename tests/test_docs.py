"""What the README and the grids say is true: commands exist, YAML validates, generated pages are fresh, the example runs."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from raypipe.cli import app
from raypipe.grid import Grid
from raypipe.gridfile import load_grid
from raypipe.science.seeding import SEED_SAMPLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme_and_has_help_with_an_example(command: str) -> None:
    assert f"raypipe {command} " in README
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    assert re.search(r"Examples?:", shown.output)


def test_every_command_of_the_readme_parses() -> None:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    used = {line.split()[1] for line in lines if line.startswith("raypipe ")}
    assert used == set(COMMANDS)
    known = {option for command in get_command(app).commands.values() for p in command.params for option in p.opts}  # type: ignore[attr-defined]
    ours = [line for line in lines if line.startswith("raypipe ")]
    assert {flag for line in ours for flag in re.findall(r"--[a-z-]+", line)} <= known


def test_the_yaml_of_the_readme_is_a_grid() -> None:
    for block in blocks("yaml"):
        assert Grid(**yaml.safe_load(block)).name == "mine"


@pytest.mark.parametrize("file", sorted((ROOT / "grids").glob("*.yaml")), ids=lambda file: file.name)
def test_the_grids_validate(file: Path) -> None:
    assert load_grid(file).name == file.stem


def test_the_generated_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"docs/{name} is stale: run `make docs`"


def test_the_readme_states_the_sample_of_first_centroids() -> None:
    assert f"from {SEED_SAMPLE:,} drawn uniformly" in README


def test_the_changelog_names_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == version("raypipe")  # type: ignore[union-attr]


def test_the_submit_line_is_the_jobs_first_comment() -> None:
    first = (ROOT / "jobs" / "run_grid.py").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(
        "# ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/run_grid.py"
    )
    assert first.removeprefix("# ").split("grids/")[0] in README
