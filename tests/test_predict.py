"""`python -m tools.predict`: pictures of one's own become digits, or one line says why not."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from stages.learning.inference import Images
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.weights import save_weights, untrained
from stages.support.errors import InputError
from stages.support.params import load_params
from stages.support.tensors import read_tensors, write_tensors
from tests.conftest import TINY
from tools import predict
from tools.copies import plain_params, write_params

DARK, LIGHT = 25, 225


def draw(
    digit: int, size: int = 100, angle: float = 0, ink: int = DARK, paper: int = LIGHT
) -> Image.Image:
    """Return a picture of a digit: so many pixels high, turned by so many degrees."""
    picture = Image.new("L", (2 * size, 2 * size), paper)
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(picture).text((0.7 * size, 0.4 * size), str(digit), fill=ink, font=font)
    return picture.rotate(angle, fillcolor=paper)


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Return what `as_mnist` makes of a picture, saved under a name."""

    def show(picture: Image.Image, name: str = "x.png", **options: Any) -> np.ndarray:
        picture.save(tmp_path / name, **options)
        return predict.as_mnist(tmp_path / name).astype(float)

    return show


def test_a_digit_is_white_on_black_in_20_pixels_with_its_mass_in_the_middle(
    shown: Callable[..., np.ndarray],
) -> None:
    for digit in range(10):
        image = shown(draw(digit, angle=7 * digit - 30))
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) == predict.BOX - 1
        assert image.max() == 255 and np.median(image) == 0
        for axis in (0, 1):
            mass = image.sum(axis=1 - axis)
            assert abs(mass @ np.arange(28) / mass.sum() - 13.5) <= 0.6


def test_ink_paper_size_and_format_make_no_difference(shown: Callable[..., np.ndarray]) -> None:
    expected = shown(draw(4))
    assert (shown(draw(4, ink=LIGHT, paper=DARK)) == expected).all()
    assert (shown(draw(4, ink=0, paper=255).convert("RGB")) - expected).max() < 40
    turned = draw(4).rotate(-90, expand=True)  # as a phone saves it, with a note to turn it back
    exif = Image.Exif()
    exif[0x0112] = 8
    assert (shown(turned, exif=exif) == expected).all()
    clear = Image.new("RGBA", (200, 200))
    clear.paste((0, 0, 0, 255), mask=ImageOps.invert(draw(4, ink=0, paper=255)))
    white = Image.new("RGBA", (200, 200), (255, 255, 255, 0))
    white.putalpha(clear.getchannel("A"))
    for other in (draw(4, size=300), clear, white):
        assert np.abs(shown(other) - expected).mean() < 12
    assert np.abs(shown(draw(4), "x.jpg") - expected).mean() < 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a tiny network that has learned drawn digits."""
    folder = tmp_path_factory.mktemp("model")
    params = plain_params(Path(__file__).parents[1])
    params["network"] = TINY | {"widths": [8, "M", 16, "M", 16, "M"], "hidden": [32]}
    params["data"] |= {"pad": 3, "classes": [*range(10)], "scale": "unit"}
    params["variant"] = "drawn"
    params["variants"] = {
        "drawn": {"activation": "relu", "dropout": 0, "optimizer": "adam", "lr": 0.003}
    }
    write_params(folder, params)
    loaded = load_params(folder / "params.yaml")
    images, labels = [], []
    for digit in range(10):
        for angle in range(-12, 13, 3):
            draw(digit, angle=angle).save(folder / "x.png")
            images.append(np.pad(predict.as_mnist(folder / "x.png"), 3))
            labels.append(digit)
    split = Images(torch.from_numpy(np.stack(images)[:, None]), torch.tensor(labels))
    set_seed(0, epoch=0)
    description = loaded.training("drawn", 0) | {"precision": "fp32"}
    network = untrained(description)
    optimizer = make_optimizer(network, loaded.variants["drawn"])
    for _ in train(network, optimizer, {"train": split, "test": split}, 0, range(1, 11), 10):
        pass
    save_weights(folder / "model.safetensors", network, description)
    return folder / "model.safetensors"


def run(*arguments: object) -> None:
    """Call the command with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        predict.main()


