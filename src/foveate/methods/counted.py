"""What the methods have in common that let an exact number of an image's tokens into the decoder, by one stage."""

from typing import Any, ClassVar

from foveate.methods.base import Preset
from foveate.methods.entering import EnteringShare
from foveate.methods.settings import Positions
from foveate.methods.stages import Arriving

__all__ = ["Counted", "entering"]

ALL_OF_LLAVA = 576  # LLaVA-1.5's images all have as many tokens


class Counted(EnteringShare):
    """A fixed number of an image's tokens enters the decoder, and every layer processes as many.

    So the number of tokens that enter, which the papers of these methods call the budget, is also the mean over layers.

    Attributes:
        keep: Share of an image's vision tokens that enter the decoder, in (0, 1], rounded to a number of tokens.
        tokens: Instead of `keep`: how many tokens of an image enter.
        retention: Another name for `keep`: the name that budgets have.
        positions: "reindex" renumbers the rows, as the released codes do; "keep" keeps position ids. Families with
            M-RoPE always keep.
    """

    usual_keep: ClassVar[float] = 1 / 9  # 64 of LLaVA-1.5's 576 tokens

    positions: Positions = "reindex"

    def left(self, arriving: Arriving) -> int:
        """How many of an image's tokens enter: at least one, and less by a newline that its family adds later."""
        mean = self.budget.mean(arriving.entered)
        return min(max(1, round(mean) - arriving.reserved), arriving.tokens)


def entering(
    kind: type[Counted], model: str, tokens: int, full: int, source: str, suffix: str = "", **settings: Any
) -> Preset:
    """A preset that lets `tokens` of an image's `full` tokens into a decoder of 32 layers.

    Of models whose pictures differ in size it is a share, so that a picture of half the tokens keeps half as many.
    """
    method = kind(keep=tokens / full, **settings)
    if full == ALL_OF_LLAVA:
        method = kind(tokens=tokens, **settings)
    said = f"{source}; {tokens} of {full:,} tokens enter the decoder, and every layer processes these"
    return Preset(f"{kind.name}/{model}/{tokens}{suffix}", method, 32, full, said)
