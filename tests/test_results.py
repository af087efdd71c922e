"""What is summed up of a variant, and what does not count as its result."""

import math
from pathlib import Path

import pytest

from stages.evaluate import require_agreement
from stages.lib.command import InputError
from stages.lib.evaluation import Score
from stages.lib.files import Row, replacing, replacing_folder, write_csv
from stages.lib.results import read_rows, require_exactly
from stages.lib.summary import plus_minus, summarise


def history(*test_accuracies: float, loss: float = 0.25) -> list[dict[str, float]]:
    """Return the rows of a training with those test accuracies."""
    return [
        {
            "epoch": epoch,
            "train_accuracy": 0.5,
            "train_loss": 0.125,
            "test_accuracy": accuracy,
            "test_loss": loss,
        }
        for epoch, accuracy in enumerate(test_accuracies, start=1)
    ]


def test_a_summary_is_the_mean_over_the_seeds() -> None:
    summary = summarise([history(0.25, 1.0, 0.5), history(0.5, 0.25, 0.75)], [0.5, 1.0], 100)
    assert summary == {
        "test": {
            "accuracy": 0.625,
            "accuracy_plus_minus": pytest.approx(0.25 / math.sqrt(2)),
            "best_accuracy": 0.875,
            "best_accuracy_plus_minus": pytest.approx(0.25 / math.sqrt(2)),
            "best_epoch": 2.5,
            "accuracy_batch_statistics": 0.75,
            "accuracy_batch_statistics_plus_minus": pytest.approx(0.5 / math.sqrt(2)),
            "loss": 0.25,
        },
        "train": {"accuracy": 0.5, "loss": 0.125},
        "oscillation": (0.75 + 0.5 + 0.25 + 0.5) / 4,
        "epochs": 3,
        "seeds": 2,
    }


def test_what_one_seed_or_one_epoch_cannot_tell_is_null() -> None:
    summary = summarise([history(0.5, loss=math.nan)], [0.5], 100)
    assert summary["oscillation"] is None
    assert isinstance(summary["test"], dict)
    assert summary["test"]["loss"] is None
    assert summary["test"]["accuracy_plus_minus"] == plus_minus([0.5], 100)
    assert summary["test"]["best_epoch"] == 1


def test_one_seeds_uncertainty_is_wilsons() -> None:
    # Wilson's interval of k = 10 of n = 100, z = 1.95996: centre (k + z^2 / 2) / (n + z^2), which
    # is 0.1148, half its width z sqrt(k (n - k) / n + z^2 / 4) / (n + z^2), which is 0.05957.
    assert plus_minus([0.1], 100) == pytest.approx(0.1148 + 0.05957 - 0.1, abs=1e-4)
    assert plus_minus([1.0], 6000) == pytest.approx(3.8414 / 6003.84, rel=1e-3)


@pytest.mark.parametrize(
    ("accuracy", "loss", "agrees"),
    [
        (0.9, 0.5, True),
        (0.9019, 0.5, True),
        (0.9021, 0.5, False),
        (0.9, 0.5049, True),
        (0.9, 0.506, False),
        (0.9, math.nan, False),
    ],
)
def test_weights_must_score_as_their_history_says(
    accuracy: float, loss: float, agrees: bool
) -> None:
    last = {"test_accuracy": 0.9, "test_loss": 0.5}
    found = Score(accuracy, loss)
    if agrees:
        require_agreement(found, last, Path("w"), Path("h"))
    else:
        with pytest.raises(InputError, match="not of one training"):
            require_agreement(found, last, Path("w"), Path("h"))


def test_a_diverged_training_agrees_with_itself() -> None:
    last = {"test_accuracy": 0.1, "test_loss": math.nan}
    require_agreement(Score(0.1, math.nan), last, Path("w"), Path("h"))


def test_a_folder_must_hold_what_params_names(tmp_path: Path) -> None:
    (tmp_path / "0.csv").touch()
    (tmp_path / "9.csv.tmp").touch()
    require_exactly(tmp_path, ["0.csv"], "")
    with pytest.raises(InputError, match=r"1\.csv missing"):
        require_exactly(tmp_path, ["0.csv", "1.csv"], "")
    (tmp_path / "7.csv").touch()
    with pytest.raises(InputError, match=r"7\.csv .*do this"):
        require_exactly(tmp_path, ["0.csv"], "do this")


def test_rows_come_back_to_the_bit(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"variant": "adam", "epoch": 1, "loss": 1 / 3},
        {"variant": "adam", "epoch": 2, "loss": 1e-300},
    ]
    write_csv(tmp_path / "x.csv", rows)
    assert read_rows(tmp_path / "x.csv", ["epoch", "loss"]) == rows


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n", b"\xff\xfe\x00", b"a,b\n1\n", b"a\n1,2\n", b"b\n1\n", b"a\nx\n"]
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.csv"):
        read_rows(tmp_path / "x.csv", ["a"])


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(InputError, match="was not written: full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    with (
        pytest.raises(InputError, match="was not written: full"),
        replacing_folder(folder) as temporary,
    ):
        (temporary / "file").write_text("half")
        raise OSError("full")
    assert path.read_text() == (folder / "file").read_text() == "old"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder"]
