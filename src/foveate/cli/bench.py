"""`foveate bench`: speed and memory against the untouched model, as ratios with intervals beside their controls."""

from dataclasses import dataclass

from foveate.cli.bench_options import BenchOptions
from foveate.cli.checks import check_methods, check_shape
from foveate.cli.outputs import check_targets

__all__ = ["Bench"]


@dataclass(frozen=True, kw_only=True)
class Bench(BenchOptions):
    """Time a model with and without dropping, interleaved, and weigh what it holds.

    Every round runs, in an order drawn anew: the untouched model, the same again (A/A), keep-all inside the context,
    every method at every budget, and at its schedule random and the bare layers. Times of the vision tower, the
    prefill, to the first token, of each further token and of the whole call are given as medians of the rounds'
    ratios with 95 % bootstrap intervals, beside the ratio of FLOPs. Answers have a fixed length. A named shape has a
    real model's sizes and random weights, which do not change speed at a fixed schedule; it is labelled so.

    Examples:
      foveate bench --model cpu-medium --budget 192 --budget 64
      foveate bench --model llava-1.5-7b --budget 192 --budget 128 --budget 64 --batch 8 --out bench.json --figure b.png
      foveate bench --model llava-hf/llava-1.5-7b-hf --method v2drop --retention 0.33 --profile
      foveate bench --model qwen2-vl-72b --retention 0.33 --predict
    """

    def run(self) -> None:
        """Predict, time, print, and write what was asked for."""
        self.check()
        check_targets(self.outputs)
        check_methods(self.method)
        check_shape(self.model)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.cli import bench_run

        if self.shapes:
            bench_run.list_shapes(self)
        else:
            bench_run.run(self)
