"""Build the padded, balanced subset of both splits."""

from pathlib import Path

from stages.lib.command import run
from stages.lib.files import replacing_folder
from stages.lib.idx import parse
from stages.lib.params import load_params
from stages.lib.subset import choose, save_split

PREFIX = {"train": "train", "test": "t10k"}  # of MNIST's file names


def main(raw: Path, subset: Path) -> None:
    """Build the padded, balanced subset of both splits."""
    data = load_params().data
    splits = {}
    for name, prefix in PREFIX.items():
        images, labels = (
            parse(str(path), path.read_bytes())
            for path in (raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte")
        )
        splits[name] = choose(name, images, labels, data.classes, data.per_class, data.pad)
    with replacing_folder(subset) as folder:
        for name, split in splits.items():
            save_split(folder / f"{name}.safetensors", split)
            print(f"{name}: {len(split.labels)} images, {split.images.shape} uint8")


if __name__ == "__main__":
    run(main)
