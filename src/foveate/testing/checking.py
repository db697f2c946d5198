"""`check`: verify dropping on a model, dtype, device, kernel and versions, against the unmodified model."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.contract import Chain, follow
from foveate.contract.method import Method
from foveate.contract.stages import Place, Shape
from foveate.core.patching import Patcher
from foveate.core.tapes import TAPES
from foveate.engine.ancestry import StageRecord
from foveate.engine.doors import drop
from foveate.engine.hold import refuse_open
from foveate.engine.streams import with_hidden
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
from foveate.testing.checked import CLEARLY, HALF, Checked, Row, dtype_name
from foveate.testing.contract import state_of_model
from foveate.testing.hiding import Oracle, columns_of

STEPS = 6
"""Tokens of the answer. With the prompt's last row, the logits of seven rows are compared."""
PADS = 7
"""Columns of left padding that the prompt gets in a batch."""
CPU_LIMITS, EXACT_LIMITS, HALF_LIMITS = (10.0, 1e-5, 1e-4), (10.0, 1e-5, 2e-3), (4.0, 4e-3, 1e-1)
"""Limits of the tolerance: a factor on the noise, and the minimum and maximum. In float32 on a CPU, on an accelerator
(whose convolutions round to TF32), and in half precision."""
NEVER = -1e30
"""Logits below this belong to ids that a model never generates."""
REPLAYED = "a prefill as a graph = the plain one"


@dataclass(frozen=True)
class Probe:
    """A method that is compared with the model with hidden columns.

    Attributes:
        name: The name of the comparison.
        method: The method. Its settings drop tokens on any model, and keep position ids.
        optional: True if a model may lack the signals that the method reads.
    """

    name: str
    method: Method
    optional: bool = False


class Compared(NamedTuple):
    """The result of a comparison.

    Attributes:
        difference: The difference of logits, see `Row`.
        wrong: The difference when the wrong columns are hidden on purpose.
        reason: Why it failed, if not because of the difference.
    """

    difference: float
    wrong: float
    reason: str = ""


class _NotServedError(Exception):
    """Raised if this model lacks what a comparison needs, or there is nothing to compare."""


def check(model: Any, inputs: Mapping[str, Any]) -> Checked:
    """Test whether dropping gives correct results with this model, with its number format and on its device.

        checked = foveate.testing.check(model, processor(...))
        assert checked.passed, checked

    A failed check raises no exception; see `Checked.passed`.

    Args:
        model: An unmodified vision-language model of transformers, in evaluation mode, on its device.
        inputs: One sample with a picture, as returned by the model's processor.

    Raises:
        InputError: If the inputs are not one sample with vision tokens.
        SessionError: If the model is inside a `drop` context.
        UnsupportedError: If no family supports the model.
    """
    return Checking(model, inputs).run()


