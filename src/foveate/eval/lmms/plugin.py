"""lmms-eval's model `foveate`: any model of a supported family, with or without dropping.

python -m lmms_eval --model foveate --model_args pretrained=…,method=v2drop,budget=192 --tasks gqa --batch_size 4
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from foveate.ask.loading import device_of, load
from foveate.ask.prompt import check_protocol
from foveate.errors import FoveateError, SettingError, UnknownNameError, UnsupportedError
from foveate.eval.lmms.model_args import Arguments, values_of
from foveate.eval.lmms.requests import Request, RequestAnswerer
from foveate.eval.records import Answers, open_answers

COUNTED = ("spent", "vision_tokens", "flops", "media")
"""Fields of the record that each sample of lmms-eval's log has, in addition to lmms-eval's token counts."""


@dataclass
class OutputCounts(TokenCounts):  # type: ignore[misc]
    """lmms-eval's token counts of an answer, with foveate's figures.

    Attributes:
        record: The answer's record.
    """

    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **{name: self.record[name] for name in COUNTED}}


class Foveate(lmms):  # type: ignore[misc]
    """The class behind `--model foveate`. Its arguments are those of `--model_args`.

    Args:
        batch_size: lmms-eval's flag.
        max_batch_size: lmms-eval's flag for automatic batch sizes; must be None.
        values: See `Arguments`.

    Raises:
        FoveateError: If an argument is invalid, or the model cannot be loaded.
    """

    is_simple = False  # chat messages

    def __init__(self, *, batch_size: int | str = 1, max_batch_size: int | None = None, **values: Any) -> None:
        if max_batch_size is not None or not str(batch_size).isdigit() or int(batch_size) < 1:
            raise SettingError(f"batch_size must be 1 or more; got {batch_size}. It is not chosen automatically.")
        arguments = Arguments(**values)
        check_protocol(arguments.protocol)
        place = device_of(arguments.device)
        if arguments.device == "auto" and place.type != "cpu" and "LOCAL_RANK" in os.environ:  # one GPU per process
            place = torch.device(place.type, int(os.environ["LOCAL_RANK"]))
        vlm = load(arguments.pretrained, device=place, dtype=arguments.dtype, attention=arguments.attention)
        super().__init__()
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self._world_size > 1:
            self.accelerator = Accelerator()
        self._held = ExitStack()
        self.answerer = RequestAnswerer(vlm, arguments.drops, arguments.protocol, int(batch_size), arguments.max_frames)
        if arguments.log:
            self.answerer.store = self._open(arguments.log)

    @property
    def device(self) -> torch.device:
        """The model's device. lmms-eval gathers counts there."""
        device: torch.device = self.answerer.vlm.model.device
        return device

    def _open(self, folder: str) -> Answers:
        """Open the store of answers. The first process locks it for all processes of this run."""
        conditions = self.answerer.conditions()
        if self._rank == 0:
            store = self._held.enter_context(open_answers(conditions, folder, note=_note))
        if self._world_size > 1:
            self.accelerator.wait_for_everyone()
        if self._rank > 0:
            store = self._held.enter_context(open_answers(conditions, folder, alone=False))
        return store

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str | Mapping[str, object], additional_config: Mapping[str, object] | None = None
    ) -> Self:
        """Make the model from lmms-eval's command line.

        Raises:
            SystemExit: With 2 if the arguments are invalid, with 1 if the model cannot be loaded. One line on stderr
                says why.
        """
        with _in_one_line():
            values = values_of(arg_string)
            for name, value in (additional_config or {}).items():
                if value is None:
                    continue
                if name in values:
                    raise SettingError(f"{name} is given twice: as --{name}, and in model_args.")
                values[name] = value
            return cls(**values)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return greedy answers, in the order of the requests."""
        with _in_one_line(), tqdm(total=len(requests), desc="Answering", disable=self.rank != 0) as bar:
            self.answerer.advance = bar.update
            questions = [self._request(instance) for instance in requests]
            results = []
            for question, text in zip(questions, self.answerer(questions), strict=True):
                row = self.answerer.records[question.task, question.document]
                results.append(GenerationResult(text, OutputCounts(output_tokens=len(row["tokens"]), record=row)))
            return results

    def _request(self, instance: Instance) -> Request:
        _, messages, generation, number, task, split = instance.args

        def document() -> Mapping[str, Any]:
            row: Mapping[str, object] = self.task_dict[task][split][number]
            return row

        def ocr() -> tuple[str, Sequence[str]] | None:
            if "textvqa" not in task or "ocr_tokens" not in document():
                return None
            return document()["question"], document()["ocr_tokens"]

        return Request(task, split, number, lambda: messages(document()), generation, ocr)

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse: log-likelihoods and tasks of several rounds are not supported."""
        with _in_one_line():
            raise UnsupportedError(
                "foveate answers one question at a time; it cannot run a task that compares likelihoods, or of several "
                "rounds."
            )

    generate_until_multi_round = loglikelihood

    def clean(self) -> None:
        """Release the store and report the mean cost. lmms-eval calls this in every process at the end."""
        self._held.close()
        if rows := self.answerer.records.values():
            spent, entered, share = (
                fmean(row[name] for row in rows) for name in ("spent", "vision_tokens", "retention")
            )
            _note(f"{len(rows)} answers at {spent:.1f} of {entered:.1f} vision tokens per layer: {share:.1%}")
        super().clean()


def _note(text: str) -> None:
    print(f"foveate: {text}", file=sys.stderr)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn a `FoveateError` into one line on stderr and an exit code.

    lmms-eval alone would print a traceback and exit with 0.
    """
    try:
        yield
    except FoveateError as error:
        _note(str(error))
        raise SystemExit(2 if isinstance(error, SettingError | UnknownNameError) else 1) from error
