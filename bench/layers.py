"""Where the time of a training step goes: every layer by itself, beside the whole step."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bench.contenders import ADAM, BATCH, CONTENDERS, PEAK_PRODUCTS, PEAK_SIDE
from bench.measure import DEVICE, load_images, precisions
from stages.lib.command import run
from stages.lib.device import prepare
from stages.lib.evaluation import Tensors
from stages.lib.network import layers_with_weights, vgg11
from stages.lib.params import Precision
from stages.lib.training import make_optimizer, set_seed

TURNS = 15


def main() -> None:
    """Print a table: milliseconds and GFLOP/s of each layer's forward and backward pass."""
    prepare(DEVICE.type)  # type: ignore[arg-type]  # cuda or cpu
    images = load_images(BATCH, DEVICE)
    for precision in precisions():
        print_table(images, precision)


def print_table(images: Tensors, precision: Precision) -> None:
    """Print the table of one precision."""
    set_seed(0, epoch=0)
    network = vgg11(ADAM.activation, ADAM.dropout, "none", precision).to(DEVICE).train()
    optimizer = make_optimizer(network, ADAM)
    seen: dict[nn.Module, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, _: seen.update({layer: inputs[0]}))
        for layer in network.children()
    ]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(network(images.images), images.labels))
        optimizer.step()

    step()
    for hook in hooks:
        hook.remove()
    print(f"| {precision} | forward | GFLOP/s | backward | GFLOP/s |", "|---" * 5 + "|", sep="\n")
    weighted = layers_with_weights(network)
    total = rest = 0.0
    for name, layer in network.named_children():
        # As in Network: all but the last layer.
        bf16 = network.compute_dtype == torch.bfloat16 and layer is not network[-1]
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            forward, backward = pass_seconds(layer, seen[layer])
        total += forward + backward
        if name not in weighted:
            rest += forward + backward
            continue
        pixels = seen[layer].shape[2:].numel()
        operations = 2 * weighted[name].weight.numel() * BATCH * pixels
        ways = 2 if seen[layer].requires_grad else 1  # gradients: of the weights, of the input
        print(
            f"| {name} | {1e3 * forward:.1f} ms | {operations / forward / 1e9:.0f} | "
            f"{1e3 * backward:.1f} ms | {ways * operations / backward / 1e9:.0f} |"
        )
    update, whole = seconds(optimizer.step), seconds(step)
    peak = CONTENDERS[f"peak {precision}"](images)
    rate = 2 * PEAK_SIDE**3 * PEAK_PRODUCTS / seconds(peak.train)
    print(
        f"\nLayers without weights: {1e3 * rest:.1f} ms. Optimizer: {1e3 * update:.1f} ms. Sum: "
        f"{1e3 * (total + update):.0f} ms; the whole step of {BATCH} images: {1e3 * whole:.0f} ms. "
        f"Products of large matrices reach {rate / 1e9:.0f} GFLOP/s. Medians of {TURNS}.\n"
    )


def pass_seconds(layer: nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """Return how long the layer's forward and backward pass take."""
    inputs = inputs.detach().requires_grad_(inputs.requires_grad)
    outputs = layer(inputs)
    forward = seconds(lambda: layer(inputs))
    wanted = [tensor for tensor in (inputs, *layer.parameters()) if tensor.requires_grad]
    if not wanted:
        return forward, 0.0
    upstream = torch.ones_like(outputs)
    return forward, seconds(
        lambda: torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)
    )


def seconds(work: Callable[[], object]) -> float:
    """Return the median time that it takes, on a GPU until that has done it."""
    measured = []
    for _ in range(TURNS):
        started = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


if __name__ == "__main__":
    run(main)
