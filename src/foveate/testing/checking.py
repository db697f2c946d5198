"""`check`: prove dropping on one's own model, dtype, device, kernel and versions, beside the same model untouched."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from foveate.contract import Chain, follow
from foveate.contract.method import Method
from foveate.contract.stages import Place, Shape
from foveate.core.graphs import TAPES
from foveate.core.patching import Patcher
from foveate.engine.session import drop, refuse_open
from foveate.engine.trace import StageRecord
from foveate.errors import InputError, SessionError, SettingError, UnsupportedError
from foveate.families.support import reach
from foveate.methods.divprune import DivPrune
from foveate.methods.fastv import FastV
from foveate.methods.finalkv import FinalKV
from foveate.methods.random import Random
from foveate.methods.uniform import Uniform
from foveate.methods.v2drop import V2Drop
from foveate.methods.vidcom2 import VidCom2
from foveate.plain.upstream import first_line, is_out_of_memory
from foveate.registry import family_for
from foveate.runs.versions import versions
from foveate.testing.checked import CLEARLY, HALF, Checked, Row, name_of
from foveate.testing.contract import state_of
from foveate.testing.hiding import Oracle, columns_of

STEPS = 6
"""Tokens of the answer: with the prompt's last row, logits of seven rows are compared."""
PADS = 7
"""Columns that the prompt is padded with, on its left, in a batch."""
CPU_LIMITS, EXACT_LIMITS, HALF_LIMITS = (10.0, 1e-5, 1e-4), (10.0, 1e-5, 2e-3), (4.0, 4e-3, 1e-1)
"""How many times the noise a difference may be, and the least and the most that this allows: in float32 on a CPU, on an
accelerator, whose convolutions round to TF32, and in half precision."""
NEVER = -1e30
"""Below it is the logit of an id that a model never says."""
REPLAYED = "a prefill as a graph = the plain one"


@dataclass(frozen=True)
class Probe:
    """A method that is compared with hidden columns.

    Attributes:
        name: What it tries.
        method: Its settings drop on any model; rows keep their positions.
        optional: Whether a model may lack what it reads.
    """

    name: str
    method: Method
    optional: bool = False


class Compared(NamedTuple):
    """What a comparison found.

    Attributes:
        difference: Of logits, see `Row`.
        wrong: What hiding wrong columns on purpose makes of it.
        reason: Why it failed, where more than the difference says so.
    """

    difference: float
    wrong: float
    reason: str = ""


class _NotServedError(Exception):
    """This model lacks what a comparison needs, or there is nothing to compare."""


def check(model: Any, inputs: Mapping[str, Any]) -> Checked:
    """Prove that dropping on this model does what it says: bit by bit, or against the model with columns hidden.

        checked = foveate.testing.check(model, processor(...))
        assert checked.passed, checked

    A failed check is no exception: it stands in what is returned.

    Args:
        model: An unmodified vision-language model of transformers, in evaluation mode, on its device.
        inputs: One sample with a picture, as its processor makes it.

    Raises:
        InputError: If the inputs are not one sample with vision tokens.
        SessionError: If the model is inside a context.
        UnsupportedError: If no family serves the model.
    """
    return Checking(model, inputs).run()


