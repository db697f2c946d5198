# ruff: noqa: E501
"""Break the code on purpose, one place at a time, and see a test fail each time.

    python -m tests.mutants                                       # all
    python -m tests.mutants cache                                 # those whose function's name contains "cache"
    python -m tests.mutants --show engine.cache:PrunedLayer.crop  # every way to break a function

A mutant names a function, a kind of break and its place (see `tests.breaking`), and the tests that must see it. One that
survives is a test that is missing. Run it after changing the engine; it is too slow for every push.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.breaking import KINDS, SOURCE, Gone, broken, places_of

ROOT = Path(__file__).parent.parent
INVARIANTS = "tests/invariants"
HOUR = 3600

# (module:function, kind of break and place, tests that must see it)
MUTANTS = [
    ("core.attention:attention_rows", "edge 1", "tests/core tests/golden"),
    ("core.budget:keep_count", "minmax 2", "tests/core tests/methods"),
    ("core.grid:_axis", "more 2", "tests/core"),
    ("core.grid:frames_of", "left 2", "tests/core"),
    ("core.merge:dominant_and_contextual", "drop 14", "tests/core tests/golden"),
    ("core.merge:merge_windows", "more 4", "tests/core tests/golden"),
    ("core.merge:target_plus_mean", "right 1", "tests/core tests/golden"),
    ("core.rank:top", "opposite 2", "tests/core tests/methods"),
    ("core.cut:Cut.then", "inside 2", "tests/core"),
    ("core.cut:Cut.then", "inside 6", "tests/core"),
    ("engine.rows:RowMap.number_on", "drop 5", "tests/engine/test_positions.py"),
    ("engine.rows:RowMap.number_on", "receiver 6", "tests/engine/test_positions.py"),
    ("engine.reading:Reduction.add", "left 4", "tests/engine/test_reading.py"),
    ("methods.follow:_units_by_layer", "left 2", "tests/methods"),
    ("methods.mustdrop:MustDrop._highest", "none 1", "tests/methods/test_mustdrop.py"),
    ("methods.mustdrop:MustDrop._filter", "left 2", "tests/golden tests/methods"),
    ("methods.scheduled:Scheduled._count", "never 1", "tests/methods"),
    ("methods.stages:Stage._check", "never 4", "tests/methods/test_stages.py"),
    ("methods.v2drop:V2Drop._step", "right 1", "tests/methods/test_v2drop.py"),
    ("methods.visiondrop:VisionDrop._in_tower", "left 3", "tests/golden"),
    ("engine.cache:PrunedLayer._chosen", "left 5", "tests/engine"),
    ("engine.cache:PrunedLayer._chosen", "minmax 2", "tests/engine"),
    ("engine.cache:PrunedLayer._chosen", "right 4", "tests/engine"),
    ("engine.cache:PrunedLayer._evict", "drop 7", "tests/engine"),
    ("engine.cache:PrunedLayer._evict", "more 2", "tests/engine"),
    ("engine.cache:PrunedLayer.batch_select_indices", "drop 2", "tests/engine"),
    ("engine.cache:PrunedLayer.crop", "drop 7", "tests/engine"),
    ("engine.cache:PrunedLayer.get_mask_sizes", "left 4", "tests/engine"),
    ("engine.cache:PrunedLayer.reorder_cache", "drop 2", "tests/engine"),
    ("engine.cache:PrunedLayer.update", "left 6", "tests/engine"),
    ("engine.cache:PrunedLayer.update", "never 1", f"{INVARIANTS}/test_refusals.py"),
    ("engine.cache:PrunedLayer.update", "right 2", f"{INVARIANTS}/test_lengths.py tests/engine"),
    ("engine.finish:_tokens_left", "always 1", "tests/bench/test_waits.py"),
    ("engine.finish:_wanted", "left 2", "tests/methods/test_finalkv.py"),
    ("engine.finish:_wanted", "left 4", "tests/methods/test_finalkv.py"),
    ("engine.bucket:_merged", "never 2", "tests/golden " + f"{INVARIANTS}/test_oracle.py"),
    ("engine.reading:RowsReader._text_behind", "drop 4", "tests/golden tests/signals"),
    ("engine.runner:LayerRunner._put_back", "always 1", f"{INVARIANTS}/test_edges.py"),
    ("engine.runner:LayerRunner._run_rows", "drop 6", f"{INVARIANTS}/test_backends.py"),
    ("engine.runner:LayerRunner._run_rows", "drop 7", "tests/golden " + f"{INVARIANTS}/test_oracle.py"),
    ("engine.runner:LayerRunner._run_rows", "flip 2", "tests/families/test_qwen3_5.py"),
    ("engine.runner:_device_of", "always 1", "tests/arrive/test_device_map.py"),
    ("engine.runner:_padding", "left 1", f"{INVARIANTS}/test_batch.py"),
    ("engine.runner:_padding", "none 1", "tests/families/test_qwen3_5.py"),
    ("engine.rows:RowMap.__init__", "always 2", f"{INVARIANTS}/test_oracle.py"),
    ("engine.rows:RowMap._shifted", "always 1", f"{INVARIANTS}/test_batch.py"),
    ("engine.rows:RowMap.renumbered", "never 1", f"{INVARIANTS}/test_batch.py"),
    ("core.memo:_same", "left 1", "tests/core/test_memo.py"),
    ("engine.masks:Remap._columns_of", "always 1", "tests/engine"),
    ("engine.masks:Remap._dense", "left 1", "tests/engine"),
    ("engine.masks:Remap._from_nothing", "edge 1", f"{INVARIANTS}/test_backends.py tests/engine"),
    ("engine.masks:Remap._from_nothing", "never 3", "tests/engine"),
    ("engine.masks:_dense_lookup", "none 1", "tests/engine"),
    ("engine.cutting:_cut", "drop 15", f"{INVARIANTS}/test_oracle.py"),
    ("engine.cutting:_cut", "drop 16", f"{INVARIANTS}/test_oracle.py"),
    ("engine.begin:_live", "inside 2", f"{INVARIANTS}/test_batch.py"),
    ("engine.begin:_splits_image", "left 1", f"{INVARIANTS}/test_refusals.py"),
    ("engine.guards:refuse_lost_layers", "never 1", "tests/arrive/test_device_map.py"),
    ("core.patching:Patcher.wrap", "drop 2", "tests/core/test_patching.py"),
    ("core.gather:take_along", "drop 4", "tests/core/test_gather.py"),
    ("engine.images:with_counts", "drop 7", "tests/engine/test_encode.py"),
    ("engine.images:_made", "none 1", "tests/engine/test_encode.py"),
    ("engine.looking:_joined", "drop 5", "tests/engine/test_looking.py"),
    ("engine.session:Session.detach", "drop 1", f"{INVARIANTS}/test_restore.py"),
    ("engine.begin:begin", "left 4", f"{INVARIANTS}/test_refusals.py"),
    ("engine.hooks:ModelHooks.before_decoder", "never 1", "tests/arrive/test_continuous_batching.py"),
    ("engine.hooks:ModelHooks.around_features", "never 1", f"{INVARIANTS}/test_generation.py"),
    ("engine.samples:_read_sample", "left 3", f"{INVARIANTS}/test_batch.py"),
    ("engine.samples:_read_sample", "right 4", f"{INVARIANTS}/test_batch.py"),
    ("engine.samples:_read_sample", "right 10", "tests/engine/test_frames.py"),
    ("core.patching:Patcher.hook", "drop 1", f"{INVARIANTS}/test_restore.py"),
    ("core.patching:_Wrapped.undo", "left 2", "tests/core/test_patching.py"),
    ("core.patching:_Wrapped.undo", "drop 1", "tests/core/test_patching.py"),
    ("engine.media:MediaTokens.__deepcopy__", "none 1", f"{INVARIANTS}/test_restore.py"),
    ("engine.trace:PrefillRecord.kept_by_frame", "flip 2", "tests/engine/test_frames.py"),
    ("families.tower:_ReducedRun._view", "more 1", "tests/families/test_tower.py"),
    ("families.base:Family.queries_and_keys", "never 2", f"{INVARIANTS}/test_oracle.py"),
    ("families.qwen_vl:Qwen25VL.token_order", "receiver 1", "tests/families/test_qwen2_5_vl.py"),
    ("families.qwen_vl:Qwen35.query_projection", "more 4", f"{INVARIANTS}/test_oracle.py"),
    ("video.pixels:_upright", "flip 2", "tests/video"),
    ("video.pixels:pixels", "right 1", "tests/video"),
    ("video.reading:_Decoder._go_to", "drop 3", "tests/video"),
    ("video.reading:_Decoder._go_to", "drop 4", "tests/video"),
    ("video.reading:_Decoder._missing", "left 1", "tests/video"),
    ("video.reading:_Decoder.clip", "always 3", "tests/video"),
    ("video.survey:_look", "left 1", "tests/video"),
]  # fmt: skip


def survives(path: Path, source: str, tests: str) -> bool:
    """Whether all tests pass with this source in the place of a file's."""
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "src"
        shutil.copytree(SOURCE.parent, src, ignore=shutil.ignore_patterns("__pycache__"))
        (src / path.relative_to(SOURCE.parent)).write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(src)}
        try:
            run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=HOUR)
        except subprocess.TimeoutExpired:  # a break may make a loop endless
            return False
        return run.returncode == 0


def show(key: str) -> None:
    """Print every way to break a function."""
    for kind in KINDS:
        for number in range(1, len(places_of(key, kind)) + 1):
            print(f"{kind} {number:<4}{broken(key, f'{kind} {number}')[2]}")


def main(arguments: list[str]) -> int:
    """Run the mutants asked for; 1 if one survived or could not be made."""
    if arguments[:1] == ["--show"]:
        show(arguments[1])
        return 0
    chosen = [mutant for mutant in MUTANTS if not arguments or arguments[0] in mutant[0]]
    bad = 0
    for key, place, tests in chosen:
        try:
            path, source, said = broken(key, place)
            word = "SURVIVED" if survives(path, source, tests) else "killed"
        except Gone as error:
            word, said = "GONE", str(error)
        bad += word != "killed"
        print(f"{word:9}{key} {place}: {said}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
