"""What a server drops: the method and rate it was started with, and the rate that a request may ask for instead."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from foveate import naming, registry
from foveate.contract.budget import decoder_depth
from foveate.contract.method import Method
from foveate.core.grid import Grid
from foveate.core.tensors import Memo
from foveate.errors import SettingError
from foveate.hosts import Host, Reducer
from foveate_vllm import guards

__all__ = ["FILM_KEY", "RATE_KEYS", "Rate", "Setting"]

RATE_KEYS = ("foveate_tokens", "foveate_retention")
"""Keys of a request's `mm_processor_kwargs`."""
FILM_KEY = "foveate_video_retention"
"""The key for a video, if tokens of the model's videos can be dropped."""
KEYS = ("method", "tokens", "retention", "untested")
"""Keys of a server's `hf_overrides["foveate"]`."""
REMEMBERED = 256  # rates whose stages are cached; a client may ask for a new rate with every request


@dataclass(frozen=True, slots=True)
class Rate:
    """How much of an image stays.

    Attributes:
        tokens: The number of its tokens.
        retention: The share of its tokens. If both are None, the method's own settings decide.

    Raises:
        SettingError: If both are given, or one is outside its range.
    """

    tokens: int | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        guards.refuse_wrong_rate(self.tokens, self.retention)

    @property
    def said(self) -> bool:
        """Whether a rate is given."""
        return self.tokens is not None or self.retention is not None

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens} tokens of an image"
        if self.retention is not None:
            return f"{self.retention:.1%} of an image's tokens"
        return "that of the method's own settings"

    @classmethod
    def of(cls, values: Mapping[str, Any], films: bool = False) -> "Rate":
        """Read the rate of images from the `mm_processor_kwargs` of a request or the server.

        Args:
            values: The `mm_processor_kwargs`.
            films: Whether the model's videos take a rate too.
        """
        guards.refuse_unknown_keys(values, (*RATE_KEYS, FILM_KEY) if films else RATE_KEYS)
        return cls(*(values.get(key) for key in RATE_KEYS))

    def as_tensor(self) -> Tensor:
        """Return the rate as a tensor that travels with an image: (2,) float64, NaN for None."""
        numbers = [math.nan if value is None else value for value in (self.tokens, self.retention)]
        return torch.tensor(numbers, dtype=torch.float64)

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> "Rate":
        """Undo `as_tensor`, on the host."""
        tokens, retention = numbers.tolist()
        return cls(
            None if math.isnan(tokens) else int(tokens),
            None if math.isnan(retention) else retention,
        )


class Setting:
    """The method of a server on its model, and its stages at the rate of a request.

    Args:
        values: `hf_overrides["foveate"]`: "method", a name in foveate's grammar or its dictionary, and "tokens" or
            "retention". Without these, a method name alone keeps a third, and anything else follows its settings.
            "untested": true allows attention backends that were not tested between layers.
        config: The model's config.
        host: What vLLM shows of the model.

    Attributes:
        rate: The server's rate.
        spelled: The method, as the server was given it.
        untested: Whether untested attention backends are allowed.
        family: The model's family.
        reads: Signals that stages read from the tower at any rate.

    Raises:
        SettingError: If a key is unknown, or a value does not fit.
        UnknownNameError: If there is no such method.
        UnsupportedError: If the method cannot run in vLLM, with the reason.
    """

    def __init__(self, values: Mapping[str, Any], config: Any, host: Host = guards.TOWER) -> None:
        unknown = sorted(set(values) - set(KEYS))
        if unknown or "method" not in values:
            raise SettingError(
                f"hf_overrides['foveate'] takes method, and tokens or retention; got {', '.join(sorted(values))}."
            )
        self.untested = values.get("untested", False)
        guards.refuse_no_flag(self.untested)
        method, self.spelled = values["method"], str(values["method"])
        if isinstance(method, Mapping):
            method = registry.from_dict(method)
        self.rate = Rate(values.get("tokens"), values.get("retention"))
        started = naming.method_of(method, self.rate.tokens, self.rate.retention)
        self._method = naming.parse(method) if isinstance(method, str) else method
        if not self.rate.said and started != self._method:
            self.rate = Rate(retention=naming.RETENTION)
        self._config = config
        self._host = host
        self._memo = Memo(REMEMBERED)
        self.family = self.stages(Rate()).family
        # A request may drop even if the server keeps all.
        rates = (Rate(), Rate(retention=0.5)) if self.takes_rates else (Rate(),)
        self.reads = tuple(dict.fromkeys(signal for rate in rates for signal in self.stages(rate).reads))

    @classmethod
    def of(cls, config: Any, host: Host = guards.TOWER) -> "Setting":
        """Build the setting from a model's config, into which vLLM has written `hf_overrides`."""
        values = getattr(config, "foveate", None)
        if not isinstance(values, Mapping):
            raise SettingError(
                'This architecture needs hf_overrides={"foveate": {"method": "visionzip", …}}; see docs/guides/vllm.md.'
            )
        return cls(values, config, host)

    def method(self, rate: Rate) -> Method:
        """Return the method at a request's rate, or at the server's if the request has none.

        Raises:
            SettingError: If the method takes no budget, or has a schedule of its own.
        """
        if not rate.said:
            rate = self.rate
        if not rate.said:
            return self._method
        return self._method.with_budget(tokens=rate.tokens, retention=rate.retention)

    def stages(self, rate: Rate) -> Reducer:
        """Return the stages at a request's rate, or at the server's if the request has none.

        Raises:
            SettingError: If the method takes no budget, or has a schedule of its own.
        """
        if not rate.said:
            rate = self.rate
        return self._memo.once(partial(self._stages, rate), (rate.tokens, rate.retention))

    def count(self, rate: Rate, size: int, grids: Sequence[Grid], video: bool = False) -> int:
        """Return how many rows of an image or video of `size` tokens on these grids enter the decoder.

        Raises:
            SettingError: If the rate cannot be met.
            UnsupportedError: If the count depends on the image's content.
        """
        guards.refuse_more_than_all(rate.tokens, size)  # images smaller than the server's own rate are kept whole
        stages = self.stages(rate)
        if rate.said:
            guards.refuse_rate_between_layers(stages)
        return guards.refuse_unknown_count(stages.method, stages.count(size, grids, video))

    @cached_property
    def takes_rates(self) -> bool:
        """Whether a request can have a rate of its own."""
        try:
            self.stages(Rate(retention=0.5))
        except SettingError:
            return False
        return True

    def _stages(self, rate: Rate) -> Reducer:
        whole = rate.retention == 1  # keep everything, even with a method that takes no budget
        method = self._method if whole else self.method(rate)
        return Reducer(method, decoder_depth(self._config), self._config, self._host, whole)