class Checking:
    """A check that will run.

    Args:
        model, inputs: See `check`.

    Attributes:
        runs: How often the model will run, at the most.
        tokens: Prompt tokens of each run.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        self._family = family_for(model)
        refuse_open(model, self._family)
        self._drop = partial(drop, self._family.model)
        self._model = self._family.model
        self._inputs = dict(inputs)
        ids = self._inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.shape[0] != 1:
            raise InputError("A check takes one sample with input_ids of shape (1, tokens), as the processor makes it.")
        self.tokens = ids.shape[1]
        self._depth = len(self._family.layers)
        self._cuttable = min(self._family.lenders, default=self._depth)  # layers behind may get the last row alone
        self._probes = probes(self._cuttable, self._family.recurrent)
        self.runs = 19 + 3 * len(self._probes)
        self._no_batch = ""
        self._control: tuple[Tensor, float] | None = None

    def run(self, advance: Callable[..., object] = lambda count=1: None) -> Checked:
        """Run everything; `advance` is called with the number of runs that are done."""
        self._advance = advance
        plain, tokens = self._generate(self._inputs)
        state = state_of(self._model)  # only now: transformers puts hooks of its own on towers in the first run
        self._answer = tokens[0]
        self._oracle = Oracle(self._family, self._inputs, self._answer)
        self._untouched = self._logits(self._oracle.nothing())
        vision = self._oracle.vision.tolist()
        if not vision or vision[-1] == self.tokens - 1:
            raise InputError("A check takes one sample with a picture and text behind it, as a question is.")
        noise = self._measure_noise(plain[0])
        rows = [self._row("untouched: cache = no cache, padded in a batch = alone", lambda: noise)]
        comparisons: dict[str, Callable[[], Compared | str]] = {
            "keeping everything = untouched, bit for bit": partial(self._keep_all, plain, tokens),
            **{probe.name: partial(self._probe, probe) for probe in self._probes},
            "cache = no cache": self._without_cache,
            "batch = alone": self._in_batch,
            REPLAYED: self._replay,
            "the model is restored, also after an error": partial(self._restore, state, plain),
        }
        rows += [self._row(name, compare) for name, compare in comparisons.items()]
        return Checked(self._about(), self._noise, tuple(rows))

    def _about(self) -> dict[str, Any]:
        model = self._model
        return {
            "model": f"{type(model).__name__} ({model.config.model_type})",
            "dtype": name_of(model.dtype),
            "device": str(model.device),
            "attention": self._family.text.config._attn_implementation,
            "layers": self._depth,
            "prompt": self.tokens,
            "vision tokens": len(self._oracle.vision),
            **versions(),
        }

    # -- runs -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _generate(self, inputs: Mapping[str, Any], answer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (samples, rows, vocabulary) and tokens that `generate` decodes: these, or greedily its own."""
        decoding = _Answering(answer, _special(self._model))
        with Patcher() as patches:  # Janus' generate lets go of a processor that it is handed
            patches.wrap(self._model, "_get_logits_processor", lambda original, *args, **kwargs: LogitsProcessorList([
                *original(*args, **kwargs), decoding
            ]))  # fmt: skip
            output = self._model.generate(
                **inputs, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                max_new_tokens=STEPS + 1, repetition_penalty=1.0, cache_implementation=None,
                prompt_lookup_num_tokens=None, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        self._advance()
        logits = torch.stack([step.float().cpu() for step in output.logits], dim=1)
        return logits, output.sequences[:, -STEPS - 1 : -1]

    def _force(self, inputs: Mapping[str, Any]) -> Tensor:
        return self._generate(inputs, self._answer)[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._oracle.logits(hidden)
        self._advance()
        return logits

    @cached_property
    def _batch(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The sample, one with other pictures and more text, and one of text alone: together, and each by itself."""
        vision, ids = set(self._oracle.vision.tolist()), self._inputs["input_ids"][0].tolist()
        special = _special(self._model)
        every = [*range(self.tokens)]
        text = [column for column in every if column not in vision and ids[column] not in special]
        longer = [*every, *[every[-1]] * 3]
        words = (text * self.tokens)[: self.tokens + PADS]
        prompt = self._inputs["input_ids"].shape
        pictures = {
            name: values
            for name, values in self._inputs.items()
            if isinstance(values, Tensor) and values.shape != prompt
        }
        others = {name: -values if values.is_floating_point() else values for name, values in pictures.items()}
        both = {name: torch.cat((values, others[name])) for name, values in pictures.items()}
        together = columns_of(self._inputs, [every, longer, words]) | both
        alone = columns_of(self._inputs, [words])
        return together, [
            columns_of(self._inputs, [longer]) | others,
            {name: values for name, values in alone.items() if name not in pictures},
        ]

    # -- rows -------------------------------------------------------------------------------------------------

    def _row(self, name: str, compare: Callable[[], Compared | str]) -> Row:
        """A row of what a comparison finds, or of why bits differ; whatever is raised on the way fails it."""
        try:
            compared = compare()
        except _NotServedError as error:
            return Row(name, "not served", reason=str(error))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return Row(name, "failed", reason=f"{type(error).__name__}: {first_line(error)}")
        if isinstance(compared, str):
            return Row(name, "failed" if compared else "passed", reason=compared)
        reason = compared.reason
        if not reason and compared.difference > self._tolerance:
            reason = "the difference is above the tolerance"
        if not reason and compared.wrong < CLEARLY * max(compared.difference, self._noise):
            reason = "cannot tell: columns that are wrong on purpose differ too little"
        return Row(name, "failed" if reason else "passed", compared.difference, self._tolerance, compared.wrong, reason)

    def _measure_noise(self, plain: Tensor) -> Compared:
        """The untouched model beside itself, which says how near is near enough."""
        alone = self._force(self._inputs)[0]
        noises = [difference(plain, self._untouched), difference(alone, self._untouched)]
        try:
            noises.append(self._batch_noise(alone))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            self._no_batch = f"the untouched model does not take the check's batch of three: {first_line(error)}"
        self._noise = max(noises)
        times, least, most = CPU_LIMITS if self._model.device.type == "cpu" else EXACT_LIMITS
        if self._model.dtype in HALF:
            times, least, most = HALF_LIMITS
        self._tolerance = min(most, max(least, times * self._noise))
        last = self._oracle.nothing()
        last[:, 1, -1] = True  # as if caches had lost the prompt's last row
        wrong = difference(self._logits(last), self._untouched)
        reason = ""
        if self._noise > most:
            reason = f"the untouched model differs from itself by {self._noise:.1e}, so that nothing can be told"
        return Compared(self._noise, wrong, reason)

    def _batch_noise(self, alone: Tensor) -> float:
        """How far samples of a left-padded batch differ from each alone."""
        together, others = self._batch
        batched, each = self._force(together), [alone, *(self._force(other)[0] for other in others)]
        return max(difference(row, reference) for row, reference in zip(batched, each, strict=True))

    def _keep_all(self, plain: Tensor, tokens: Tensor) -> str:
        layers = cuts(self._cuttable, 1 / 4, 1 / 2)
        with self._drop(V2Drop(layers=layers, keep=(1.0,) * len(layers))):
            logits, same = self._generate(self._inputs)
        return "" if torch.equal(logits, plain) and torch.equal(same, tokens) else "logits or tokens differ"

    def _probe(self, probe: Probe) -> Compared | str:
        """A method beside the untouched model with the columns hidden that its trace says were dropped."""
        with ExitStack() as stack:
            try:
                # What a family would refuse only when a picture arrives is told before one does.
                if refused := reach(probe.method, type(self._family), self._model.config, depth=self._depth).refused:
                    raise UnsupportedError(refused)
                trace = stack.enter_context(self._drop(probe.method))
            except (UnsupportedError, SettingError) as error:
                self._advance(3)
                if probe.optional:
                    raise _NotServedError(first_line(error)) from error
                return first_line(error)
            logits = self._force(self._inputs)[0]
        stages = trace.stages
        dropped = [(stage.where, stage.layer) for stage in stages]
        reason = ""
        if dropped != places_of(probe.method, self._depth) or len(stages[-1].kept[0]) >= len(self._oracle.vision):
            reason = f"what was dropped is not what was planned: {stages}"
        elif stages[0].where == "projector" and self._oracle.windows:
            self._advance(2)
            raise _NotServedError(
                "a window is narrower than the prompt, and rows from behind the projector stand in other columns"
            )
        right, wrong = (self._logits(self._hide(probe.method, stages, moved)) for moved in (False, True))
        compared = Compared(difference(logits, right), difference(wrong, right), reason)
        if probe is self._probes[0]:
            self._control = logits, compared.wrong
        return compared

    def _hide(self, method: Method, stages: Sequence[StageRecord], wrong: bool) -> Tensor:
        """What a trace says was dropped, as hidden columns; or columns that are wrong on purpose."""
        vision, hidden = self._oracle.vision, self._oracle.nothing()
        for stage in stages:
            stays = torch.zeros(len(vision), dtype=torch.bool)
            stays[stage.kept[0]] = True
            if wrong:
                # As many other tokens: each one's neighbour; in half precision, whose noise would hide that, some that
                # were dropped.
                dropped = ~stays & ((~stays).cumsum(0) <= stays.sum())
                stays = dropped if self._model.dtype in HALF else stays.roll(1)
            if stage.where == "kv":
                first = follow.cached_layers(follow.in_order(method.stages(Shape(self._depth))))[0]
                hidden[first:, 1, vision[~stays]] = True
            else:
                hidden[stage.layer or 0 :, 0, vision[~stays]] = True
        return hidden

    def _compared_first(self) -> tuple[Tensor, float]:
        """Logits of the first method, and what wrong columns made of them."""
        if self._control is None:
            raise SessionError(f"This needs the comparison '{self._probes[0].name}', which did not come to its end.")
        return self._control

    def _without_cache(self) -> Compared:
        """Whether decoding from a cache says what one forward over prompt and answer says."""
        cached, wrong = self._compared_first()
        plain = self._oracle.plainly()
        self._advance()
        if difference(plain, self._untouched) > self._tolerance:
            self._advance()
            raise _NotServedError("without a cache this model's prompt sees the answer behind it")
        with self._drop(self._probes[0].method):
            logits = self._oracle.plainly()
        self._advance()
        return Compared(difference(logits, cached), wrong)

    def _in_batch(self) -> Compared:
        """Whether each sample of a left-padded batch says what it says alone."""
        alone, wrong = self._compared_first()
        if self._no_batch:
            raise _NotServedError(self._no_batch)
        with self._drop(self._probes[0].method):
            return Compared(self._batch_noise(alone), wrong)

    def _replay(self) -> Compared:
        """Whether a prompt and steps that are replayed as CUDA graphs say what they say without."""
        if self._model.device.type not in TAPES:
            self._advance(3)
            raise _NotServedError("not run: no CUDA device")
        plain, wrong = self._compared_first()
        for _ in range(3):  # seen, recorded, replayed
            with self._drop(self._probes[0].method, cuda_graphs=True) as trace:
                logits = self._force(self._inputs)[0]
        assert trace.graphs is not None
        latest = trace.graphs.decoder.latest
        if latest != "replayed":
            raise _NotServedError(f"not replayed: {latest}")
        return Compared(difference(logits, plain), wrong)

    def _restore(self, state: dict[str, Any], plain: Tensor) -> str:
        """Whether the model is itself behind contexts that ended, and behind one that an error has ended."""

        def fail(*_: object) -> None:
            raise _PlannedError

        logits = [self._generate(self._inputs)[0]]
        with Patcher() as patches:
            patches.hook(self._family.layers[-1], "before", fail)
            try:
                with self._drop(self._probes[0].method):
                    self._force(self._inputs)
                return "an error inside a layer did not come through"
            except _PlannedError:
                self._advance()
        logits.append(self._generate(self._inputs)[0])
        if state_of(self._model) != state:
            return "hooks or attributes are left on the model"
        return "" if all(torch.equal(again, plain) for again in logits) else "logits differ"


def difference(logits: Tensor, reference: Tensor) -> float:
    """The largest difference of logits, as a share of the reference's largest; infinite where there is a NaN.

    Ids that a model never says have the lowest number there is, and are left out (Chameleon's of pictures).
    """
    said = ~(reference < NEVER)
    logits, reference = logits[said], reference[said]
    share = float((logits - reference).abs().max() / reference.abs().max())
    if math.isnan(share):
        return math.inf
    return share


# -- what is tried ------------------------------------------------------------------------------------------------


def probes(depth: int, recurrent: Collection[int]) -> list[Probe]:
    """Methods for a decoder of so many layers; the first is compared in a batch and without a cache too.

    They keep few tokens, and cut early: what late layers no longer read would hide a fault.
    """
    early, wide = cuts(depth, 1 / 8, 1 / 4), cuts(depth, 1 / 8, 1 / 2)
    attending = [layer for layer in range(early[0], depth) if layer - 1 not in recurrent]
    two = Random(layers=early, keep=(0.5,) * len(early))
    return [
        Probe("two cuts, one in the middle (random)", Random(layers=wide, keep=(0.25, 0.5)[: len(wide)])),
        Probe("two cuts by hidden states (v2drop)", V2Drop(layers=early, keep=(0.5, 0.3)[: len(early)])),
        Probe("a cut before layer 0 (uniform)", Uniform(layers=(0,), keep=(0.25,))),
        Probe("a cut by attention (fastv)", FastV(layers=tuple(attending[:1]), keep=(0.3,)), optional=True),
        Probe("a cut by features (divprune)", DivPrune(keep=0.25, positions="keep")),
        Probe("behind the projector (vidcom2)", VidCom2(keep=0.3), optional=True),
        Probe("caches cut after the prompt (random+finalkv)", Chain.of(two, FinalKV(first_layer=0))),
    ]


def cuts(depth: int, *shares: float) -> tuple[int, ...]:
    """Layers at these shares of a decoder, from layer 1 on, each once."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(1, int(depth * share), *(layer + 1 for layer in layers)))
    return tuple(layer for layer in layers if layer < depth)


def places_of(method: Method, depth: int) -> list[tuple[str, int | None]]:
    """Where a method should drop, as a trace says it."""
    stages = follow.in_order(method.stages(Shape(depth)))
    places: list[tuple[str, int | None]] = [("projector", None)] * len(follow.at(stages, Place.BEHIND_PROJECTOR))
    places += [("layer", layer) for layer in follow.cut_layers(stages)]
    return places + [("kv", None)] * len(follow.at(stages, Place.CACHE))


# -- how it is decoded --------------------------------------------------------------------------------------------


class _Answering:
    """Lets `generate` say these tokens, or greedily any that are not special, as one of its logits processors."""

    def __init__(self, answer: Tensor | None, special: Collection[int]) -> None:
        self._answer = answer
        self._special = sorted(special)
        self._step = 0

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        barred = torch.zeros_like(scores, dtype=torch.bool)
        barred[:, self._special] = True
        if self._answer is not None and self._step < len(self._answer):
            barred[:] = True
            barred[:, self._answer[self._step]] = False
        self._step += 1
        return scores.masked_fill(barred, -torch.inf)


def _special(model: Any) -> set[int]:
    """Ids that a model's configs give a meaning: placeholders of pictures, ends, padding."""
    ids: set[int] = set()
    text = model.config.get_text_config()
    for config in (model.config, text, model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    return {token for token in ids if 0 <= token < text.vocab_size}


class _PlannedError(Exception):
    """Raised on purpose inside a context."""
