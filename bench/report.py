"""The benchmark's results as tables and as a bar chart."""

from typing import Any

from matplotlib.figure import Figure

from bench.epoch import IMAGES


def tables(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    measured, whole = results["images"], f"an epoch of {IMAGES} images"
    extrapolated = "" if measured == IMAGES else f" extrapolated from {measured}"
    lines = [
        "| | training | evaluation | epoch | faster | GFLOP/s | of the peak | memory |",
        "|---" * 8 + "|",
        *(
            f"| {name} | {row['train_seconds']:.1f} s | {row['evaluate_seconds']:.1f} s | "
            f"{row['epoch_seconds']:.1f} s | {row['ratio']:.2f} | {row['flops'] / 1e9:.0f} | "
            f"{row['fraction_of_peak']:.2f} | {row['peak_memory_bytes'] / 1e9:.2f} GB |"
            for name, row in results["contenders"].items()
        ),
        "",
        f"{results['date']}, {whole}{extrapolated}, with Adam, median of {results['rounds']} in "
        f"turns, on {results['where']}. GFLOP/s are those of the notebook's network, whatever was "
        "left out.",
        *(
            f"Products of large matrices reach {peak / 1e9:.0f} GFLOP/s in {precision}."
            for precision, peak in results["peak_flops"].items()
        ),
        "",
        "Training and one evaluation of "
        + ", ".join(f"{size} images: {x:.2f} s" for size, x in results["growth"].items())
        + ".",
    ]
    if pair := results.get("side_by_side"):
        lines += [
            "",
            f"Two trainings of {measured} images side by side, with half the threads each: "
            f"{pair['side_by_side_seconds']:.1f} s; one after the other, with all of them: "
            f"{pair['one_after_the_other_seconds']:.1f} s; ratio {pair['ratio']:.2f}.",
        ]
    if memory := results.get("whole_epoch_memory_bytes"):
        held = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in memory.items())
        lines += [
            "",
            f"Memory in {whole}: {held}; before is Python, PyTorch and the images, without a "
            "network.",
        ]
    if steps := results.get("road"):
        lines += ["", "| step | epoch | faster than before it | memory |", "|---" * 4 + "|"]
        lines += [
            f"| {name} | {row['epoch_seconds']:.1f} s | {row['ratio']:.2f} | "
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB |"
            for name, row in steps.items()
        ]
    return "\n".join(lines)


def draw(results: dict[str, Any]) -> Figure:
    """Return a bar per contender: the seconds of an epoch, split into training and evaluation."""
    names = [*results["contenders"]][::-1]
    rows = [results["contenders"][name] for name in names]
    train = [row["train_seconds"] for row in rows]
    evaluation = [row["evaluate_seconds"] for row in rows]
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, train, label="training", color="#2a6f97")
    bars = axes.barh(names, evaluation, left=train, label="evaluation", color="#a9d6e5")
    labels = [f"{row['epoch_seconds']:.1f} s, {row['ratio']:.2f} times as fast" for row in rows]
    axes.bar_label(bars, labels, padding=4)
    axes.set_xlim(0, 1.4 * max(row["epoch_seconds"] for row in rows))
    axes.set_xlabel("seconds per epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
