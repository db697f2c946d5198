"""What a sample of queries does to VisionDrop's scores: writes benchmarks/visiondrop_queries.json and prints tables.

    python benchmarks/visiondrop_queries.py                  # a minute on one core
    python benchmarks/visiondrop_queries.py --only embedded  # one part anew; the other stays as it was recorded

Before each of its three cuts, on the rows that arrive there: scores by 16, 64 and 256 queries beside the scores by all.
The cuts themselves are made by all. First the embedded model on held-out pictures, then a video in a small shape with
random weights, which also tells what scoring takes: runs interleaved, "all" twice as a control, processor time.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import rich
import torch
from torch import Tensor

import foveate as fv
from foveate._sheet import Column, Sheet
from foveate._versions import commit, versions
from foveate.bench.shapes import NamedShape
from foveate.bench.stopwatch import clock_of
from foveate.bench.timing import interval_words, ratio, rounds
from foveate.bench.workload import PromptRequest, synthetic
from foveate.contract import Attention, LayerStage, LayerView, Stage
from foveate.core.patching import Patcher
from foveate.core.rank import ranks, top
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from foveate.engine.attending import RowsReader
from foveate.eval.held_out import SPLIT

OUT = Path(__file__).with_suffix(".json")
QUERIES = (16, 64, 256)
RETENTION = 1 / 3
FRAMES = 32  # two to a token's depth: 16 times 144 tokens
LONG = NamedShape(
    "qwen-long",
    of="nothing: Qwen2-VL's make, narrow, for a long video on one core",
    config={
        "model_type": "qwen2_vl",
        "text_config": {
            "hidden_size": 128,
            "intermediate_size": 344,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [4, 6, 6]},
        },
        "vision_config": {
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "image_token_id": 1001,
        "video_token_id": 1002,
        "vision_start_token_id": 1003,
        "vision_end_token_id": 1004,
    },
    frame={"tokens": 144, "grid": [1, 24, 24], "frames": FRAMES},
)


# -- scores ----------------------------------------------------------------------------------------------------


class Beside(fv.Method):
    """VisionDrop as it is set, and before each of its decoder's cuts a look at the scores by fewer queries."""

    name = "beside"

    method: fv.Method

    def check_settings(self) -> None:
        object.__setattr__(self, "seen", {})  # by layer: a picture's figures

    def stages(self, shape: Any) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        index = 0  # of the tower's stage, which may be switched off
        for stage in self.method.stages(shape):
            if isinstance(stage, LayerStage):
                index += 1
                (paid,) = (signal for signal in stage.reads if isinstance(signal, Attention))
                reads = (paid, *(replace(paid, sample=count) for count in QUERIES))
                note = partial(self._note, shape.depth, index, stage.layer, paid)
                stages.append(LayerStage(stage.layer, reads=reads, choose=note, host=True, unit="image"))
            stages.append(stage)
        return tuple(stages)

    def _note(self, depth: int, index: int, layer: int, paid: Attention, view: LayerView, _: int | None) -> None:
        dominant, _ = self.method.counts(depth, view.arriving)[index]
        scores = view[paid]
        figures: dict[str, Any] = {"arriving": len(view), "dominant": dominant}
        for count in QUERIES:
            few = view[replace(paid, sample=count)]
            figures[str(count)] = {
                "overlap": overlap(top(scores, dominant), top(few, dominant)),
                "spearman": spearman(scores, few),
            }
        self.seen.setdefault(layer, []).append(figures)


def overlap(kept: Tensor, others: Tensor) -> float:
    """The share of the tokens of one choice that the other has too."""
    return float(torch.isin(kept, others).float().mean())


def spearman(scores: Tensor, others: Tensor) -> float:
    """The correlation of ranks."""
    return float(torch.corrcoef(torch.stack((ranks(scores), ranks(others))).double())[0, 1])


