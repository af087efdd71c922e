"""The IDX format of MNIST.

Source: http://yann.lecun.com/exdb/mnist/, "File formats for the MNIST database".
"""

import math
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from stages.support.errors import InputError
from stages.support.params import CLASSES, SIDE


def parse(name: str, content: bytes) -> npt.NDArray[np.uint8]:
    """Return what an IDX file holds: images (N, 28, 28), or labels (N) of ten classes.

    Args:
        name: of the file; says which of the two it must be.
        content: of the file, decompressed.

    Raises:
        InputError: it is not a whole IDX file of that kind.
    """
    item = (SIDE, SIDE) if "images" in PurePath(name).name else ()
    # Magic number: two zero bytes, 8 for unsigned bytes, the number of dimensions. Then each
    # dimension as a big-endian 32-bit number, then the values, the last dimension fastest.
    start = 4 + 4 * (1 + len(item))
    magic = bytes((0, 0, 8, 1 + len(item)))
    if len(content) < start or not content.startswith(magic):
        raise InputError(f"{name} is not an IDX file of its kind: begins with {content[:16]!r}")
    count, *shape = (int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if tuple(shape) != item:
        raise InputError(f"{name} has images of {shape}, must be {list(item)}")
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != count * math.prod(item):
        raise InputError(f"{name} is not whole: {values.size} values for {count} items")
    if not item and values.max(initial=0) >= CLASSES:
        raise InputError(f"{name} has label {values.max()}, must be below {CLASSES}")
    return values.reshape(count, *item)
