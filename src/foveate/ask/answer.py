"""`Answer`: the text a model generated, its cost and savings, and its display in a notebook."""

import itertools
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor

from foveate._transformers import Cache
from foveate.ask.generation import ends_of, pad_id
from foveate.ask.prompt import Prompt
from foveate.contract.budget import is_met
from foveate.contract.method import Method
from foveate.cost import Cost, flops_words
from foveate.engine.lives.limited import LimitedLayer
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, UnsupportedError
from foveate.naming import name_of
from foveate.plain.table import Column, Table
from foveate.plain.upstream import ignored

AS_NOTES = ignored(Warning)
"""For doors that show an answer's notes, which warnings repeat."""
OVERFLOW = (
    "The vision tower gave NaN for a picture of this prompt, so the answer says nothing about it. In float16, numbers "
    'above 65,504 overflow: load the model with dtype="bfloat16" or "float32".'
)


@dataclass(frozen=True, slots=True)
class Saved:
    """Shares saved by dropping, relative to the untouched model on the same prompt.

    Attributes:
        prefill_flops: Share of the decoder's prefill FLOPs. None if those of this model are not counted.
        total_flops: Share of the FLOPs from the pixels to the first token, likewise.
        kv_bytes: Share of the KV cache's bytes, measured after the answer. (`Answer.kv_bytes` is in bytes.)
    """

    prefill_flops: float | None
    total_flops: float | None
    kv_bytes: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the shares as a dictionary of plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer to one prompt, with its cost.

    Attributes:
        prompt: The prompt.
        text: The answer.
        tokens: The answer's token ids, including the end of sequence.
        method: The method that dropped tokens, with its budget. None for the untouched model.
        trace: The tokens dropped at each stage, for the whole batch. Without dropping it holds at most the counts of
            CUDA graphs.
        sample: Index of this answer's sample in the batch, and with beams of its first one: in `trace`.
        kv_bytes: Bytes of keys and values in the cache after the answer, measured. In a batch: this sample's share.
        kv_bytes_whole: Bytes that the same cache would hold without dropping.
        first: Natural log-probabilities of the first token, (vocabulary,) float32 on the CPU. None unless requested.
        choices: Natural log-probability of each given choice, summed over its tokens.
        looked: Prompt tokens that were prefilled before, by `VLM.look` or for several questions of `ask_many`. Costs
            and shares still cover the whole prompt, and the trace is that of the look if it has pictures.
        confidence: Probability of the answer's least likely token. None unless requested. After a second look: that of
            the first look's answer.
        unsure: The first look's answer, if the full model was asked again. `spent`, `flops` and `saved` then count
            both. None if there was one look.
        idle: The method that was given for a prompt without vision tokens, where it had nothing to drop.
    """

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    method: Method | None = None
    trace: Trace = field(default_factory=Trace, repr=False)
    sample: int = 0
    kv_bytes: int = 0
    kv_bytes_whole: int = 0
    first: Tensor | None = field(default=None, repr=False)
    choices: Mapping[str, float] = field(default_factory=dict)
    looked: int = 0
    confidence: float | None = None
    unsure: "Answer | None" = None
    idle: Method | None = None

    @property
    def again(self) -> bool:
        """Whether the full model was asked again because the first look's confidence was too low."""
        return self.unsure is not None

    @property
    def said(self) -> tuple[int, ...]:
        """The answer's token ids before the first end or padding token."""
        stop = {*ends_of(self.prompt.card), pad_id(self.prompt.card)}
        return tuple(itertools.takewhile(lambda token: token not in stop, self.tokens))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, such as that an image is cropped or that the budget is very small."""
        notes = list(self.prompt.notes)
        if self.idle is not None:
            notes.append(f"{name_of(self.idle)} had nothing to drop: the prompt has no picture or video.")
        if self.caution is not None:
            notes.append(self.caution)
        return tuple(notes)

    @property
    def caution(self) -> str | None:
        """The method's warning about a budget this small, or None."""
        if self.method is None or self.asked is None:
            return None
        return self.method.caution(self.asked)

    @property
    def vision_tokens(self) -> int:
        """Number of vision tokens in the prompt."""
        return self.prompt.vision_tokens

    @property
    def spent(self) -> float:
        """Mean vision tokens per decoder layer, both looks together if the full model was asked again."""
        spent = float(self.vision_tokens)
        if self.trace.history:
            spent = self.trace.history[0].tokens[self._row]
        if self.unsure is None:
            return spent
        return self.unsure.spent + spent

    @property
    def retention(self) -> float:
        """Mean share of the prompt's vision tokens that a decoder layer processed; 1 if the prompt has none.

        It exceeds 1 if the full model was asked again.
        """
        if not self.vision_tokens:
            return 1.0
        return self.spent / self.vision_tokens

    @property
    def asked(self) -> float | None:
        """The requested retention, or None if there was no budget."""
        if self.method is None:
            return None
        return self.prompt.budget_share(self.method)

    @property
    def met(self) -> bool | None:
        """Whether the budget was met within 2 %; None if there was no budget."""
        if self.asked is None:
            return None
        return is_met(self.asked, self.retention)

    @property
    def missed(self) -> str | None:
        """The requested and the spent share as a text, if the budget was missed; else None."""
        if self.met is not False:
            return None
        return f"{self.asked:.1%} requested, {self.retention:.1%} spent"

    @cached_property
    def cost(self) -> Cost:
        """The prompt's cost with dropping, counted."""
        return self.prompt.cost(self.method, self.trace, self._row)

    @cached_property
    def cost_untouched(self) -> Cost:
        """The prompt's cost without dropping, counted."""
        return self.prompt.cost()

    @cached_property
    def uncounted(self) -> str | None:
        """Why this model's FLOPs cannot be counted, or None if they can."""
        try:
            _ = self.cost_untouched
        except UnsupportedError as error:
            return str(error)
        return None

    @property
    def flops(self) -> int | None:
        """FLOPs from the pixels to the first token. None if unknown, as for a prompt without an image."""
        if not self.vision_tokens:
            return None
        try:
            flops = self.cost.total_flops
        except FoveateError:  # several tiles in one count: the tower's FLOPs cannot be derived from it
            return None
        if self.unsure is None or flops is None:
            return flops
        before = self.unsure.flops
        if before is None:
            return None
        return before + flops

    @property
    def saved(self) -> Saved:
        """Shares saved by dropping. They can be negative if the full model was asked again."""
        kv_bytes = 0.0
        if self.kv_bytes_whole:
            kv_bytes = 1 - self.kv_bytes / self.kv_bytes_whole
        before = Saved(1.0, 1.0, 0.0) if self.unsure is None else self.unsure.saved
        if self.uncounted is not None or before.prefill_flops is None:
            return Saved(None, None, kv_bytes)
        cost, untouched = self.cost, self.cost_untouched
        prefill = 1 - cost.prefill_flops / untouched.prefill_flops
        spent, full, total = cost.total_flops, untouched.total_flops, None
        if spent is not None and full is not None and before.total_flops is not None:
            total = before.total_flops - 1 + (1 - spent / full)
        return Saved(before.prefill_flops - 1 + prefill, total, kv_bytes)

    @property
    def _row(self) -> int:
        """The answer's row in the first prefill. Questions that share a prefill share its row."""
        if self.trace.history:
            return min(self.sample, len(self.trace.history[0].rows) - 1)
        return self.sample

    def show(self) -> Image.Image:
        """Draw the kept patches on the prompt's images, one panel per stage. After a second look: those of the first.

        Raises:
            InputError: If the prompt has no image, or the positions of its tokens are unknown.
            SessionError: If nothing was dropped.
        """
        if self.unsure is not None:
            return self.unsure.show()
        return self.trace.show(self.prompt.shown, self._row)

    def warn(self, stacklevel: int) -> None:
        """Warn if the tower gave NaN, or the budget is too small for the method or missed by more than rounding."""
        if OVERFLOW in self.prompt.notes:
            warnings.warn(OVERFLOW, stacklevel=stacklevel + 1)
        if self.caution is not None:
            warnings.warn(self.caution, stacklevel=stacklevel + 1)
        if self.missed is None or self.method is None or self.asked is None:
            return
        # Rounding accounts for up to one token per image.
        if abs(self.spent - self.asked * self.vision_tokens) > self.prompt.looks:
            warnings.warn(f"{name_of(self.method)} does not meet the budget: {self.missed}.", stacklevel=stacklevel + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the answer, settings, spent and saved shares, cost and trace."""
        values: dict[str, object] = {
            "answer": self.text,
            "token_ids": list(self.tokens),
            "setting": None if self.method is None else self.method.to_dict(),
            "retention": self.retention,
            "mean_tokens": self.spent,
            "asked": self.asked,
            "spent": self.retention,
            "met": self.met,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_whole": self.kv_bytes_whole,
            "notes": list(self.notes),
        }
        if self.looked:
            values["looked"] = self.looked
        if self.choices:
            values["choices"] = dict(self.choices)
        if self.confidence is not None:
            values |= {"confidence": self.confidence, "again": self.again}
        if self.unsure is not None:
            values["unsure"] = self.unsure.to_dict()
        if self.trace.history:
            values["trace"] = self.trace.to_dict()
        if self.vision_tokens:
            values["cost"] = None if self.uncounted is not None else self.cost.to_dict()
            values["saved"] = self.saved.to_dict()
        return values

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        method = "the untouched model"
        if self.method is not None:
            method = name_of(self.method)
        if self.unsure is not None:
            method += f", unsure {self.confidence:.2f}"
        spent = f"{self.retention:.1%} of {self.vision_tokens} vision tokens"
        if self.missed is not None:
            spent += f", {self.asked:.1%} asked for"
        return f"Answer({self.text!r:.58}, {method}, {spent})"

    def _repr_html_(self) -> str:
        """Return HTML with the answer, a table of its cost and savings, and the image of the kept patches."""
        lines = [("Question", self.prompt.text), ("Answer", self.text)]
        asked = self if self.unsure is None else self.unsure
        if asked.method is not None:
            lines += [("Method", str(asked.method)), *self.lines()]
        lines += [(choice, f"log-probability {value:z.3f}") for choice, value in self.choices.items()]
        lines += [("Note", note) for note in self.notes]
        page = Table("", ["", Column("", wrap=True)], lines)._repr_html_()
        if self.prompt.media and (self.trace.stages or self.again):
            from foveate.viz.canvas import data_url

            with suppress(FoveateError):  # there may be nothing to draw on
                page += f"<img alt='kept patches' style='max-width:100%' src='{data_url(self.show())}'>"
        return page

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, text) pairs on cost and savings."""
        depth = self.prompt.card.depth
        spent = f"{self.retention:.1%} of the vision tokens: {self.spent:.3g} of {self.vision_tokens}"
        lines = [("Retention", f"{spent}, mean over {depth} decoder layers")]
        if self.confidence is not None:
            trusted = "trusted"
            if self.again:
                trusted = "unsure: the full model was asked again"
            lines.insert(0, ("Confidence", f"{self.confidence:.2f}, {trusted}"))
        if self.missed is not None:
            lines.append(("Budget", f"not met: {self.missed}"))
        steps = [f"{stage.place}: {stage.before[0]} to {stage.after[0]}" for stage in self.trace.stages]
        lines.append(("Stages", "; ".join(steps) or "nothing was dropped"))
        if self.trace.history and (reads := self.trace.history[0].reads):
            mean = sum(counts[self._row] for counts in reads.values()) / len(reads)
            lines.append(("Decoding", f"a step reads {mean:.3g} vision tokens in each of {len(reads)} layers"))
        if self.looked:
            lines.append(("Looked", f"once: {self.looked} tokens of each prompt were prefilled a single time"))
        for clip in self.prompt.clips:
            times = f"from {clip.seconds[0]:.2f} to {clip.seconds[-1]:.2f} s"
            lines.append(("Frames", f"{len(clip)} of {clip.path}, {times}"))
        if self.vision_tokens:
            lines.append(("FLOPs", self._flops_line()))
        if self.kv_bytes_whole:
            sizes = f"{self.kv_bytes / 2**20:.3g} of {self.kv_bytes_whole / 2**20:.3g} MiB"
            lines.append(("KV cache", f"{self.saved.kv_bytes:z.1%} saved: {sizes} (measured after the answer)"))
        return lines

    def _flops_line(self) -> str:
        """Return the counted savings in FLOPs as a text."""
        if self.uncounted is not None:
            return f"not counted: {self.uncounted}"
        saved = self.saved
        assert saved.prefill_flops is not None
        decoder = flops_words((1 - saved.prefill_flops) * self.cost_untouched.prefill_flops)
        # "z" prints "0.0%" instead of "-0.0%" when what is read ahead costs a little and nothing is dropped.
        rest = "the vision tower is not counted"
        if saved.total_flops is not None:
            rest = f"{saved.total_flops:z.1%} from the pixels to the first token (counted)"
        untouched = flops_words(self.cost_untouched.prefill_flops)
        return f"{saved.prefill_flops:z.1%} saved in the decoder's prefill ({decoder} of {untouched}); {rest}"


def kv_bytes(cache: Cache) -> tuple[int, int]:
    """Return the bytes of keys and values in a cache, and the bytes that it would hold without dropping.

    A layer with a recurrent state instead of keys and values counts 0. A layer with a sliding window of w tokens holds
    at most w − 1 tokens even without dropping, so the window's saving is not credited to the method. Copies of rows
    that decode steps read count as held.

    Args:
        cache: The transformers cache that `generate` returned, or None if the model keeps none.
    """
    held = undropped = 0
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            continue
        samples, slots = keys.shape[0], keys.shape[-2]  # (samples, heads, slots, head size)
        slot = (keys[:1, :, :1].nbytes + values[:1, :, :1].nbytes) if slots else 0  # one token of one sample
        size = keys.nbytes + values.nbytes
        held += size
        if isinstance(layer, LimitedLayer):
            held += layer.part.keys.nbytes + layer.part.values.nbytes
        head = getattr(layer, "head", None)  # the prefix that all samples share, stored once
        if head is None:
            seen = getattr(layer, "seen", None)  # the length before dropping; set if tokens were dropped here
            slots_whole = slots if seen is None else int(seen)
            if seen is not None and layer.window is not None:
                slots_whole = min(slots_whole, int(layer.window) - 1)
            undropped += samples * slot * slots_whole
            continue
        before = head[0].shape[-2]
        size_of_head = head[0].nbytes + head[1].nbytes
        held += size_of_head
        # Own rows, plus the prefix's bytes per token × its length before dropping (`seen` counts prefix and own rows).
        undropped += size + size_of_head // before * (int(layer.seen) - slots)
    return held, undropped