def test_drawn_digits_are_told_with_their_probability(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for digit in range(10):  # other sizes, angles, inks and formats than it has learned
        light = digit % 2 == 0
        picture = draw(digit, 160, 2 * digit - 9, *((LIGHT, DARK) if light else (DARK, LIGHT)))
        files.append(tmp_path / f"{digit}.{'png' if digit % 3 else 'jpg'}")
        picture.save(files[-1])
    run("--model", model, *files)
    lines = capsys.readouterr().out.splitlines()
    told = [
        line.removeprefix(f"{file}: ").split(" ") for line, file in zip(lines, files, strict=True)
    ]
    assert [digit for digit, _ in told] == [str(digit) for digit in range(10)]
    assert all(50 < float(chance.strip("(%)")) <= 100 for _, chance in told)


def test_what_is_no_picture_or_shows_no_digit_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    draw(3).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    Image.fromarray(noise).save(tmp_path / "damaged.png")
    damaged = bytearray((tmp_path / "damaged.png").read_bytes())
    damaged[[match.start() for match in re.finditer(b"IDAT", damaged)][1]] = 0
    (tmp_path / "damaged.png").write_bytes(damaged)
    Image.new("L", (50, 50), 200).save(tmp_path / "empty.png")
    ImageOps.expand(draw(3), border=1).save(tmp_path / "framed.png")
    faint = 40_000 - 50 * (np.asarray(draw(3)) == DARK)
    Image.fromarray(faint.astype(np.uint16)).save(tmp_path / "faint.png")
    paper = np.full((1000, 1000), 255, np.uint8)
    paper[[100, 900], [100, 900]] = 0
    Image.fromarray(paper).save(tmp_path / "specks.png")
    reasons = {
        "missing": "no picture: No such file or directory",
        "text": "no picture: cannot identify image file",
        "folder": "no picture: Is a directory",
        "cut": "no picture: ",
        "damaged": "no picture: ",
        "empty": "shows no digit: ",
        "faint": "shows no digit: ",
        "specks": "shows no digit: only specks",
        "framed": "most of it differs from its edge: ",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=rf"^{tmp_path}/{name}\.png: {reason}.*\Z"):
            predict.as_mnist(tmp_path / f"{name}.png")


def test_a_missing_model_is_told_with_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`make smoke` makes one"):
        run("--model", tmp_path / "no", tmp_path / "x.png")


def test_a_model_whose_training_diverged_tells_no_digit(model: Path, tmp_path: Path) -> None:
    tensors, description = read_tensors(model)
    next(iter(tensors.values())).fill(np.nan)
    write_tensors(tmp_path / "diverged", tensors, description)
    draw(3).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="diverged: its training diverged"):
        run("--model", tmp_path / "diverged", tmp_path / "x.png")


@pytest.mark.parametrize(("paper", "ink"), [(60_000, 30_000), (3_000, 300), (0, 65_535)])
def test_a_picture_of_16_bits_is_not_clipped(
    shown: Callable[..., np.ndarray], paper: int, ink: int
) -> None:
    eight = np.asarray(draw(4), np.float64)
    share = (eight - DARK) / (LIGHT - DARK)  # of paper
    sixteen = (ink + share * (paper - ink)).astype(np.uint16)
    np.testing.assert_allclose(shown(Image.fromarray(sixteen)), shown(draw(4)), atol=8)


def test_a_picture_of_16_bits_is_turned_as_it_says(shown: Callable[..., np.ndarray]) -> None:
    upside_down = Image.fromarray(np.asarray(draw(4).rotate(180)).astype(np.uint16) * 256)
    orientation = Image.Exif()
    orientation[0x112] = 3  # turned by 180 degrees
    turned = shown(upside_down, exif=orientation)
    np.testing.assert_allclose(turned, shown(draw(4)), atol=8)
