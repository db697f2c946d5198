"""How many of a prompt's vision tokens a method leaves, layer by layer, and what the method itself costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import Shape, Stage
from foveate.cost._decoder import Decoder
from foveate.cost._prompt import Grids, PromptLengths
from foveate.errors import SettingError
from foveate.families.base import Family


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a method on a prompt, or of no method.

    Attributes:
        stages: The method's, in order; none without a method.
        tokens: Vision tokens that each decoder layer processes.
        cached: Vision tokens in each layer's cache once decoding starts.
        read: Of these, those that a step of decoding reads.
        scoring: FLOPs of the method's own arithmetic; None where nobody has counted them.
    """

    stages: tuple[Stage, ...]
    tokens: tuple[int, ...]
    cached: tuple[int, ...]
    read: tuple[int, ...]
    scoring: int | None

    @classmethod
    def nothing(cls, prompt: PromptLengths, depth: int, tokens: Sequence[int] | None) -> "Effect":
        """The untouched model, or one whose layers process so many vision tokens."""
        counts = tuple(tokens or (prompt.vision,) * depth)
        return cls((), counts, counts, counts, 0)

    @classmethod
    def by(
        cls,
        method: Method,
        prompt: PromptLengths,
        family: type[Family],
        config: Any,
        decoder: Decoder,
        tokens: Sequence[int] | None,
    ) -> "Effect":
        """The effect of a method.

        Args:
            method: The method, with its settings.
            prompt: The prompt's counts, and what is known of its pictures.
            family: Says which tokens always stay.
            config: The model's.
            decoder: Its shape.
            tokens: Vision tokens that each layer processes, from a trace; None to plan them.

        Raises:
            SettingError: If the method does not fit the depth, or the counts do not follow from what is known and
                `tokens` is missing.
        """
        depth, grids, videos = decoder.depth, prompt.grids, prompt.videos
        stages = follow.in_order(method.stages(Shape(depth)))
        follow.refuse_shallow(type(method).__name__, stages, depth)
        ranked = rankable(family, config, prompt.sizes)
        if tokens is None:
            plan = follow.layer_plan(stages, depth, ranked, grids, videos)
            if plan is None:
                raise _unknown(method, grids, videos)
            always_kept = prompt.vision - sum(ranked)
            tokens = [count + always_kept for count in plan]
        cached = follow.cached_plan(stages, tokens)
        scoring = follow.scoring_flops(stages, depth, decoder.width, ranked, grids, videos)
        return cls(
            stages=stages,
            tokens=tuple(tokens),
            cached=cached,
            read=_read(decoder, stages, cached, prompt.vision - sum(ranked)),
            scoring=scoring if all(stage.is_counted for stage in stages) else None,
        )


def _read(decoder: Decoder, stages: tuple[Stage, ...], cached: Sequence[int], always: int) -> tuple[int, ...]:
    """What a step reads in each layer; where a window or a state holds less than all, what is there."""
    plan = follow.read_plan(stages, [count - always for count in cached])
    whole = [window is None and layer not in decoder.recurrent for layer, window in enumerate(decoder.windows)]
    return tuple(
        read + always if all_there else count for read, count, all_there in zip(plan, cached, whole, strict=True)
    )


def rankable(family: type[Family], config: Any, sizes: Sequence[int]) -> tuple[int, ...]:
    """Vision tokens of each image that a method ranks and counts: all but those that always stay."""
    return tuple(size - len(family.always_kept(config, size)) for size in sizes)


def _unknown(method: Method, grids: Grids | None, videos: Sequence[bool] | None) -> SettingError:
    """Why the counts are not known, and what would tell them."""
    name = type(method).__name__
    run = "run it and pass **trace.latest.ran()."
    if grids is None:
        return SettingError(
            f"How many tokens {name} keeps does not follow from their number alone: pass grids=…, and videos=… for a "
            f"video; where what is shown or asked decides, {run}"
        )
    if videos is None and any(len(views) > 1 for views in grids):
        return SettingError(
            f"How many tokens {name} keeps depends on whether these grids are frames: pass videos=…; where what is "
            f"shown or asked decides, {run}"
        )
    return SettingError(f"How many tokens {name} keeps is decided by what is shown or asked: {run}")
