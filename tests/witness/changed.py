"""What may differ from the old tree, and why: patterns of "family example prompt"."""

__all__ = ["CHANGED"]

CHANGED = {
    "* holov* *": "HoloV: quotas by mean CLS attention, as the released code",
    "* dart* *": "DART: pivots are visited by column mod 32, as the released code",
    "* tome* *": "ToMe: rows are sorted at the end only, as the released code",
    "* vispruner* *": "VisPruner: cosines on a grid of 2^-40, of tower features",
    "* priortr-max *": "PriorTR: the largest head of the mean over rows, as the released code",
    "* vscan* *": "VScan: the local scan of the released code for Qwen2.5-VL, in every family",
    "qwen3_vl* evs *": "EVS: main and deepstack features side by side, as the engine",
    "llava_next scope *": "SCOPE: similarity of tower features, also where tokens are dropped behind the projector",
    "llava_onevision scope *": "SCOPE: the same",
    "embedded sparsevlm_plus/* *": "SparseVLM+: presets of the paper take the 14 busiest heads",
    "* mustdrop-counts *": "MustDrop: a budget in the place of counts",
    "gemma4 mustdrop-retention *": "MustDrop: fewer key tokens where these alone exceed the budget, at every door",
    "llava_onevision mustdrop-retention *": "the same",
    "glm4* mustdrop-retention *": "MustDrop: 9 tokens cannot average 0.4, a floor at every door",
    "idefics3 mustdrop-retention *": "the same, and fewer key tokens",
    "internvl mustdrop-retention *": "the same",
    "smolvlm mustdrop-retention *": "the same",
    "* mustdrop@fifth *": "MustDrop: fewer key tokens where these alone exceed the budget, at every door",
    "* v2drop@third *": "a count that comes out whole is not cut by one where float rounding falls below it",
    "* random@third *": "the same",
    "* uniform@third *": "the same",
    "embedded averagepool@third *": "rows that share a look note a budget that is not met, as rows alone do",
    "embedded dycoke@third *": "the same",
    "embedded evs@third *": "the same",
    "embedded resize@third *": "the same",
    "embedded untouched open": "asking inside an open fv.drop is refused",
}
