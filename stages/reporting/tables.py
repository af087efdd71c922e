"""The rows of the tables that DVC charts and compares: their columns and types."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from stages.learning.history import EpochRow
from stages.support.params import CLASSES, Precision


class CurveRow(EpochRow):
    """One seed's epoch, with what it belongs to: a row of metrics/curves."""

    variant: str
    seed: int
    # NaN but after the last epoch, since the weights of the other epochs are gone.
    test_accuracy_batch_statistics: float
    precision: Precision


class ConfusionRow(BaseModel):
    """How many test images of a class were taken for another: a row of metrics/confusion."""

    model_config = ConfigDict(frozen=True)

    variant: str
    seed: int
    actual: Annotated[int, Field(ge=0, lt=CLASSES)]
    predicted: Annotated[int, Field(ge=0, lt=CLASSES)]
    count: Annotated[int, Field(ge=0)]
