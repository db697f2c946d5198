"""Why a method hardly shortens the first token, from what a paired run measured.

Seconds of the candidate that a method is compared with: F to the first token, of which T in the vision tower, P in the
decoder's prefill, and O = F − T − P elsewhere. With the method, the tower takes T', and p is the share of the prefill's
FLOPs that remain. f is the share of P that does not depend on the tokens: on CUDA the launches, elsewhere the time of a
later token, which is one row through all layers.

    e = (min(T, T') + p P + O) / F              the least that FLOPs allow
    h = (min(T, T') + s P + O) / F              s = f + (1 − f) p; on CUDA f, as host and device overlap

A method gains if it takes at most `LITTLE` of F. If not, the first of these that holds is the cause:

    text        e > LITTLE, T is not most of F or p > LITTLE, and most of the prompt is text
    budget      e > LITTLE and p > LITTLE, and most of the prompt is vision tokens
    tower       e > LITTLE, and T is most of F
    host        h > LITTLE
    method      the bare layers on as many rows gain
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from foveate._transformers import PreTrainedModel
from foveate.bench.paired import PairedRun
from foveate.bench.results import ResultRow
from foveate.contract.stages import Place, Shape, ThinStage
from foveate.errors import SettingError
from foveate.families.support import reach
from foveate.plain.spelling import in_words
from foveate.registry import family_for, methods

LITTLE = 0.9
"""A first token that takes more than this share of the time is hardly earlier."""

Cause = Literal["host", "tower", "text", "budget", "method"]


@dataclass(frozen=True, slots=True)
class NoGain:
    """Why a method hardly shortens the first token.

    Attributes:
        cause: The cause in one word.
        why: The cause in one sentence, with the figures that show it.
    """

    cause: Cause
    why: str

    def to_dict(self) -> dict[str, str]:
        """The cause as plain values."""
        return asdict(self)


def no_gains(run: PairedRun, rows: Sequence[ResultRow], bases: Mapping[str, str]) -> dict[str, NoGain]:
    """The causes for the methods that hardly shorten the first token, by name.

    A method that does, or for which no measured figure shows a cause, is left out.

    Args:
        run: A run with finished rounds.
        rows: The run's rows; see `foveate.bench.results.rows_of`.
        bases: Names of candidates with a method, and of the candidate that each is compared with.
    """
    by_name = {row["name"]: row for row in rows}
    causes: dict[str, NoGain] = {}
    for name, base in bases.items():
        over = run.ratios(name, base).get("ttft")
        if over is None or over.median <= LITTLE:
            continue
        cause = _cause(run, by_name[name], by_name[base])
        if cause is not None:
            causes[name] = cause
    return causes


def notes_of(causes: Mapping[str, NoGain]) -> list[str]:
    """A note for each sentence, with the names of all methods for which it holds."""
    names: dict[str, list[str]] = {}
    for name, cause in causes.items():
        names.setdefault(cause.why, []).append(name)
    return [f"{', '.join(together)}: little or no gain: {why}" for why, together in names.items()]


def _cause(run: PairedRun, row: ResultRow, base: ResultRow) -> NoGain | None:
    workload = run.workload
    first, prefill, tower = base["ttft"], base["prefill"], base.get("tower", 0.0)
    left = row["prefill_flops"] / base["prefill_flops"]
    rest = first - tower - prefill + min(tower, row.get("tower", tower))
    length = workload.vision_tokens + workload.text_tokens
    if rest + left * prefill > LITTLE * first:
        if tower <= first / 2 or left > LITTLE:
            if workload.text_tokens > length / 2:
                return NoGain(
                    "text",
                    f"vision tokens are {workload.vision_tokens / length:.0%} of the prompt "
                    f"({workload.vision_tokens:,} of {length:,}), and dropping them leaves the text.",
                )
            if left > LITTLE:
                return NoGain(
                    "budget", f"it leaves {left:.0%} of the decoder's FLOPs on this prompt: ask for fewer tokens."
                )
        if tower > first / 2:
            return NoGain(
                "tower",
                f"the vision tower takes {tower / first:.0%} of the time to the first token, which a cut in the "
                f"decoder does not shorten. {_early_words(run.model)}",
            )
    fixed = _fixed(base)
    if fixed is not None:
        share, what = fixed
        slowest = share if "launches" in base else share + (1 - share) * left
        if rest + slowest * prefill > LITTLE * first:
            return NoGain(
                "host", f"{what}, whatever the number of tokens. Measure with a larger batch, a video or a long prompt."
            )
    bare = run.ratios(row["bare"], base["name"]).get("ttft") if row["bare"] else None
    if bare is not None and bare.median <= LITTLE:
        return NoGain(
            "method",
            f"on as many tokens the model's own layers take {bare.median:.0%} of the time, and foveate takes the rest "
            "to score and gather.",
        )
    return None


def _fixed(base: ResultRow) -> tuple[float, str] | None:
    """The share of the prefill that does not depend on the tokens, in [0, 1], and in words. None if not measured."""
    prefill = base["prefill"]
    if "launches" in base:
        seconds, what = base["launches"], "the host takes {:.1f} of the prefill's {:.1f} ms to launch it"
    elif "tpot" in base:
        seconds = base["tpot"]
        what = (
            "a single token takes {:.1f} ms and the whole prompt's prefill {:.1f}: the host launches operators and "
            "reads weights"
        )
    else:
        return None
    return min(1.0, seconds / prefill), what.format(1000 * seconds, 1000 * prefill)


def _early_words(model: PreTrainedModel) -> str:
    """Which methods shorten the tower of this model, as a sentence."""
    names = early_methods(model)
    if not names:
        return "No method drops before or in the tower of this model."
    return f"These drop before or in the tower: {in_words(names, 'and')}."


def early_methods(model: PreTrainedModel) -> list[str]:
    """The names of the methods that drop before or in the vision tower of this model, with their default settings."""
    family = family_for(model)
    shape = Shape(len(family.layers), cls=bool(family.cls_in_tower(model.config)), renumbers=family.renumbers)
    names = []
    for name, kind in sorted(methods().items()):
        try:
            usual = kind()
            early = [stage for stage in usual.placed(shape) if stage.place <= Place.TOWER]
        except (SettingError, TypeError):  # it has no defaults, or needs more layers
            continue
        drops = any(stage.drops or isinstance(stage, ThinStage) for stage in early)
        if drops and not isinstance(reach(usual, type(family), model.config, depth=shape.depth), str):
            names.append(name)
    return names
