"""What the host knows, brought to a device."""

import torch
from torch import Tensor

__all__ = ["send"]


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on `device`, without a wait for what the device still has to do.

    CUDA stages what it is given before the call returns; Metal may not.
    """
    return numbers.to(device, non_blocking=device.type != "mps")
