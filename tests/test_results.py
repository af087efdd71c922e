"""What is summed up of a variant, how a result is written and read, and what counts as none."""

import json
import math
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from stages.evaluate import Evaluated, count_confusion, curve_rows, require_agreement
from stages.learning.history import EpochRow
from stages.learning.inference import Score
from stages.reporting.summary import Summary, plus_minus, summarise, uncertainty
from stages.reporting.tables import ConfusionRow, CurveRow
from stages.support.atomic import write_json
from stages.support.errors import InputError
from stages.support.tables import read_record, read_table, write_table
from tests.conftest import Project
from tools import table


def history(*test_accuracies: float, loss: float = 0.25) -> list[EpochRow]:
    """Return the rows of a training with those test accuracies."""
    return [
        EpochRow.model_validate(
            {
                "epoch": epoch,
                "train_accuracy": 0.5,
                "train_loss": 0.125,
                "test_accuracy": accuracy,
                "test_loss": loss,
                "seen_accuracy": 0.375,
                "seen_loss": 0.5,
                "gradient_conv1": 1 / epoch,
                "gradient_linear1": 2 / epoch,
            }
        )
        for epoch, accuracy in enumerate(test_accuracies, start=1)
    ]


def test_a_summary_is_the_mean_over_the_seeds() -> None:
    histories = [history(0.25, 1.0, 0.5), history(0.5, 0.25, 0.75, loss=0.75)]
    assert summarise(histories) == Summary(
        accuracy=0.625,
        loss=0.5,
        best=0.875,
        best_epoch=2.5,
        falls=(0.5 / 2 + 0.25 / 2) / 2,
        train=0.5,
    )
    assert uncertainty(histories, [0.5, 1.0], 100).model_dump() == {
        "accuracy_plus_minus": pytest.approx(0.25 / math.sqrt(2)),
        "best_plus_minus": pytest.approx(0.25 / math.sqrt(2)),
        "batch_statistics": 0.75,
        "batch_statistics_plus_minus": pytest.approx(0.5 / math.sqrt(2)),
        "epochs": 3,
        "seeds": 2,
    }


def test_what_one_seed_or_one_epoch_cannot_tell_is_null() -> None:
    diverged = [history(0.5, loss=math.nan)]
    summary = summarise(diverged)
    assert (summary.falls, summary.loss, summary.best_epoch) == (None, None, 1)
    doubt = uncertainty(diverged, [0.25], 100)
    assert doubt.accuracy_plus_minus == plus_minus([0.5], 100)
    assert doubt.batch_statistics_plus_minus == plus_minus([0.25], 100)


def test_the_first_of_several_best_epochs_counts_and_a_rise_is_no_fall() -> None:
    summary = summarise([history(0.5, 0.75, 0.25, 0.75)])
    assert summary.best_epoch == 2
    assert summary.falls == pytest.approx((0 + 0.5 + 0) / 3)


def test_one_seeds_uncertainty_is_wilsons() -> None:
    # Wilson's interval of k = 10 of n = 100, z = 1.95996: centre (k + z^2 / 2) / (n + z^2), which
    # is 0.1148, half its width z sqrt(k (n - k) / n + z^2 / 4) / (n + z^2), which is 0.05957.
    assert plus_minus([0.1], 100) == pytest.approx(0.1148 + 0.05957 - 0.1, abs=1e-4)
    assert plus_minus([1.0], 6000) == pytest.approx(3.8414 / 6003.84, rel=1e-3)


@pytest.mark.parametrize(
    ("accuracy", "loss", "told_loss", "agree"),
    [
        (0.9, 0.5, 0.5, True),
        (0.9019, 0.5, 0.5, True),
        (0.9021, 0.5, 0.5, False),
        (0.9, 0.5049, 0.5, True),
        (0.9, 0.506, 0.5, False),
        (0.9, math.nan, 0.5, False),
        (0.9, math.nan, math.nan, True),  # of a training that diverged
        (0.9, math.inf, math.inf, True),
    ],
)
def test_weights_must_score_as_their_history_tells(
    accuracy: float, loss: float, told_loss: float, agree: bool
) -> None:
    (last,) = history(0.9, loss=told_loss)
    with nullcontext() if agree else pytest.raises(InputError, match="not of one training"):
        require_agreement(Score(accuracy, loss), last, Path("w"), Path("h"))


