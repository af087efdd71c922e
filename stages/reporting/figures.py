"""The figures, as matplotlib draws them."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.learning.split import Split
from stages.reporting.tables import CurveRow

# Okabe and Ito's palette, which the colour-blind can tell apart (https://jfly.uni-koeln.de/color/).
# A colour has one meaning: these are the variants', in the order of params.yaml.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TRAIN, TEST, SEEN = "#888888", "#000000", "#E69F00"  # SEEN: while training
WIDTH = 9.0  # inches
DIGITS_IN_ROW = 10

Curves = Mapping[str, Sequence[CurveRow]]  # by variant: a row per seed and epoch, seed after seed


def sample_digits(split: Split) -> Figure:
    """Draw a row of the first ten images of each class, as the notebook does."""
    labels = list(dict.fromkeys(split.labels.tolist()))
    side = split.images.shape[-1]
    canvas = np.zeros((len(labels) * side, DIGITS_IN_ROW * side), np.uint8)
    for row, label in enumerate(labels):
        for column, image in enumerate(split.images[split.labels == label][:DIGITS_IN_ROW, 0]):
            canvas[row * side :, column * side :][:side, :side] = image
    # Half an inch for each image, and the title.
    figure = Figure(figsize=(5.5, 0.5 * len(labels) + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas, cmap="gray")
    axes.set_yticks(
        [(row + 0.5) * side for row in range(len(labels))], [str(label) for label in labels]
    )
    axes.set_xticks([])
    axes.set_ylabel("label")
    axes.set_title(f"The first {DIGITS_IN_ROW} training images of each class")
    return figure


def modes(curves: Curves) -> Figure:
    """Draw the accuracy in training mode beside that in evaluation mode, a panel per variant."""
    figure, panels = _panels(len(curves), sharey=True)
    for axes, (variant, rows) in zip(panels, curves.items(), strict=True):
        _draw(axes, rows, "seen_accuracy", "training mode", SEEN, "^")
        _draw(axes, rows, "train_accuracy", "evaluation mode", TRAIN, "s")
        axes.plot(
            [row.epoch for row in rows],
            [row.test_accuracy_batch_statistics for row in rows],
            "*",
            color=TEST,
            markersize=11,
            label="test images with batch statistics (last epoch)",
        )
        _label_accuracy(axes, variant)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Accuracy on the training images, in training mode and in evaluation mode")
    return figure


def accuracy_by_variant(curves: Curves) -> Figure:
    """Draw train and test accuracy against epoch, a panel per variant with equal axes."""
    figure, panels = _panels(len(curves), sharey=True)
    for axes, (variant, rows) in zip(panels, curves.items(), strict=True):
        for column, label, colour, marker in (
            ("train_accuracy", "train", TRAIN, "s"),
            ("test_accuracy", "test", TEST, "o"),
        ):
            _draw(axes, rows, column, label, colour, marker)
        _label_accuracy(axes, variant)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def test_accuracies(curves: Curves) -> Figure:
    """Draw the test accuracy against epoch of all variants in one panel."""
    figure, (axes,) = _panels(1)
    for position, (variant, rows) in enumerate(curves.items()):
        colour, marker = PALETTE[position % len(PALETTE)], "osD^vPX"[position % 7]
        _draw(axes, rows, "test_accuracy", variant, colour, marker)
    _label_accuracy(axes, "Test accuracy")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def confusion(counts: Mapping[str, npt.NDArray[np.int64]], classes: Sequence[int]) -> Figure:
    """Draw a matrix per variant: counts over all seeds, coloured by share of the actual class."""
    figure, panels = _panels(len(counts), height=4.2)
    for axes, (variant, matrix) in zip(panels, counts.items(), strict=True):
        share = matrix / matrix.sum(axis=1, keepdims=True)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for actual, predicted in np.argwhere(matrix):
            axes.text(
                predicted,
                actual,
                str(matrix[actual, predicted]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[actual, predicted] > 0.5 else "black",
            )
        axes.set_xticks(range(matrix.shape[1]))
        axes.set_yticks(range(len(classes)), [str(digit) for digit in classes])
        axes.set_xlabel("predicted")
        axes.set_ylabel("actual")
        axes.set_title(variant)
    figure.suptitle("Test images by actual and predicted class")
    return figure


def gradient_norms(curves: Curves) -> Figure:
    """Draw gradient norm against layer, a line per epoch, a panel per variant with equal axes."""
    figure, panels = _panels(len(curves), sharey=True)
    for axes, (variant, rows) in zip(panels, curves.items(), strict=True):
        layers = list(rows[0].gradients)
        epochs = list(dict.fromkeys(row.epoch for row in rows))
        for epoch in epochs:
            norms = [[*row.gradients.values()] for row in rows if row.epoch == epoch]
            shade = colormaps["viridis"](0.9 * (1 - (epoch - 1) / max(1, len(epochs) - 1)))
            label = f"epoch {epoch}" if epoch in (epochs[0], epochs[-1]) else None
            axes.plot(np.mean(norms, axis=0), color=shade, label=label, linewidth=1.2)
        axes.set_xticks(range(len(layers)), layers, rotation=60, fontsize=8)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.set_ylabel("L2 norm")
        axes.set_title(variant)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(
        "Norm of the gradient of each layer's weight: a line per epoch, from light to dark"
    )
    return figure


def _panels(count: int, height: float = 3.2, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows if columns > 1 else 5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten()
    for unused in panels[count:]:
        unused.remove()
    return figure, list(panels[:count])


def _draw(
    axes: Axes, rows: Sequence[CurveRow], column: str, label: str, colour: str, marker: str
) -> None:
    """Draw a thin line per seed, and where there are several, their mean as a thick one."""
    by_seed = [list(group) for _, group in groupby(rows, key=lambda row: row.seed)]
    epochs = [row.epoch for row in by_seed[0]]
    values = np.array([[getattr(row, column) for row in group] for group in by_seed])
    if len(values) > 1:
        axes.plot(epochs, values.T, color=colour, alpha=0.35, linewidth=0.8)
    axes.plot(epochs, values.mean(axis=0), color=colour, marker=marker, markersize=4, label=label)


def _label_accuracy(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
