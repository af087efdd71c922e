"""Where the time of a training step goes: every layer by itself, beside the whole step."""

import argparse

import torch
from torch import nn

from bench.contenders import BATCH, CONTENDERS, KIND, PEAK_OPERATIONS, pipeline_network
from bench.epoch import precisions
from bench.workers import median_seconds, sample_images
from stages.learning.inference import Images
from stages.learning.loop import train_epoch
from stages.learning.network import layers_with_weights
from stages.support.errors import errors_as_messages
from stages.support.params import Precision

TURNS = 15


def main() -> None:
    """Print a table: milliseconds and GFLOP/s of each layer's forward and backward pass."""
    images = sample_images(BATCH)
    for precision in precisions():
        print_table(images, precision)


def print_table(images: Images, precision: Precision) -> None:
    """Print the table of one precision."""
    network, optimizer = pipeline_network(precision)
    # An epoch of one batch is a step. It leaves gradients for the optimizer.
    step = median_seconds(lambda: train_epoch(network, optimizer, images, BATCH, "step"), TURNS)
    update = median_seconds(optimizer.step, TURNS)
    weighted = layers_with_weights(network)
    print(f"| {precision} | forward | GFLOP/s | backward | GFLOP/s |", "|---" * 5 + "|", sep="\n")
    total = rest = 0.0
    inputs = images.images
    for name, layer in network.named_children():
        is_last = layer is network[-1]
        if is_last:
            inputs = inputs.float()  # as in Network
        outputs, forward, backward = passes(layer, inputs, precision == "bf16" and not is_last)
        total += forward + backward
        if name in weighted:
            operations = 2 * weighted[name].weight.numel() * BATCH * inputs.shape[2:].numel()
            ways = 2 if inputs.requires_grad else 1  # gradients: of the weights, of the input
            print(
                f"| {name} | {1e3 * forward:.1f} ms | {operations / forward / 1e9:.0f} | "
                f"{1e3 * backward:.1f} ms | {ways * operations / backward / 1e9:.0f} |"
            )
        else:
            rest += forward + backward
        inputs = outputs
    peak = median_seconds(CONTENDERS[f"peak {precision}"](images).train, TURNS)
    print(
        f"\nLayers without weights: {1e3 * rest:.1f} ms. Optimizer: {1e3 * update:.1f} ms. Sum: "
        f"{1e3 * (total + update):.0f} ms; the whole step of {BATCH} images, with the norms of the "
        f"gradients: {1e3 * step:.0f} ms. Products of large matrices reach "
        f"{PEAK_OPERATIONS / peak / 1e9:.0f} GFLOP/s. Medians of {TURNS}.\n"
    )


def passes(layer: nn.Module, inputs: torch.Tensor, bf16: bool) -> tuple[torch.Tensor, float, float]:
    """Return the layer's output, and the seconds of its forward and its backward pass.

    The output is detached, so that the backward pass of the next layer ends there.
    """

    def forward() -> torch.Tensor:
        # Entered for every pass, since autocast keeps the converted weights until it is left.
        with torch.autocast(KIND, torch.bfloat16, enabled=bf16):
            outputs: torch.Tensor = layer(inputs)
        return outputs

    outputs = forward()
    upstream = torch.ones_like(outputs)
    wanted = [tensor for tensor in (inputs, *layer.parameters()) if tensor.requires_grad]

    def backward() -> None:
        if wanted:
            torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)

    times = median_seconds(forward, TURNS), median_seconds(backward, TURNS)
    return outputs.detach().requires_grad_(outputs.requires_grad), *times


if __name__ == "__main__":
    argparse.ArgumentParser("python -m bench.layers", description=__doc__).parse_args()
    with errors_as_messages():
        main()
