"""`foveate eval`: what dropping costs in quality, against the full model on the same questions."""

from dataclasses import dataclass

from foveate.cli.checks import check_methods, check_model
from foveate.cli.eval_options import EvalOptions
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError

__all__ = ["Eval"]

METHODS = ("v2drop", "visiondrop", "mustdrop")


@dataclass(frozen=True, kw_only=True)
class Eval(EvalOptions):
    """Measure what methods cost in quality at several budgets.

    By default on the embedded model's own tasks; with --tasks on benchmarks, by name, through lmms-eval (extra "eval").
    The same questions go to the full model and to every method at every budget: accuracy, its share of the full
    model's, agreement with its answers, KL divergence of the first answer token, the tokens truly spent and FLOPs,
    with 95 % intervals (paired bootstrap over pictures). Random (several draws), Uniform, AveragePool and Resize run
    beside them. Answers are kept as they come: an interrupted run goes on where it stopped.

    Examples:
      foveate eval                                           the embedded model on its own tasks
      foveate eval --questions 2200 --figure pareto.png --out quality.json
      foveate eval --model llava-hf/llava-1.5-7b-hf --tasks pope,textvqa --method v2drop --budget 192
      foveate eval --method v2drop --method v2drop:metric=l1 --budget 192 --budget 64 --tasks "read text,count"
    """

    def run(self) -> None:
        """Ask, summarise, print, and write what was asked for."""
        self.check()
        check_targets(self.outputs)
        check_methods(self.method)
        check_model(self.models)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.cli.eval_benchmarks import run_benchmarks
            from foveate.cli.eval_embedded import run_embedded
            from foveate.embedded.questions import TASKS
            from foveate.eval.cells import Contender, with_baselines

        contenders = [Contender.of(name) for name in self.method or METHODS]
        if not self.no_baselines:
            contenders = with_baselines(contenders)
        tasks = tuple(name.strip() for name in self.tasks.split(",") if name.strip())
        if benchmarks := [name for name in tasks if name not in TASKS]:
            if len(benchmarks) < len(tasks):
                raise UsageError("Embedded tasks and benchmarks are run apart: name one kind with --tasks.")
            run_benchmarks(self, benchmarks, contenders)
        else:
            run_embedded(self, tasks, contenders)
