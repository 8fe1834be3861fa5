"""The demo as a user meets it: the real effect, the report in a browser, resume, and what the README says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import normalized_mutual_info_score

import raypipe
from raypipe import toy
from raypipe.toy.lexicon import groups

ROOT = Path(__file__).parents[1]
RELATED, DISTANT = {"es", "pt"}, {"ru"}

pytestmark = pytest.mark.timeout(900)


def run_demo(place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raypipe.cli", "demo", "--run", str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("demo") / "run"
    done = run_demo(place)
    assert done.returncode == 0, done.stderr
    assert f"report: {place}/report/index.html" in done.stdout
    return place


@pytest.fixture(scope="module")
def calign(demo: Path) -> pd.DataFrame:
    return raypipe.open_run(demo).calign().to_pandas()


def steps(table: pd.DataFrame) -> list[str]:
    return sorted((r for r in table.revision.unique() if r.startswith("step-")), key=lambda r: int(r[5:]))


def test_calign_emerges_with_training(calign: pd.DataFrame) -> None:
    top = calign[calign.layer == calign.layer.max()]
    by_step = top.groupby("revision")[["calign", "null_calign"]].mean()
    first, last = steps(calign)[0], steps(calign)[-1]
    assert len(steps(calign)) >= 5
    assert int(first[5:]) == 0
    assert by_step.calign[last] > by_step.calign[first] + 0.15
    assert by_step.calign[last] > by_step.null_calign[last] + 0.15
    assert by_step.calign[last] > by_step.calign["random:0"] + 0.15
    assert (top.eligible >= 15).all()
    ends = top[top.revision == last]
    related = ends[[{s, t} == RELATED for s, t in zip(ends.source, ends.target, strict=True)]].calign.mean()
    distant = ends[[bool({s, t} & DISTANT) for s, t in zip(ends.source, ends.target, strict=True)]].calign.mean()
    assert related > distant


def test_concepts_become_semantic_classes(demo: Path, calign: pd.DataFrame) -> None:
    """NMI and purity of the concepts against the gold lexicon's classes, at the top layer, mean over languages."""
    class_of = {concept.id: name for name, members in groups().items() for concept in members}
    run, layer = raypipe.open_run(demo), int(calign.layer.max())

    def coherence(revision: str) -> tuple[float, float]:
        nmi, purity = [], []
        for language in ("en", "es", "pt", "ru"):
            gold_lines = (toy.texts() / "concepts" / f"{language}.txt").read_text(encoding="utf-8").splitlines()
            table = run.concepts(revision=revision, layer=layer, scope=language).to_pandas()
            gold = [class_of[gold_lines[s].split()[t]] for s, t in zip(table.sentence, table.token, strict=True)]
            nmi.append(normalized_mutual_info_score(gold, table.concept))
            purity.append(pd.crosstab(table.concept, np.array(gold)).max(axis=1).sum() / len(table))
        return float(np.mean(nmi)), float(np.mean(purity))

    first, last = coherence(steps(calign)[0]), coherence(steps(calign)[-1])
    assert last[0] > first[0] + 0.2
    assert last[1] > first[1] + 0.2


def test_the_readme_states_what_the_demo_shows(calign: pd.DataFrame) -> None:
    stated = re.search(
        r"rises from ([\d.]+) at step 0 to ([\d.]+) at the last checkpoint, with the shuffled-dictionary null at ([\d.]+)",
        " ".join((ROOT / "README.md").read_text(encoding="utf-8").split()),
    )
    assert stated is not None
    top = calign[calign.layer == calign.layer.max()].groupby("revision")[["calign", "null_calign"]].mean()
    found = (top.calign[steps(calign)[0]], top.calign[steps(calign)[-1]], top.null_calign[steps(calign)[-1]])
    # another kind of processor trains a slightly other encoder
    assert np.allclose(found, [float(number) for number in stated.groups()], atol=0.1)


def test_a_second_demo_resumes_every_cell(demo: Path) -> None:
    before = {p.name: p.read_bytes() for p in (demo / "scores").glob("*.parquet")}
    done = run_demo(demo)
    assert done.returncode == 0, done.stderr
    assert re.search(r"all \d+ cells are there already", done.stderr)
    assert before == {p.name: p.read_bytes() for p in (demo / "scores").glob("*.parquet")}


@pytest.mark.shared
def test_the_promised_tables_hold(demo: Path, shared: Path) -> None:
    script = shared / "checks" / "check_demo.py"
    done = subprocess.run([sys.executable, str(script), str(demo)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.browser
def test_the_report_opens_without_errors_or_requests(demo: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is absent")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((demo / "report" / "index.html").as_uri())
        page.wait_for_selector("svg, canvas")
        drawn = page.locator("svg, canvas").count()
        browser.close()
    assert drawn >= 4
    assert errors == []
    assert [url for url in requests if not url.startswith("file:")] == []


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.group(1), names)
    assert (np.asarray(names["again"]) == names["concepts"]["concept"].to_numpy()).all()  # type: ignore[index]
