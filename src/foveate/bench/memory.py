"""Bytes of tensors that live at once, counted operator by operator: what a CPU's allocator does not tell."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Memory"]


class Memory(TorchDispatchMode):
    """Notes the most bytes that live at once, of tensors made inside: neither weights nor inputs.

    What a kernel takes and gives back inside itself is not seen.

    Attributes:
        peak: The most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(tensor) for tensor in tensors_of((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for tensor in tensors_of(result):
            if _key(tensor) not in before:  # else a view, or written in place
                self.add(tensor, function)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result

    def add(self, tensor: Tensor, function: Any) -> None:
        """A tensor with a storage of its own has come to be by an operator."""
        storage = tensor.untyped_storage()
        self._live[_key(tensor)] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]

    @property
    def left(self) -> int:
        """Bytes that live still."""
        sizes = [size for storage, size in self._live.values() if not storage.expired()]  # type: ignore[no-untyped-call]
        return sum(sizes)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    """What tensors of one storage share."""
    key: int = tensor.untyped_storage()._cdata
    return key
