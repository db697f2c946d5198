"""A device that is none: tensors say they are on it and compute on the CPU, so waits for it can be counted anywhere.

Kernels and their numbers are the CPU's; what torch does between operators is as on an accelerator.
"""

from functools import cache

import torch
import torch.utils.backend_registration
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

NAME = "far"
FLASH = torch.ops.aten._scaled_dot_product_flash_attention.default


class FarTensor(Tensor):
    """A tensor on the device, around the one on the CPU that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        settings = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, near.shape, **settings, device=torch.device(NAME, 0))
        tensor.near = near
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self):
        return f"far {self.near!r}"


class Far(TorchDispatchMode):
    """While it is on, tensors are made on the device where that is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    to = kwargs.get("device")
    near_args, near_kwargs = tree_map(_near, (args, kwargs))
    output = _flash(*near_args, **near_kwargs) if function is FLASH else function(*near_args, **near_kwargs)
    far = tree_any(lambda leaf: isinstance(leaf, FarTensor), (args, kwargs)) if to is None else to.type == NAME
    return tree_map(lambda leaf: FarTensor(leaf) if isinstance(leaf, Tensor) else leaf, output) if far else output


def _near(leaf):
    if isinstance(leaf, FarTensor):
        return leaf.near
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _flash(query, key, value, dropout=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    output, logsumexp = kernel(query, key, value, dropout, is_causal, scale=scale)
    return output, logsumexp, None, None, query.shape[2], key.shape[2], torch.zeros(2), torch.zeros(()), torch.zeros(0)


@cache
def register():
    """Make torch know the device; once a process."""
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return FarTensor(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source, target, non_blocking=False):
        _near(target).copy_(_near(source))
        return target

    # What torch.tensor(…) calls behind every mode's back.
    library.impl("_local_scalar_dense", lambda one: _near(one).item(), "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library  # its operators leave with it


def move(model: nn.Module):
    """Put a model there, in place."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: FarTensor(one.detach()) for name, one in tensors.items() if one is not None})
    return model
