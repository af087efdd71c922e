"""The rows of the tables that DVC charts and compares: their columns and types."""

from pydantic import BaseModel, ConfigDict

from stages.learning.history import EpochRow
from stages.support.params import Precision


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
    actual: int
    predicted: int
    count: int
