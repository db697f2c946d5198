"""Grow a trained decoder to 32 layers by copying layers.

    python training/grow.py CHECKPOINT GROWN

A layer that stands c times in a row has its two output projections divided by c, so that together
the copies write about what the one wrote. The first two layers are not split: that hurts most.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from network import Network, Shape

__all__ = ["COPIES", "grow"]

COPIES = (1, 1, 3, 3, 4, 4, 5, 11)


def grow(network: Network, copies: tuple[int, ...] = COPIES) -> Network:
    """A network with sum(copies) decoder layers that computes nearly the same."""
    deep = Network(replace(network.shape, layers=sum(copies)))
    own = network.state_dict()
    grown = {name: tensor for name, tensor in own.items() if not name.startswith("decoder.layers.")}
    source = [layer for layer, count in enumerate(copies) for _ in range(count)]
    for target, layer in enumerate(source):
        start = f"decoder.layers.{layer}."
        for name, tensor in own.items():
            if name.startswith(start):
                part = name.removeprefix(start)
                share = copies[layer] if part in ("o.weight", "down.weight") else 1
                grown[f"decoder.layers.{target}.{part}"] = tensor / share
    deep.load_state_dict(grown)
    return deep


def main() -> None:
    """Read a checkpoint, write the grown weights as one without optimiser state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("grown", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=True)
    network = Network(Shape(**state["shape"]))
    network.load_state_dict(state["network"])
    deep = grow(network)
    torch.save({"shape": vars(deep.shape), "network": deep.state_dict()}, args.grown)


if __name__ == "__main__":
    main()
