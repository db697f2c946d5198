"""What may differ from the old tree, and why: patterns of "family example prompt"."""

__all__ = ["CHANGED"]

CHANGED = {
    "* holov* *": "HoloV: quotas by mean CLS attention, as the released code",
    "* dart* *": "DART: pivots are visited by column mod 32, as the released code",
    "* tome* *": "ToMe: rows are sorted at the end only, as the released code",
    "* vispruner* *": "VisPruner: cosines on a grid of 2^-40; on LLaVA-NeXT of tower features",
    "* priortr-max *": "PriorTR: the largest head of the mean over rows, as the released code",
    "qwen2_5_vl vscan *": "VScan: the released local scan of Qwen2.5-VL",
    "qwen3_vl evs *": "EVS: main and deepstack features side by side, as the engine",
    "llava_next scope *": "SCOPE: tower features of each crop, as the released code",
    "embedded sparsevlm_plus/* *": "SparseVLM+: presets of the paper take the 14 busiest heads",
    "embedded clse/* *": "CLSE: presets truncate, as the released code",
    "embedded vidcom2/* *": "VidCom2: presets number positions anew, as the release",
    "embedded priortr/* *": "PriorTR: presets without the prompt's last row, as the port",
    "embedded untouched open": "asking inside an open fv.drop is refused",
}
