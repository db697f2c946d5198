from foveate.methods.mustdrop import MustDrop

CUTS = {"pruning_layers": (1, 3), "merge_window": 2}
EXAMPLES = [
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_threshold=0.3),
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_windows=False, positions="keep"),
    MustDrop(**CUTS, mode="budget", counts=(12, 7), reference=25, merge_windows=False, kv=False),
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_threshold=0.3, positions="keep"),
]
KEEP_ALL = MustDrop(**CUTS, global_thr=0.0, individual_thr=0.0, merge_windows=False)
