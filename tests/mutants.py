# ruff: noqa: E501
"""Break the code on purpose, one place at a time, and see a test fail each time.

    python -m tests.mutants            # all
    python -m tests.mutants cache      # those whose file name contains "cache"

A mutant that survives is a test that is missing. Run it after changing the engine; it is too slow for every push.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
INVARIANTS = "tests/invariants"

# (file under src/foveate, what is there, what is put there, tests that must see it)
MUTANTS = [
    ("core/budget.py", "int(tokens * ratio)", "round(tokens * ratio)", "tests/methods tests/core"),
    ("core/rank.py", "descending=True, stable=True", "descending=False, stable=True", "tests/methods tests/core"),
    ("core/rank.py", "order[:count].sort().values", "order[:count]", "tests/methods tests/core"),
    ("core/attention.py", "later = places > (", "later = places >= (", "tests/core tests/golden"),
    ("core/merge.py", "base + (total - base)", "(total - base)", "tests/core tests/golden"),
    ("methods/v2drop.py", "layer + self.window in self.layers", "layer in self.layers", "tests/methods/test_v2drop.py"),
    ("methods/staged.py", "view.entered < self.skip_below", "False", "tests/methods"),
    ("methods/mustdrop.py", "return Cut(~lazy | view.notes[\"key\"])", "return Cut(~lazy)", "tests/golden tests/methods"),
    ("methods/visiondrop.py", "dominant - with_cls - view.reserved", "dominant - view.reserved", "tests/golden"),
    ("engine/layout.py", "places = self.source.clamp(min=0)", "places = self.index", f"{INVARIANTS}/test_oracle.py"),
    ("engine/layout.py", "rows[sample, row])", "rows[sample, row] * 1.01)", f"{INVARIANTS}/test_batch.py"),
    ("engine/cache.py", "self.base = self.base.index_select", "self.base.index_select", "tests/engine"),
    ("engine/cache.py", "self.seen += span", "self.seen += key_states.shape[-2]", f"{INVARIANTS}/test_lengths.py tests/engine"),
    ("engine/cache.py", "return self.seen - before + query_length, before", "return self.keys.shape[-2] + query_length, before", f"{INVARIANTS}/test_batch.py"),
    ("engine/cache.py", "if self._announced is None and self._pruned:", "if False:", f"{INVARIANTS}/test_refusals.py"),
    ("engine/cache.py", "gone = self.keys.shape[-2] - (self.window - 1)", "gone = self.keys.shape[-2] - (self.window - 2)", "tests/engine"),
    ("engine/cache.py", "self.base_end += gone - held", "pass", "tests/engine"),
    ("engine/cache.py", "most = min(rows, max(counts))", "most = rows", "tests/engine"),
    ("engine/cache.py", "ragged=not even or (earlier > 0 and self.ragged)", "ragged=not even", "tests/engine"),
    ("engine/cache.py", "even = rows == wanted.shape[1] and min", "even = min", "tests/engine"),
    ("engine/decoding.py", "texts = [sample.live - len(sample.vision)", "texts = [len(sample.text)", "tests/methods/test_final_kv.py"),
    ("engine/decoding.py", "texts = [len(sample.text)", "texts = [sample.live - len(sample.vision)", "tests/methods/test_final_kv.py"),
    ("engine/decoding.py", "merged = prompt.method.adds_rows and group.assign is not None", "merged = True", "tests/bench/test_waits.py"),
    ("families/_before.py", "None if at else merge", "None", "tests/families/test_llava_towers.py"),
    ("engine/cache.py", "return keys[..., -reach:, :], values[..., -reach:, :]", "pass", "tests/engine"),
    ("engine/layout.py", "known is key[0] and kind == key[1]", "known is key[0]", "tests/engine"),
    ("engine/masks.py", "reached = (places >= 0)", "reached = (places >= -9)", "tests/engine"),
    ("engine/masks.py", "return self.keys >= 0\n", "return self.keys >= -1\n", f"{INVARIANTS}/test_backends.py tests/engine"),
    ("engine/masks.py", "offset = self.total - width", "offset = 0", "tests/engine"),
    ("engine/masks.py", "(self.keys[:, None, :] <= (self.queries + self.past)[:, :, None])", "(self.keys[:, None, :] >= 0)", "tests/engine"),
    ("engine/layers.py", "if prompt.image_ends is not None:", "if False:", f"{INVARIANTS}/test_columns.py"),
    ("engine/layout.py", "columns[:, None], right=True) - 1", "columns[:, None]) - 1", "tests/engine"),
    ("engine/prompts.py", "previous is not None and cache is not None and", "previous is not None and", f"{INVARIANTS}/test_columns.py"),
    ("engine/layers.py", 'kwargs["position_ids"] = self._asked_ids(', "self._asked_ids(", f"{INVARIANTS}/test_backends.py"),
    ("engine/layers.py", "pruned.shift = layout.shift(pruned.shift, prompt.rows)", "pass", "tests/golden " + f"{INVARIANTS}/test_oracle.py"),
    ("engine/layers.py", "sees=sees and (lambda rows: sees(columns.gather(1, rows)))", "sees=None", "tests/methods/test_visiondrop.py"),
    ("engine/prompts.py", 'self._given.get("attention_mask")', "None", f"{INVARIANTS}/test_batch.py"),
    ("engine/session.py", "self._undo.pop()()", "self._undo.pop()", f"{INVARIANTS}/test_restore.py"),
    ("engine/prompts.py", "check_cache(cache)", "pass", f"{INVARIANTS}/test_refusals.py"),
    ("engine/prompts.py", "            raise UnsupportedError(\n                \"Chunked", "            print(\n                \"Chunked", f"{INVARIANTS}/test_refusals.py"),
    ("engine/prompts.py", "if self._encoding:", "if False:", f"{INVARIANTS}/test_generation.py"),
    ("engine/group.py", "name: note[safe] for", "name: note[: len(safe)] for", "tests/golden"),
    ("engine/samples.py", "np.flatnonzero((live & ((owner < 0) | fixed)) | read)", "np.flatnonzero(live & ((owner < 0) | fixed))", f"{INVARIANTS}/test_batch.py"),
    ("engine/samples.py", "np.flatnonzero((live & ((owner < 0) | fixed)) | read)", "np.flatnonzero((owner < 0) | fixed)", f"{INVARIANTS}/test_batch.py"),
    ("engine/prompt.py", "self._move_added(group, layer, came_from)", "pass", f"{INVARIANTS}/test_oracle.py"),
    ("engine/prompt.py", "hidden = hidden.index_put((owners, columns), rows.to(hidden.dtype))", "pass", f"{INVARIANTS}/test_oracle.py"),
    ("engine/tower.py", "def __deepcopy__(self, memo: Any) -> \"_Places\":\n        return self", "def nothing(self) -> None:\n        pass", f"{INVARIANTS}/test_restore.py"),
    ("engine/layers.py", "hidden.device if weight.is_meta else weight.device", "hidden.device", "tests/arrive/test_device_map.py"),
    ("engine/session.py", "if on else original(*args, **kwargs)", "", "tests/arrive/test_device_map.py"),
    ("engine/session.py", "setattr(module, place, original)", "pass", "tests/arrive/test_device_map.py"),
    ("engine/prompts.py", "if not prompt.layouts:", "if False:", "tests/arrive/test_device_map.py"),
    ("engine/prompts.py", 'if "write_index" in kwargs:', "if False:", "tests/arrive/test_continuous_batching.py"),
    ("core/grid.py", "start - starts[0] for", "start for", "tests/core"),
    ("engine/samples.py", "sizes = frames or", "sizes =", "tests/engine/test_show.py"),
    ("engine/trace.py", "owners[stage.kept[sample]]", "owners[: len(stage.kept[sample])]", "tests/engine/test_show.py"),
    ("video/pixels.py", "if down < 0", "if down > 0", "tests/video"),
    ("video/pixels.py", "int(frame.color_range) or LIMITED", "LIMITED", "tests/video"),
    ("video/reading.py", "self._near *= 2", "pass", "tests/video"),
    ("video/reading.py", "self._seek(time)", "pass", "tests/video"),
    ("video/reading.py", "or any(due <= time + HAIR for due in self._due)", "or False", "tests/video"),
    ("video/reading.py", "time if again else max(since, part[0])", "time", "tests/video"),
    ("video/survey.py", "if not packet.size or packet.is_discard", "if not packet.size", "tests/video"),
    ("families/base.py", 'getattr(attention, "q_norm", None)', "None", f"{INVARIANTS}/test_oracle.py"),
    ("families/qwen2_5_vl.py", "index.argsort()", "index", "tests/families/test_qwen2_5_vl.py"),
    ("families/qwen3_5.py", "attention.head_dim))[..., 0, :]", "attention.head_dim))[..., 1, :]", f"{INVARIANTS}/test_oracle.py"),
    ("engine/layers.py", "        return layout.valid\n", "        return None\n", "tests/families/test_qwen3_5.py"),
    ("engine/layers.py", "else real & layout.valid", "else real", f"{INVARIANTS}/test_batch.py"),
    ("engine/layers.py", "make=index not in self._recurrent", "make=True", "tests/families/test_qwen3_5.py"),
]  # fmt: skip


def survives(file: str, old: str, new: str, tests: str) -> bool | None:
    """Whether all tests pass with the code broken; None if the place to break is gone."""
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "src"
        shutil.copytree(ROOT / "src", src, ignore=shutil.ignore_patterns("__pycache__"))
        target = src / "foveate" / file
        text = target.read_text()
        if old not in text:
            return None
        target.write_text(text.replace(old, new, 1))
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(src)},
            capture_output=True,
        )
        return run.returncode == 0


def main() -> int:
    """Run the mutants asked for; 1 if one survived or could not be made."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutant for mutant in MUTANTS if wanted in mutant[0]]
    bad = 0
    for file, old, new, tests in chosen:
        outcome = survives(file, old, new, tests)
        word = {None: "GONE", True: "SURVIVED", False: "killed"}[outcome]
        bad += outcome is not False
        print(
            f"{word:9}{file}: {old.strip().splitlines()[0][:60]!r} -> {new.strip().splitlines()[0][:40]!r}", flush=True
        )
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
