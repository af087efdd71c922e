"""Evaluate the saved weights of one variant again, and sum up its seeds."""

import math
from pathlib import Path

import torch

from stages.lib.command import InputError, run
from stages.lib.device import prepare
from stages.lib.evaluation import Score, load_tensors, predict, predict_with_batch_statistics, score
from stages.lib.files import Row, write_csv
from stages.lib.params import CLASSES, load_params
from stages.lib.results import read_rows, require_exactly, write_json
from stages.lib.summary import plus_minus, summarise
from stages.lib.weights import load_network

# Another machine rounds differently; other weights differ by far more.
ACCURACY_TOLERANCE = 0.002
LOSS_TOLERANCE = 0.01  # relative
# Images in a batch whose own statistics are taken: as in training by default, and the same for
# all, so that variants and experiments compare.
BATCH = 64
BATCH_COLUMN = "test_accuracy_batch_statistics"
COLUMNS = ("epoch", "train_accuracy", "train_loss", "test_accuracy", "test_loss")


def main(
    variant: str,
    models: Path,
    histories: Path,
    subset: Path,
    summary: Path,
    curves: Path,
    confusion: Path,
) -> None:
    """Evaluate the saved weights of one variant again, and sum up its seeds."""
    params = load_params()
    if variant not in params.variants:
        raise InputError(
            f"params.yaml names no variant {variant}: there are {', '.join(params.variants)}"
        )
    remedy = "`dvc checkout` removes it, or remove it by hand, then `dvc repro`"
    require_exactly(models, [f"{seed}.safetensors" for seed in params.seeds], remedy)
    require_exactly(histories, [f"{seed}.csv" for seed in params.seeds], remedy)

    device = prepare(params.train.device)
    test = load_tensors(subset, "test", device)

    learned: list[list[Row]] = []
    precisions = []
    batch_statistics = []
    confusion_rows: list[Row] = []
    for seed in params.seeds:
        weights, history = models / f"{seed}.safetensors", histories / f"{seed}.csv"
        learned.append(read_rows(history, COLUMNS))
        if not all(0 <= float(row["test_accuracy"]) <= 1 for row in learned[-1]):
            raise InputError(
                f"{history} has a test accuracy that is none; `dvc checkout --force` restores it"
            )
        network = load_network(weights).to(device)
        precisions.append(network.precision)
        logits = predict(network, test.images)
        result = score(logits, test.labels)
        require_agreement(result, learned[-1][-1], weights, history)
        confusion_rows += [
            {"variant": variant, "seed": seed, **row}
            for row in count_confusion(logits, test.labels)
        ]
        logits = predict_with_batch_statistics(network, test.images, BATCH)
        batch_statistics.append(score(logits, test.labels).accuracy)
        own, batch = (
            f"{accuracy:.4f} ± {plus_minus([accuracy], len(test.labels)):.4f}"
            for accuracy in (result.accuracy, batch_statistics[-1])
        )
        print(
            f"{variant}, seed {seed}: test accuracy {own}, with batch statistics {batch}",
            flush=True,
        )

    write_csv(
        curves,
        [
            # The weights of the other epochs are gone.
            {"variant": variant, "seed": seed, **row}
            | {BATCH_COLUMN: after if row is rows[-1] else math.nan, "precision": precision}
            for seed, precision, rows, after in zip(
                params.seeds, precisions, learned, batch_statistics, strict=True
            )
            for row in rows
        ],
    )
    write_csv(confusion, confusion_rows)
    write_json(summary, summarise(learned, batch_statistics, len(test.labels)))


def require_agreement(result: Score, last: Row, weights: Path, history: Path) -> None:
    """Check that the weights score as the history's last row says.

    Raises:
        InputError: they do not, so one of the two files belongs to another training.
    """
    accuracy, loss = float(last["test_accuracy"]), float(last["test_loss"])
    same_loss = math.isclose(result.loss, loss, rel_tol=LOSS_TOLERANCE, abs_tol=1e-6)
    both_diverged = not math.isfinite(result.loss) and not math.isfinite(loss)
    if abs(result.accuracy - accuracy) > ACCURACY_TOLERANCE or not (same_loss or both_diverged):
        raise InputError(
            f"{weights} has test accuracy {result.accuracy:.4f} and loss {result.loss:.4f}, but "
            f"{history} ends with {accuracy:.4f} and {loss:.4f}: they are not of one training; "
            "`dvc checkout --force` restores both, or `dvc repro` trains again"
        )


def count_confusion(logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, int]]:
    """Return, for every pair of actual and predicted class, how many images it has."""
    pairs = CLASSES * labels.cpu() + logits.argmax(dim=1)
    counts = torch.bincount(pairs, minlength=CLASSES**2).tolist()
    return [
        {"actual": pair // CLASSES, "predicted": pair % CLASSES, "count": count}
        for pair, count in enumerate(counts)
    ]


if __name__ == "__main__":
    run(main)
