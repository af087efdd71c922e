"""docs/evidence.md says what the curves beside it say."""

import json
import re
import subprocess

import pytest

from stages.lib.claims import CLAIMS, examine
from stages.lib.results import read_rows
from tests.conftest import CHECKOUT
from tools.table import cells, read_summary

EVIDENCE = CHECKOUT / "docs/evidence"
RUNS = sorted(path.parent.name for path in EVIDENCE.glob("*/claims.json"))
PAGE = (CHECKOUT / "docs/evidence.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n((?:for v in|python -) .*?)```", PAGE, re.DOTALL)


def test_there_is_evidence() -> None:
    assert RUNS == ["half-scale", "thirty-epochs", "three-seeds", "three-seeds-bf16"]
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("run", RUNS)
def test_the_verdicts_follow_from_the_curves(run: str) -> None:
    curves = {
        path.stem: read_rows(path, ["seed", "epoch", "test_accuracy"])
        for path in (EVIDENCE / run / "curves").iterdir()
    }
    claims = json.loads((EVIDENCE / run / "claims.json").read_text(encoding="utf-8"))
    for name, claim in CLAIMS.items():
        found = examine(claim, curves)
        assert claims[name]["verdict"] == found.verdict
        assert claims[name]["mean_difference"] == pytest.approx(found.mean)
        if found.interval:
            assert claims[name]["interval"] == pytest.approx(found.interval)
            assert f"\n{claim.statement}: {found}\n" in PAGE


@pytest.mark.parametrize("run", RUNS)
def test_the_table_is_of_the_summaries(run: str) -> None:
    for path in (EVIDENCE / run / "summary").iterdir():
        row = " | ".join((path.stem, *cells(read_summary(path))))
        assert f"\n| {row} |" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_shows_what_its_command_prints(command: str) -> None:
    printed = subprocess.check_output(["bash", "-c", command], cwd=CHECKOUT, text=True)
    assert f"```\n{printed}```" in PAGE


def test_the_pages_files_are_there() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert len(linked) > 5
    for link in linked:
        assert (CHECKOUT / "docs" / link).exists(), link


def test_readme_shows_the_three_seeds_numbers() -> None:
    claims = json.loads((EVIDENCE / "three-seeds/claims.json").read_text(encoding="utf-8"))
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    sooner, steadier = claims["adam-sooner"], claims["nodropout-steadier"]
    low, high = sooner["interval"]
    assert f"{sooner['mean_difference']:.2f} epochs more" in readme
    assert f"{low:.2f} to {high:.2f})" in readme
    half = (steadier["interval"][1] - steadier["interval"][0]) / 2
    assert f"{-steadier['mean_difference']:.3f} less, give or take {half:.3f}" in readme
    assert f"by {-100 * claims['sigmoid-final']['mean_difference']:.0f} points" in readme
