"""The two figures of evidence/verdicts.json."""

from collections.abc import Mapping, Sequence
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from evidence.paired import Finding
from evidence.statements import FROZEN, MOVING, STATEMENTS, VARIANTS, Block, settled
from stages.reporting.figures import PALETTE, WIDTH

BATCHES_OF_AN_EPOCH = 94


def statements(findings: Mapping[str, Finding]) -> Figure:
    """Draw a panel for each of the five: a point per seed, its difference, and the interval."""
    five = {name: finding for name, finding in findings.items() if STATEMENTS[name].primary}
    figure = Figure(figsize=(WIDTH, 1.15 * len(five)), layout="constrained")
    panels = figure.subplots(len(five), 1)
    for axes, (name, finding) in zip(panels, five.items(), strict=True):
        statement, colour = STATEMENTS[name], PALETTE[0]
        points = [x for x in finding.differences if x is not None]
        axes.plot(points, [0] * len(points), "o", color=colour, alpha=0.5, markersize=5)
        if finding.interval:
            axes.plot(finding.interval, [-0.5] * 2, color=colour, linewidth=2)
            axes.plot(finding.mean, -0.5, "|", color=colour, markersize=11)
        axes.axvline(0, color="black", linewidth=0.8)
        reach = 1.15 * max(map(abs, [*points, *(finding.interval or ()), 1e-9]))
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-1, 0.6)
        axes.set_yticks([])
        axes.set_title(f"{name}. {statement.words}: {finding.verdict}", fontsize=8, loc="left")
        side = "right" if statement.claimed > 0 else "left"
        difference = f"{_words(statement.a)} less {_words(statement.b)}, {statement.unit}"
        axes.set_xlabel(f"{difference}; claimed: the {side} side", fontsize=7)
        axes.tick_params(labelsize=7)
    return figure


def statistics(blocks: Sequence[Block]) -> Figure:
    """Draw accuracy against the noise of the statistics, a panel per variant."""
    figure = Figure(figsize=(WIDTH, 6.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flatten()
    for axes, variant in zip(panels, VARIANTS, strict=True):
        accuracies = [settled(block[variant]) for block in blocks]
        # So many batches have a plain mean that is as noisy as an exponential average.
        as_noisy_as = {column: 2 / momentum - 1 for column, momentum in MOVING.items()}
        of_frozen = {column: count or BATCHES_OF_AN_EPOCH for column, count in FROZEN.items()}
        for columns, label, colour, marker in (
            (as_noisy_as, "moving statistics", PALETTE[1], "s"),
            (of_frozen, "frozen statistics", PALETTE[0], "o"),
        ):
            batches = [*columns.values()]
            for of_seed in accuracies:
                values = [of_seed[column] for column in columns]
                axes.plot(batches, values, color=colour, alpha=0.35, linewidth=0.8)
            means = [mean(of_seed[column] for of_seed in accuracies) for column in columns]
            axes.plot(batches, means, color=colour, marker=marker, markersize=5, label=label)
        seen = mean(of_seed["seen_accuracy"] for of_seed in accuracies)
        axes.axhline(seen, color="black", linestyle=":", label="training mode, training images")
        axes.set_xscale("log")
        axes.set_xticks([1, 3, 19, 94, 199], ["1", "3", "19", "94", "199"], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(variant)
        axes.set_xlabel("as noisy as the mean over so many batches", fontsize=9)
        axes.set_ylabel("accuracy, epochs 3 to 10, points")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _words(side: tuple[str, str]) -> str:
    variant, column = side
    return variant if column == "test_accuracy" else f"{variant} ({column.replace('_', ' ')})"
