"""Author: the method of one's own that a stage or signal belongs to. Its failures name it; its numbers are checked."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.errors import BudgetError, FoveateError, MethodError, SettingError, ShapeError
from foveate.plain.own_files import fault, files_run
from foveate.plain.upstream import brief, first_line, is_out_of_memory


@dataclass(slots=True, eq=False)
class Author:
    """A method that is not foveate's own.

    Attributes:
        method: Its name.
        doubts: By error message, whether numbers cannot be ranked: tensors of one bool, not yet read by the host.
    """

    method: str
    doubts: dict[str, Tensor] = field(default_factory=dict)

    def fault(self, what: str, error: Exception) -> Exception:
        """Return the error to raise for an exception of its code: the same if that needs no name."""
        named = isinstance(error, MethodError | BudgetError)
        if named or is_out_of_memory(error) or type(error).__name__ == "AcceleratorError":
            return error
        if isinstance(error, SettingError | ShapeError):
            return MethodError(f"{self.method}: {error}")
        if isinstance(error, FoveateError):
            return error
        where = fault(error, ("foveate", "torch"))
        if where is None:  # called in a wrong way
            where = f"{type(error).__name__}: {first_line(error)}" + "".join(f" See {file}." for file in files_run())
        return MethodError(f"{self.method}: {what} failed: {where}")

    def wrong(self, what: str, wanted: str, value: Any) -> MethodError:
        """Return the error for a result that is not what is wanted."""
        got = brief(value)
        if isinstance(value, Tensor):
            got = f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
        return MethodError(f"{self.method}: {what} must return {wanted}; got {got}.")

    def check_finite(self, what: str, numbers: Tensor, inputs: Iterable[Tensor] = ()) -> None:
        """Refuse NaN, and numbers that are all infinite, unless the model's own values have NaN or infinities.

        −inf for some tokens may forbid them. On a CPU it raises here; elsewhere the host must not wait for the device,
        so `refuse_doubts` raises later. In a recording nothing is checked.

        Raises:
            MethodError: If they cannot be ranked.
        """
        if not numbers.is_floating_point() or not numbers.numel():
            return
        wrong = numbers.isnan().any() | numbers.isinf().all()
        for tensor in inputs:
            if tensor.is_floating_point():
                wrong = wrong & tensor.isfinite().all()
        if wrong.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        message = (
            f"{self.method}: {what} gave NaN, or nothing but infinities, so tokens cannot be ranked. Return finite "
            "numbers; -inf may forbid some tokens."
        )
        self.doubts[message] = wrong | self.doubts.get(message, False)
        if wrong.device.type == "cpu":
            self.refuse_doubts()

    def refuse_doubts(self) -> None:
        """Raise if numbers could not be ranked. The host waits for the device if any were checked there.

        Raises:
            MethodError: If there were such numbers.
        """
        doubts = dict(self.doubts)
        self.doubts.clear()
        for message, wrong in doubts.items():
            if wrong:
                raise MethodError(message)
