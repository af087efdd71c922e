"""Run the real pipeline in small, in a copy of this checkout, to show what a run does."""

import argparse
import subprocess
import tempfile
from pathlib import Path

from stages.reporting.tables import CurveRow
from stages.support.errors import InputError, errors_as_messages
from stages.support.git import environment_without_git_variables
from stages.support.params import SIDE, load_params
from stages.support.tables import read_table
from tools.copies import commit_all, copy_checkout, plain_params, write_params

PER_CLASS = 100
PIXELS = 32  # of a side, which five poolings need
# A VGG11 of narrow layers, whose epoch on so few images takes about a second.
NETWORK = {
    "batch_norm_momentum": 0.1,
    "widths": [16, "M", 32, "M", 64, 64, "M", 64, 64, "M", 64, 64, "M"],
    "hidden": [128, 128],
}


def main() -> None:
    """Run the pipeline in a new folder, say what it has shown, and leave the results there."""
    wanted = load_params().data.per_class
    per_class = PER_CLASS if wanted == "all" else min(wanted, PER_CLASS)
    copy = Path(tempfile.mkdtemp(prefix="smoke-"))
    copy_checkout(Path.cwd(), copy)
    params = plain_params(copy)
    params["network"] = NETWORK
    params["data"] |= {"per_class": per_class, "pad": max(0, (PIXELS - SIDE + 1) // 2)}
    for dataset in params["datasets"].values():
        dataset["sources"] = [from_anywhere(source) for source in dataset["sources"]]
    params["train"]["epochs"] = 5
    if Path(".venv").is_dir():
        # So that the Makefile in the copy builds no second environment.
        (copy / ".venv").symlink_to(Path(".venv").absolute())
    variants = list(params["variants"])[:2]
    params["variants"] = {name: params["variants"][name] for name in variants}
    params["variant"], params["seeds"] = variants[-1], params["seeds"][:1]
    write_params(copy, params)
    page = ["python", "-m", "tools.page"]
    for command in (page, ["dvc", "repro"], ["dvc", "plots", "show"]):
        if subprocess.run(
            command, cwd=copy, check=False, env=environment_without_git_variables()
        ).returncode:
            few = f": if a class has fewer than {PER_CLASS} images, name a number in data.per_class"
            raise InputError(
                f"{' '.join(command)} failed in {copy}; see above{few if wanted == 'all' else ''}"
            )
    commit_all(copy)

    images = per_class * len(params["data"]["classes"])
    print(f"\nA narrow VGG11 on {images:,} images in {copy}, test accuracy after each epoch:")
    width = max(map(len, variants))
    for variant in variants:
        rows = read_table(copy / f"metrics/curves/{variant}.csv", CurveRow)
        print(f"  {variant:{width}}", *(f"{row.test_accuracy:.3f}" for row in rows))
    print(f"model:  {copy}/models/selected.safetensors")
    print(f"charts: {copy}/dvc_plots/index.html")


def from_anywhere(source: str) -> str:
    """Return a source of params.yaml so that another folder can name it."""
    return source if ":" in source or source.startswith("~") else str(Path(source).absolute())


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tools.smoke", description=__doc__).parse_args()
    with errors_as_messages():
        main()
