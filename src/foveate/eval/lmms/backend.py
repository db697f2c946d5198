"""The model `foveate` of lmms-eval: any model of a supported family, with or without dropping.

python -m lmms_eval --model foveate --model_args pretrained=…,method=v2drop,budget=192 --tasks gqa --batch_size 4
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from foveate.ask.loading import EMBEDDED, device_of, load
from foveate.errors import FoveateError, SettingError, UnknownNameError, UnsupportedError
from foveate.eval.lmms.answerer import Answerer, Conduct, Request
from foveate.eval.lmms.setting import Choice, Setting
from foveate.eval.store import Store

__all__ = ["Answering", "Foveate"]


class Answering(lmms):  # type: ignore[misc]
    """What lmms-eval asks, handed to an `Answerer`.

    Args:
        answerer: The model under its setting.
    """

    is_simple = False  # chat messages

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self.answerer = answerer
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1:
            self.accelerator = Accelerator()

    @property
    def device(self) -> torch.device:
        """Where the model is; the harness gathers its counts there."""
        device: torch.device = self.answerer.vlm.model.device
        return device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Greedy answers, in the order of the requests."""
        questions = [self._request(instance) for instance in requests]
        results = []
        for question, text in zip(questions, self.answerer(questions), strict=True):
            row = self.answerer.records[question.task, question.document]
            results.append(GenerationResult(text, TokenCounts(output_tokens=len(row["tokens"]))))
        return results

    def _request(self, instance: Instance) -> Request:
        _, messages, generation, number, task, split = instance.args

        def document() -> Mapping[str, Any]:
            row: Mapping[str, Any] = self.task_dict[task][split][number]
            return row

        def ocr() -> tuple[str, Sequence[str]] | None:
            if "textvqa" not in task or "ocr_tokens" not in document():
                return None
            return document()["question"], document()["ocr_tokens"]

        return Request(task, split, number, lambda: messages(document()), generation, ocr)

    def loglikelihood(self, requests: Sequence[Instance]) -> Any:
        """Refused: this model answers in words."""
        raise UnsupportedError("foveate answers in words; a task that compares likelihoods cannot be run with it.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Any:
        """Refused: one question, one answer."""
        raise UnsupportedError(
            "foveate answers one question at a time; a task of several rounds cannot be run with it."
        )


class Foveate(Answering):
    """What `--model foveate` stands for; the arguments are those of `--model_args`.

    Args:
        pretrained: A hub id, a local folder, or "embedded".
        method: What drops, in the grammar of `foveate.methods.names`, quoted where it has commas:
            method='v2drop:layers=3,17,22'; also JSON, method={"method":"v2drop"}. Empty is the full model.
        budget: Mean vision tokens a decoder layer, solved for each sample's own count.
        retention: The same as a share; 1/3 where neither is given.
        seed: Which draw, for methods that draw at random.
        settings: Other settings of the method: {"metric":"cosine"}, or metric=cosine;window=2.
        protocol: "own" is the model's chat template and processor, "llava" the papers' conditions.
        max_frames: Most frames of a video.
        log: A folder for a record of every answer; a run that is started again reuses what is there.
        device, dtype, attention: As of the command line.
        batch_size: From lmms-eval's own flag.
        max_batch_size: lmms-eval's flag for batches it sizes itself; refused.

    Raises:
        FoveateError: Of the kind that fits.
    """

    def __init__(
        self,
        pretrained: str = EMBEDDED,
        *,
        method: str | Mapping[str, Any] = "",
        budget: float | None = None,
        retention: float | None = None,
        seed: int | None = None,
        settings: Mapping[str, Any] | str | None = None,
        protocol: str = "own",
        max_frames: int = 32,
        log: str = "",
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        if max_batch_size is not None or not str(batch_size).isdigit():
            raise SettingError(f"batch_size is a number; got {batch_size!r}. Batches are not sized automatically.")
        name = json.dumps(method) if isinstance(method, Mapping) else method
        setting = Setting(name=name, budget=budget, retention=retention, seed=seed, settings=settings or {})
        conduct = Conduct(protocol=protocol, batch_size=int(batch_size), most_frames=max_frames)
        vlm = load(pretrained, device=_device_of(device), dtype=dtype, attention=attention)
        store = Store(Path(log).expanduser(), conduct.conditions(vlm)) if log else None
        choice: Choice = setting.choice(vlm.model.config)
        super().__init__(Answerer(vlm, choice, conduct, store))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """The model that lmms-eval's command line asks for.

        Raises:
            SystemExit: With 2 where the arguments cannot be meant, with 1 where the model cannot be had; one line on
                stderr says why.
        """
        try:
            values = _arguments(arg_string, tuple(signature(cls.__init__).parameters)[1:])
            values |= {key: value for key, value in (additional_config or {}).items() if value is not None}
            return cls(**values)
        except FoveateError as error:
            print(f"foveate: {error}", file=sys.stderr)
            raise SystemExit(2 if isinstance(error, SettingError | UnknownNameError) else 1) from error

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        with tqdm(total=len(requests), desc="Answering", disable=self.rank != 0) as bar:
            self.answerer.advance = bar.update
            return super().generate_until(requests)


def _arguments(text: str, names: Sequence[str]) -> dict[str, Any]:
    """`--model_args` as lmms-eval reads them: split at commas outside quotes, braces and brackets."""
    try:
        values: dict[str, Any] = simple_parse_args_string(text)
    except ValueError as error:
        raise SettingError(
            f"model_args are key=value,key=value; got {text!r}. Put quotes around a value with commas."
        ) from error
    if unknown := sorted(set(values) - set(names)):
        raise SettingError(f"There is no model argument {unknown[0]}. There are: {', '.join(names)}.")
    return values


def _device_of(name: str) -> torch.device:
    """The device of this name; of several alike, "auto" is the one that belongs to this process."""
    device = device_of(name)
    if name == "auto" and device.type != "cpu" and "LOCAL_RANK" in os.environ:
        return torch.device(device.type, int(os.environ["LOCAL_RANK"]))
    return device
