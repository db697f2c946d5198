"""Parse `--model_args` of lmms-eval's command line into a method with its budget.

method=v2drop:layers=3,17,22;keep=0.5,0.3,0,budget=192     a comma separates arguments only before NAME=
{"method": "v2drop:metric=cosine", "budget": 192}          JSON, or the same mapping in lmms-eval's YAML
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne
from foveate.core.fields import check
from foveate.errors import SettingError
from foveate.naming import asked_share, draws, method_of, parse, with_seed
from foveate.plain.flags import EMBEDDED
from foveate.plain.spelling import fractions, nearest, parse_value, unquote

NUMBERS: Mapping[str, type[int] | type[float]] = {"budget": float, "retention": float, "seed": int, "max_frames": int}

SEPARATOR = re.compile(r",(?=\s*[A-Za-z_][\w-]*\s*=)")
"""A comma before NAME=."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments in `--model_args`.

    Attributes:
        pretrained: A hub id, a local folder, or "embedded".
        method: A method in the grammar of `foveate.naming`, such as v2drop:metric=cosine. Empty is the full model.
        budget: Mean vision tokens per decoder layer, for each sample.
        retention: Budget as a share in (0, 1]. A name without a budget keeps 1/3.
        seed: Seed for methods that draw at random.
        protocol: "own" uses the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.
        max_frames: Maximum frames of a video.
        log: Folder for a record of every answer. A restarted run reuses its answers.
        device, dtype, attention: As on the command line.

    Raises:
        SettingError: If arguments contradict each other, are out of range or have the wrong type.
        UnknownNameError: If the method or preset does not exist.
    """

    pretrained: str = EMBEDDED
    method: str = ""
    budget: float | None = None
    retention: float | None = None
    seed: int | None = None
    protocol: str = "own"
    max_frames: AtLeastOne = 32
    log: str = ""
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"

    def __post_init__(self) -> None:
        check(self, "model_args")
        self.drops  # noqa: B018  raise here, not at the first sample

    @cached_property
    def drops(self) -> Method | None:
        """The method with its budget, which applies to each sample. None is the full model."""
        if not self.method:
            for name in ("budget", "retention", "seed"):
                if getattr(self, name) is not None:
                    raise SettingError(f"{name}= without a method: name one with method=…, such as method=v2drop.")
            return None
        method = method_of(self.method, self.budget, self.retention)
        if self.seed is None:
            return method
        if not draws(method):
            raise SettingError(f"seed={self.seed}: {self.method} already has a seed, or drops nothing at random.")
        return with_seed(method, self.seed)

    @property
    def share(self) -> float | None:
        """The requested share. None if the budget is a number of tokens, or the method has its own."""
        if self.drops is None or self.budget is not None or not parse(self.method).open:
            return None
        return asked_share(self.drops, 1)


NAMES = tuple(Arguments.__dataclass_fields__)

# -- texts ----------------------------------------------------------------------------------------------------


def values_of(arguments: str | Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments by name, without those that are null in JSON.

    Raises:
        SettingError: If one is unknown, given twice or empty.
    """
    if isinstance(arguments, str):
        text = arguments.strip()
        arguments = parse_value(text) if text.startswith("{") else _pairs(text)
    for name in arguments:
        if name not in NAMES:
            near = nearest(str(name).lower().replace("-", "_"), NAMES)
            behind = "" if near else " Write settings as in method=v2drop:metric=cosine, and --batch_size as a flag."
            raise SettingError(f"No model argument {str(name)!r}.{near} There are: {', '.join(NAMES)}.{behind}")
    return {name: _value(name, value) for name, value in arguments.items() if value is not None}


def _pairs(text: str) -> dict[str, str]:
    """Split NAME=VALUE pairs: `a=1,2,b=3` -> `a=1,2` and `b=3`."""
    pairs: dict[str, str] = {}
    for part in (piece.strip(", ") for piece in SEPARATOR.split(text)):
        if not part:
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"model_args must be NAME=VALUE,NAME=VALUE, or JSON; got {part!r}.")
        if name.strip() in pairs:
            raise SettingError(f"{name.strip()} is given twice in model_args.")
        pairs[name.strip()] = value.strip()
    return pairs


def _value(name: str, value: object) -> Any:
    """Convert a text to its argument's type. Types and ranges are checked by `Arguments`."""
    if name == "method" and isinstance(value, Mapping):
        return json.dumps(value)
    if not isinstance(value, str):
        return value
    text = unquote(value.strip())
    if not text:
        raise SettingError(f"{name}= has no value. Leave {name} out, or give it one.")
    with suppress(ValueError):
        return NUMBERS.get(name, str)(fractions(text) if name == "retention" else text)
    return text