def summary(seen: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Before each cut: the mean and the worst over pictures."""
    cuts = []
    for layer, pictures in seen.items():
        first = pictures[0]
        cut: dict[str, Any] = {"layer": layer, "arriving": first["arriving"], "dominant": first["dominant"]}
        for count in map(str, QUERIES):
            cut[count] = {
                figure: {
                    "mean": mean(picture[count][figure] for picture in pictures),
                    "least": min(picture[count][figure] for picture in pictures),
                }
                for figure in ("overlap", "spearman")
            }
        cuts.append(cut)
    return cuts


def on_pictures(pictures: int) -> dict[str, Any]:
    """The embedded model: one question about each of so many held-out pictures."""
    vlm = fv.load("embedded", device="cpu")
    beside = Beside(method=fv.VisionDrop.for_budget(vlm.model, retention=RETENTION))
    for number in range(pictures):
        pictured = scene(SPLIT, number)
        prompt = vlm.prepare(pictured.image, one_per_task(pictured, SPLIT, number)[0].question)
        with fv.drop(vlm.model, beside), torch.inference_mode():
            vlm.model(**prompt.inputs)
    return {"model": vlm.name, "pictures": pictures, "method": beside.method.to_dict(), "cuts": summary(beside.seen)}


# -- a long input, and time ------------------------------------------------------------------------------------


@contextmanager
def scoring_time(clock: Callable[[], float]) -> Iterator[list[float]]:
    """The seconds of each reading of attention rows, queries and keys for them included."""
    seconds: list[float] = []

    def timed(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start = clock()
        answer = original(*args, **options)
        seconds.append(clock() - start)
        return answer

    with Patcher() as patches:
        patches.wrap(RowsReader, "reduced", timed)
        yield seconds


def on_a_video(repeats: int) -> dict[str, Any]:
    """The narrow shape: scores, and the time that scoring and the whole prefill take. No tower stage: all arrive."""
    device, clock = torch.device("cpu"), clock_of("cpu")
    model = LONG.build(device, torch.float32)
    workload = synthetic(LONG, PromptRequest(frames=FRAMES), device)
    solved = fv.VisionDrop.for_budget(model, retention=RETENTION, vision_tokens=workload.vision_tokens)
    method = replace(solved, dominant=0, contextual=0)

    def run(method: fv.Method) -> dict[str, float]:
        with fv.drop(model, method), torch.inference_mode(), scoring_time(clock) as seconds:
            start = clock()
            model(**workload.inputs)
            return {"prefill": clock() - start, "scoring": sum(seconds)}

    beside = Beside(method=method)
    run(beside)
    settings = {"all": None, "all again": None, **{str(count): count for count in QUERIES}}
    runs = {name: partial(run, replace(method, queries=count)) for name, count in settings.items()}
    times = list(rounds(runs, repeats))
    costs = {}
    for name, count in settings.items():
        cost = fv.cost(
            model,
            text_tokens=workload.text_tokens,
            vision_tokens=workload.vision_tokens,
            method=replace(method, queries=count),
        )
        costs[name] = cost.scoring_flops
    return {
        "shape": LONG.to_dict(),
        "weights": "random",
        "vision_tokens": workload.vision_tokens,
        "method": method.to_dict(),
        "cuts": summary(beside.seen),
        "clock": "processor time",
        "rounds": repeats,
        "interval": interval_words(repeats),
        "scoring_flops": costs,
        "seconds": {name: {part: [one[name][part] for one in times] for part in times[0][name]} for name in runs},
        "against_all": {
            name: {
                part: ratio([one[name][part] for one in times], [one["all"][part] for one in times]).to_dict()
                for part in ("scoring", "prefill")
            }
            for name in runs
            if name != "all"
        },
    }


# -- tables ----------------------------------------------------------------------------------------------------


def score_sheet(title: str, cuts: Sequence[Mapping[str, Any]]) -> Sheet:
    """Overlap and correlation before each cut."""
    rows = []
    for cut in cuts:
        head = [f"{cut['layer']}", f"{cut['dominant']} of {cut['arriving']}"]
        for count in QUERIES:
            same, alike = cut[str(count)]["overlap"], cut[str(count)]["spearman"]
            figures = [f"{same['mean']:.1%}", f"{same['least']:.1%}", f"{alike['mean']:.3f}", f"{alike['least']:.3f}"]
            rows.append([*head, f"{count}", *figures])
            head = ["", ""]
    heads = ["layer", "dominant", "queries", "the same", "least", "Spearman", "least"]
    return Sheet(title, [Column(head, right=True) for head in heads], rows, ["Beside the scores by all queries."])


def time_sheet(record: Mapping[str, Any]) -> Sheet:
    """Time beside that of all queries."""
    rows = []
    for name, figures in record["against_all"].items():
        flops = record["scoring_flops"][name] / record["scoring_flops"]["all"]
        parts = [f"{one['median']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in figures.values()]
        rows.append([name, f"{flops:.2f}", *parts])
    heads = [
        "queries",
        Column("scoring FLOPs", right=True),
        Column("scoring", right=True),
        Column("prefill", right=True),
    ]
    notes = [f"Over those of all queries: median of {record['rounds']} rounds, {record['interval']}."]
    return Sheet(f"Time with {record['vision_tokens']} vision tokens", heads, rows, notes)


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", choices=["embedded", "long"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    if given.only and given.out.exists():
        record = json.loads(given.out.read_text(encoding="utf-8"))
    parts = {"embedded": partial(on_pictures, given.pictures), "long": partial(on_a_video, given.rounds)}
    for name, part in parts.items():
        if given.only in (None, name):
            record[name] = conditions() | part()
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if "embedded" in record:
        report_scores("The embedded model, {pictures} pictures", record["embedded"])
    if "long" in record:
        report_scores("A video of {vision_tokens} tokens, random weights", record["long"])
        rich.print(time_sheet(record["long"]))


def conditions() -> dict[str, Any]:
    """Where a part was measured."""
    threads = torch.get_num_threads()
    return {"device": platform.machine(), "threads": threads, "versions": versions(), "commit": commit()}


def report_scores(title: str, part: Mapping[str, Any]) -> None:
    """Print the scores of one part."""
    rich.print(score_sheet(title.format_map(part), part["cuts"]))


if __name__ == "__main__":
    main()
