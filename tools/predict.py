"""Say which digit a picture of your own shows: `python -m tools.predict FILE...`."""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from stages.learning.inference import predict
from stages.learning.weights import load_network
from stages.support.errors import InputError, errors_as_messages
from stages.support.params import SIDE
from stages.support.tensors import read_tensors

MODEL = Path("models/selected.safetensors")
BOX = 20  # pixels of the longer side of a digit of MNIST, within its 28
CONTRAST = 32  # of 255; a picture with less shows nothing
FAINT = 0.2  # of the strongest ink; what is fainter is paper, shadow or noise


def main() -> None:
    """Print a line for each picture: the digit, and the probability that the model gives it."""
    parser = argparse.ArgumentParser("python -m tools.predict", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a PNG, JPEG ...")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help=f"weights of `train`; by default {MODEL}"
    )
    options = parser.parse_args()
    if not options.model.exists():
        raise InputError(
            f"{options.model}: not there: `dvc repro` makes {MODEL}, or `dvc pull` brings it where "
            "a remote is set; --model names another: `make smoke` makes one in minutes"
        )
    try:
        network = load_network(options.model)
    except InputError as error:
        if options.model == MODEL:
            raise
        reason = str(error).partition(";")[0]  # The remedy is for the models of this checkout.
        raise InputError(f"{reason}; name weights that `train` wrote") from None
    _, description = read_tensors(options.model)
    pictures = np.stack([as_mnist(path) for path in options.files])
    pad = description["pad"]
    padded = np.pad(pictures, ((0, 0), (pad, pad), (pad, pad)))
    logits = predict(network, torch.from_numpy(padded[:, None]))
    if not logits.isfinite().all():
        raise InputError(f"{options.model}: its training diverged, so it knows no digit")
    for path, probabilities in zip(options.files, logits.softmax(dim=1), strict=True):
        digit = int(probabilities.argmax())
        print(f"{path}: {digit} ({probabilities[digit]:.1%})")


def as_mnist(path: Path) -> npt.NDArray[np.uint8]:
    """Return a picture of one digit as MNIST would have it: uint8 (28, 28), white on black.

    As in MNIST, the digit is scaled into 20x20 pixels, and its centre of mass is in the middle
    (http://yann.lecun.com/exdb/mnist/). It may be dark on light or light on dark, of any size.

    Raises:
        InputError: the file is missing, is no picture, or shows nothing, or has no background.
    """
    grey = read_grey(path).astype(np.float64)
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(edge))  # The edge of the picture is taken for the background.
    if ink.max() < CONTRAST:
        raise InputError(f"{path}: shows no digit: all of it is nearly the same grey")
    ink = np.where(ink < FAINT * ink.max(), 0, 255 * ink / ink.max())
    if (ink > 0).mean() > 0.5:
        raise InputError(
            f"{path}: most of it differs from its edge: crop it to a digit on an even background, "
            "without a frame"
        )

    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    digit = Image.fromarray(
        ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    )
    scale = BOX / max(digit.size)
    size = (max(1, round(scale * digit.width)), max(1, round(scale * digit.height)))
    digit = digit.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(digit, np.float64)
    if not pixels.any():
        raise InputError(f"{path}: shows no digit: only specks, far from each other")
    pixels *= 255 / pixels.max()  # Thin strokes grow faint when they are made smaller.
    height, width = pixels.shape
    middle_y = (pixels.sum(axis=1) @ np.arange(height)) / pixels.sum()
    middle_x = (pixels.sum(axis=0) @ np.arange(width)) / pixels.sum()
    top = int(np.clip(round(SIDE / 2 - 0.5 - middle_y), 0, SIDE - height))
    left = int(np.clip(round(SIDE / 2 - 0.5 - middle_x), 0, SIDE - width))
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = pixels.astype(np.uint8)
    return image


def read_grey(path: Path) -> npt.NDArray[np.uint8]:
    """Return the grey levels of a picture, uint8 (height, width), the right way up.

    What is transparent becomes white, or black where the picture would vanish on white.

    Raises:
        InputError: the file is missing or is no picture.
    """
    try:
        with Image.open(path) as picture:
            upright = eight_bits(ImageOps.exif_transpose(picture)).convert("RGBA")
    # Pillow raises the second and third for some damaged PNG files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture: {getattr(error, 'strerror', 0) or error}") from None
    for background in ("white", "black"):
        on_background = Image.new("RGBA", upright.size, background)
        on_background.alpha_composite(upright)
        grey = np.asarray(on_background.convert("L"))
        if np.ptp(grey) >= CONTRAST:
            break
    return grey


def eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture of 16 or 32 bits a pixel with 8, which Pillow itself would clip."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, np.float64)
    low, high = values.min(), values.max()
    # A picture with less contrast shows nothing, and is not stretched until it shows something.
    span = max(high - low, CONTRAST / 255 * max(abs(low), abs(high)), 1e-9)
    return Image.fromarray((255 * (values - low) / span).astype(np.uint8))


if __name__ == "__main__":
    with errors_as_messages():
        main()