def test_a_confusion_counts_every_pair_of_classes() -> None:
    logits = torch.eye(10)[torch.tensor([3, 3, 5, 0])]
    rows = count_confusion(logits, torch.tensor([3, 5, 5, 0]))
    assert len(rows) == 100
    counted = {(row["actual"], row["predicted"]): row["count"] for row in rows if row["count"]}
    assert counted == {(3, 3): 1, (5, 3): 1, (5, 5): 1, (0, 0): 1}


def test_curves_have_the_batch_statistics_of_the_last_epoch_alone(tmp_path: Path) -> None:
    rows = history(0.25, 0.5)
    one = Evaluated(7, rows, "bf16", Score(0.5, 0.25), 0.75, [])
    write_table(tmp_path / "x.csv", curve_rows("adam", one))
    first, last = read_table(tmp_path / "x.csv", CurveRow)
    assert math.isnan(first.test_accuracy_batch_statistics)
    assert last.test_accuracy_batch_statistics == 0.75
    assert (last.variant, last.seed, last.precision) == ("adam", 7, "bf16")
    assert last.gradients == rows[1].gradients == {"conv1": 0.5, "linear1": 1.0}


HEADER = b"variant,seed,actual,predicted,count\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no rows"),
        (HEADER, "no rows"),
        (b"\xff\xfe\x00", "can't decode"),
        (HEADER + b"sgd,0,3\n", "predicted: "),
        (HEADER + b"sgd,0,3,5,1,9\n", "a row is longer than the header"),
        (b"variant,seed,actual,predicted\nsgd,0,3,5\n", "count: Field required"),
        (HEADER + b"sgd,0,3,5,x\n", "count: Input should be a valid integer"),
        (HEADER + b'sgd,0,3,5,"1\n', "unexpected end of data"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.csv: .*{reason}.*; `dvc repro` makes it anew"):
        read_table(tmp_path / "x.csv", ConfusionRow)


def test_a_gradient_that_is_no_number_is_named_with_its_column(tmp_path: Path) -> None:
    write_table(tmp_path / "x.csv", [history(0.5)[0].model_dump() | {"gradient_conv1": "steep"}])
    with pytest.raises(InputError, match=r"x\.csv: gradient_conv1: "):
        read_table(tmp_path / "x.csv", EpochRow)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "Invalid JSON"),
        ("[1]", ""),
        ('{"accuracy": 0.5}', "loss: Field required"),
        ('{"accuracy": "high"}', "accuracy: Input should be a valid number"),
    ],
)
def test_a_file_that_is_no_record_is_named(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"x\.json: .*{reason}.*; `dvc repro` makes it anew"):
        read_record(tmp_path / "x.json", Summary)


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"loss": 0.5}


def test_readme_is_held_to_what_make_table_prints(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "argv", ["table"])
    table.main()
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines()[2:4]] == ["sgd", "adam"]
    with project.params() as params:
        params["train"]["epochs"] = 7
    with pytest.raises(InputError, match=r"sgd have 2 epochs and the seeds \[0\]; params"):
        table.main()
    with project.params() as params:
        params["train"]["epochs"], params["seeds"] = 2, [1]
    with pytest.raises(InputError, match=r"sgd have 2 epochs and the seeds \[0\]; params"):
        table.main()
    project.run("git", "checkout", "--quiet", "params.yaml")
    readme = project.folder / "README.md"
    monkeypatch.setattr(sys, "argv", ["table", "--check"])
    with pytest.raises(InputError, match=r"README\.md lacks the row \| sgd "):
        table.main()
    readme.write_text(f"# Results\n\n{printed}", encoding="utf-8")
    # A plain clone has no timings, and another machine others.
    (project.folder / "metrics/timing/adam/0.csv").unlink()
    table.main()
    (adam,) = (line for line in printed.splitlines() if line.startswith("| adam "))
    readme.write_text(printed.replace(adam, adam.replace("±", "+-", 1)), encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md lacks the row \| adam "):
        table.main()


def test_the_table_of_older_timings_says_what_is_unknown_and_comes_whole_or_not_at_all(
    inside: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["table"])
    # One is from before both columns, and one from before the second.
    older = [{"seconds": 1.5}, {"seconds": 2.5, "cores": 4}]
    write_table(Path("metrics/timing/sgd/0.csv"), older)
    table.main()
    printed = capsys.readouterr().out
    assert re.search(r"\| sgd \|.* \| 2\.0 \|\n", printed)
    assert "unknown cores, unknown threads" in printed and "4 cores, unknown threads" in printed
    adam = Path("metrics/timing/adam/0.csv")
    adam.unlink()
    adam.touch()
    with pytest.raises(InputError, match=r"adam/0\.csv: no rows"):
        table.main()
    assert capsys.readouterr().out == ""