class Checking:
    """A prepared check; `run` runs it.

    Args:
        model, inputs: See `check`.

    Attributes:
        comparisons: The number of comparisons.
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
            raise InputError("A check takes one sample, with input_ids of shape (1, tokens) from the processor.")
        self.tokens = ids.shape[1]
        self._depth = len(self._family.layers)
        self._cuttable = min(self._family.lenders, default=self._depth)  # later layers may get only the last row
        self._probes = probes(self._cuttable, self._family.recurrent)
        self.comparisons = 7 + len(self._probes)
        self._no_batch = ""
        self._control: tuple[Tensor, float] | None = None

    def run(self, advance: Callable[[], object] = lambda: None) -> Checked:
        """Run all comparisons. `advance` is called after each."""
        plain, tokens = self._generate(self._inputs)
        state = state_of_model(self._model)  # after the first run, in which transformers adds its own hooks to towers
        self._answer = tokens[0]
        self._oracle = Oracle(self._family, self._inputs, self._answer)
        self._untouched = self._oracle.logits(self._oracle.nothing())
        vision = self._oracle.vision.tolist()
        if not vision or vision[-1] == self.tokens - 1:
            raise InputError("A check takes one sample with a picture followed by text, such as a question.")
        noise = self._measure_noise(plain[0])
        comparisons: dict[str, Callable[[], Compared | str]] = {
            "untouched: cache = no cache, padded in a batch = alone": lambda: noise,
            "keeping everything = untouched, bit for bit": partial(self._keep_all, plain, tokens),
            **{probe.name: partial(self._probe, probe) for probe in self._probes},
            "cache = no cache": self._without_cache,
            "batch = alone": self._in_batch,
            REPLAYED: self._replay,
            "the pooling mask marks the rows of the last layer": self._mark,
            "the model is restored, also after an error": partial(self._restore, state, plain),
        }
        rows = []
        for name, compare in comparisons.items():
            rows.append(self._row(name, compare))
            advance()
        model = self._model
        about = {
            "model": f"{type(model).__name__} ({model.config.model_type})",
            "dtype": dtype_name(model.dtype),
            "device": str(model.device),
            "attention": self._family.text.config._attn_implementation,
            "layers": self._depth,
            "prompt": self.tokens,
            "vision tokens": len(self._oracle.vision),
            **versions(),
        }
        return Checked(about, self._noise, tuple(rows))

    # -- runs -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _generate(self, inputs: Mapping[str, Any], answer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run `generate` with a given answer, or greedily.

        Returns:
            Logits (samples, rows, vocabulary) and tokens (samples, steps).
        """
        tokens: list[int] = [] if answer is None else answer.tolist()

        def following(_: int, ids: Tensor) -> list[int]:
            return tokens[len(ids) - inputs["input_ids"].shape[1] :][:1] or tokens[-1:]

        output = self._model.generate(
            **inputs, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
            max_new_tokens=STEPS + 1, repetition_penalty=1.0, cache_implementation=None,
            prompt_lookup_num_tokens=None, output_logits=True, return_dict_in_generate=True,
            suppress_tokens=sorted(_special(self._model)), prefix_allowed_tokens_fn=following if tokens else None,
        )  # fmt: skip
        logits = torch.stack([step.float().cpu() for step in output.logits], dim=1)
        return logits, output.sequences[:, -STEPS - 1 : -1]

    def _force(self, inputs: Mapping[str, Any]) -> Tensor:
        return self._generate(inputs, self._answer)[0]

    @cached_property
    def _batch(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A batch of the sample, one with other pictures and more text, and one of text; and the last two alone."""
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
        """Run a comparison and return its row. A string is the reason why bits differ; any exception fails the row."""
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
            reason = "cannot tell: hiding wrong columns on purpose makes too little difference"
        return Row(name, "failed" if reason else "passed", compared.difference, self._tolerance, compared.wrong, reason)

    def _measure_noise(self, plain: Tensor) -> Compared:
        """Compare the unmodified model with itself, and derive the tolerance."""
        alone = self._force(self._inputs)[0]
        noises = [difference(plain, self._untouched), difference(alone, self._untouched)]
        try:
            noises.append(self._batch_noise(alone))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            self._no_batch = f"the unmodified model does not take the check's batch of three: {first_line(error)}"
        self._noise = max(noises)
        times, least, most = CPU_LIMITS if self._model.device.type == "cpu" else EXACT_LIMITS
        if self._model.dtype in HALF:
            times, least, most = HALF_LIMITS
        self._tolerance = min(most, max(least, times * self._noise))
        last = self._oracle.nothing()
        last[:, 1, -1] = True  # as if the caches had lost the prompt's last row
        wrong = difference(self._oracle.logits(last), self._untouched)
        reason = ""
        if self._noise > most:
            reason = f"the unmodified model differs from itself by {self._noise:.1e}, too much to tell anything"
        return Compared(self._noise, wrong, reason)

    def _batch_noise(self, alone: Tensor) -> float:
        """Return the largest difference between samples in a left-padded batch and each of them alone."""
        together, others = self._batch
        batched, each = self._force(together), [alone, *(self._force(other)[0] for other in others)]
        return max(difference(row, reference) for row, reference in zip(batched, each, strict=True))

    def _keep_all(self, plain: Tensor, tokens: Tensor) -> str:
        layers = cuts(self._cuttable, 1 / 4, 1 / 2)
        with self._drop(V2Drop(layers=layers, keep=(1.0,) * len(layers))):
            logits, same = self._generate(self._inputs)
        return "" if torch.equal(logits, plain) and torch.equal(same, tokens) else "logits or tokens differ"

    def _probe(self, probe: Probe) -> Compared | str:
        """Compare a method with the unmodified model in which the columns of the dropped tokens are hidden."""
        with ExitStack() as stack:
            try:
                # Some families would refuse only when a picture arrives, so ask before.
                refused = reach(probe.method, type(self._family), self._model.config, depth=self._depth)
                if isinstance(refused, str):
                    raise UnsupportedError(refused)
                trace = stack.enter_context(self._drop(probe.method))
            except (UnsupportedError, SettingError) as error:
                if probe.optional:
                    raise _NotServedError(first_line(error)) from error
                return first_line(error)
            logits = self._force(self._inputs)[0]
        stages = trace.stages
        dropped = [(stage.where, stage.layer) for stage in stages]
        placed = probe.method.placed(Shape(self._depth))
        planned: list[tuple[str, int | None]] = [("projector", None)] * len(follow.at(placed, Place.BEHIND_PROJECTOR))
        planned += [("layer", layer) for layer in follow.cut_layers(placed)]
        planned += [("kv", None)] * len(follow.at(placed, Place.CACHE))
        reason = ""
        if dropped != planned or len(stages[-1].kept[0]) >= len(self._oracle.vision):
            reason = f"the stages that dropped are not the planned ones: {stages}"
        right, wrong = (self._oracle.logits(self._hide(probe.method, stages, moved)) for moved in (False, True))
        compared = Compared(difference(logits, right), difference(wrong, right), reason)
        if probe is self._probes[0]:
            self._control = logits, compared.wrong
        return compared

    def _hide(self, method: Method, stages: Sequence[StageRecord], wrong: bool) -> Tensor:
        """Return the columns to hide, (layers, 2, columns) bool, for the dropped tokens of a trace.

        `wrong` hides as many wrong columns on purpose.
        """
        vision, hidden = self._oracle.vision, self._oracle.nothing()
        for stage in stages:
            stays = torch.zeros(len(vision), dtype=torch.bool)
            stays[stage.kept[0]] = True
            if wrong:
                # Keep as many other tokens instead: the right neighbour of each, stays 1 0 1 0 -> 0 1 0 1. The noise of
                # half precision would hide that, so there keep the first dropped tokens: 1 0 0 1 0 -> 0 1 1 0 0.
                dropped = ~stays & ((~stays).cumsum(0) <= stays.sum())
                stays = dropped if self._model.dtype in HALF else stays.roll(1)
            if stage.where == "kv":
                first = follow.cached_layers(method.placed(Shape(self._depth)))[0]
                hidden[first:, 1, vision[~stays]] = True
            else:
                hidden[stage.layer or 0 :, 0, vision[~stays]] = True
        return hidden

    def _compared_first(self) -> tuple[Tensor, float]:
        """Return the logits of the first probe, and the difference that its wrong columns made."""
        if self._control is None:
            raise SessionError(f"This needs the comparison '{self._probes[0].name}', which did not finish.")
        return self._control

    def _without_cache(self) -> Compared:
        """Compare decoding from a cache with one forward over prompt and answer."""
        cached, wrong = self._compared_first()
        plain = self._oracle.plainly()
        if difference(plain, self._untouched) > self._tolerance:
            raise _NotServedError("without a cache, this model's prompt attends to the answer after it")
        with self._drop(self._probes[0].method):
            logits = self._oracle.plainly()
        return Compared(difference(logits, cached), wrong)

    def _in_batch(self) -> Compared:
        """Compare each sample of a left-padded batch with the sample alone."""
        alone, wrong = self._compared_first()
        if self._no_batch:
            raise _NotServedError(self._no_batch)
        with self._drop(self._probes[0].method):
            return Compared(self._batch_noise(alone), wrong)

    def _replay(self) -> Compared:
        """Compare a prefill and decode steps replayed as CUDA graphs with those run without graphs."""
        if self._model.device.type not in TAPES:
            raise _NotServedError("not run: no CUDA device")
        plain, wrong = self._compared_first()
        for _ in range(3):  # the first run is observed, the second recorded, the third replayed
            with self._drop(self._probes[0].method, cuda_graphs=True) as trace:
                logits = self._force(self._inputs)[0]
        assert trace.graphs is not None
        latest = trace.graphs.decoder.latest
        if latest != "replayed":
            raise _NotServedError(f"not replayed: {latest}")
        return Compared(difference(logits, plain), wrong)

    def _mark(self) -> str:
        """Check that the pooling mask marks as many rows as are left, and none that the last layer did not run on."""
        hidden: list[Tensor] = []

        def flip(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return with_hidden(original(*args, **kwargs), lambda rows: rows.flip(-1))  # norms undo shifts and scales

        with Patcher() as patches:
            patches.hook(self._family.text, "after", lambda text, args, output: hidden.append(output[0]))
            for flipped in (False, True):
                if flipped:
                    steps = len(hidden)
                    patches.wrap(self._family.layers[-1], "forward", flip)
                with self._drop(self._probes[0].method) as trace:
                    self._force(self._inputs)
        if hidden[0].shape[1] == 1:
            raise _NotServedError("in generate, the last layers run on the prompt's last row alone")
        moved = (hidden[0] != hidden[steps]).any(dim=-1)[0]
        marks = trace.latest.pooling_mask[0].bool()
        left = self.tokens - len(self._oracle.vision) + trace.cuts[-1].after[0]
        if int(marks.sum()) != left:
            return f"it marks {int(marks.sum())} rows, and {left} are left"
        return "" if bool(moved[marks.to(moved.device)].all()) else "it marks rows that the last layer did not run on"

    def _restore(self, state: dict[str, Any], plain: Tensor) -> str:
        """Check that the model is restored after a context ends, normally or with an exception."""

        def fail(*_: object) -> None:
            raise _PlannedError

        logits = [self._generate(self._inputs)[0]]
        with Patcher() as patches, suppress(_PlannedError):
            patches.hook(self._family.layers[-1], "before", fail)
            with self._drop(self._probes[0].method):
                self._force(self._inputs)
            return "an error inside a layer was not raised"
        logits.append(self._generate(self._inputs)[0])
        if state_of_model(self._model) != state:
            return "hooks or attributes are left on the model"
        return "" if all(torch.equal(again, plain) for again in logits) else "logits differ"


def difference(logits: Tensor, reference: Tensor) -> float:
    """Return the largest difference of logits, as a share of the reference's largest; infinite if there is a NaN.

    Ids that a model never generates have the lowest possible logit and are left out (Chameleon's ids of pictures).
    """
    said = ~(reference < NEVER)
    logits, reference = logits[said], reference[said]
    share = float((logits - reference).abs().max() / reference.abs().max())
    if math.isnan(share):
        return math.inf
    return share


# -- probes -------------------------------------------------------------------------------------------------------


def probes(depth: int, recurrent: Collection[int]) -> list[Probe]:
    """Return the methods to compare on a decoder of `depth` layers.

    The first one is also compared in a batch and without a cache. They keep few tokens and cut early: a fault in late
    layers, which read little from vision tokens, would not show.
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
    """Return the layers at these shares of a decoder's depth: at least 1, ascending, below `depth`."""
    layers: list[int] = []
    for share in shares:
        layers.append(max(1, int(depth * share), *(layer + 1 for layer in layers)))
    return tuple(layer for layer in layers if layer < depth)


def _special(model: Any) -> set[int]:
    """Return the ids with a special meaning in a model's configs: placeholders of pictures, end, padding."""
    ids: set[int] = set()
    text = model.config.get_text_config()
    for config in (model.config, text, model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_ids", "_token_index")) and value is not None:
                ids.update(value if isinstance(value, list) else [value])
    return {token for token in ids if 0 <= token < text.vocab_size}


class _PlannedError(Exception):
    """Raised on purpose inside a context."""
