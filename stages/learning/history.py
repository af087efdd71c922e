"""What a training tells of each epoch: a row of metrics/history."""

from pydantic import BaseModel, ConfigDict


class EpochRow(BaseModel):
    """One epoch of one training.

    Beside the fields there is a `gradient_LAYER` for each convolution and linear layer: the L2 norm
    of the gradient of the layer's weight, mean over the epoch's steps.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, float]

    epoch: int  # the first is 1
    # In evaluation mode, after the epoch. An accuracy is a fraction, a loss a mean cross-entropy in
    # nats. A loss is not finite once the training has diverged.
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    # In training mode, of the batches as they went by.
    seen_accuracy: float
    seen_loss: float

    @property
    def gradients(self) -> dict[str, float]:
        """The gradient norms by layer, first to last."""
        prefix = "gradient_"
        extra = self.__pydantic_extra__.items()
        return {key.removeprefix(prefix): x for key, x in extra if key.startswith(prefix)}
