"""The benchmarks of the papers by the names people use, and what lmms-eval calls them."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from foveate.errors import UnknownNameError

__all__ = ["BENCHMARKS", "MME_TOTAL", "Benchmark", "primary", "resolve"]

MME_TOTAL = "mme_score"
"""MME's perception and cognition scores added up, as the papers print it."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark under our name.

    Attributes:
        name: What the user types.
        task: What lmms-eval calls it: a task, a group or a tag of tasks.
        about: What it asks, in a few words.
    """

    name: str
    task: str
    about: str


_LISTED = (
    Benchmark("gqa", "gqa", "compositional questions about photographs"),
    Benchmark("mmbench_en", "mmbench_en_dev", "choices, English; mmbench_en_dev_static needs no judge"),
    Benchmark("mmbench_cn", "mmbench_cn_dev", "choices, Chinese"),
    Benchmark("mme", "mme", "pairs of yes/no questions about a picture"),
    Benchmark("pope", "pope_full", "is it there, yes or no; all three splits"),
    Benchmark("scienceqa", "scienceqa_img", "school science with pictures, choices"),
    Benchmark("vqav2", "vqav2_val", "open questions about photographs"),
    Benchmark("textvqa", "textvqa_val", "reading text in photographs"),
    Benchmark("vizwiz", "vizwiz_vqa_val", "questions of blind people about their photographs"),
    Benchmark("seedbench", "seedbench", "choices about pictures and videos"),
    Benchmark("mvbench", "mvbench", "twenty kinds of questions about short videos"),
    Benchmark("videomme", "videomme", "choices about videos; also for short, medium and long ones apart"),
    Benchmark("longvideobench", "longvideobench_val_v", "choices about long videos"),
    Benchmark("mlvu", "mlvu_dev", "choices about long videos"),
    Benchmark("egoschema", "egoschema_subset", "choices about first-person videos"),
    Benchmark("refcoco", "refcoco_bbox_rec", "grounding: the box of what is described"),
    Benchmark("docvqa", "docvqa_val", "questions about scanned pages"),
    Benchmark("chartqa", "chartqa", "questions about charts"),
    Benchmark("ocrbench", "ocrbench", "reading text of every kind"),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _LISTED}
"""Every benchmark by our name."""

_PRINTED = (MME_TOTAL, "pope_f1_score", "seed_all", "relaxed_overall")


def resolve(names: Sequence[str], others: Collection[str] = ()) -> dict[str, str]:
    """What lmms-eval calls each name: ours first, then its own (`others`) as they are.

    Raises:
        UnknownNameError: If there is no such benchmark; the message lists those there are.
    """
    resolved = {}
    for name in names:
        if name in BENCHMARKS:
            resolved[name] = BENCHMARKS[name].task
        elif name in others:
            resolved[name] = name
        else:
            raise UnknownNameError(_unknown(name, others))
    return resolved


def _unknown(name: str, others: Collection[str]) -> str:
    """A sentence on a name that is no benchmark's."""
    near = difflib.get_close_matches(name, others, n=3)
    hint = f" Near it in lmms-eval: {', '.join(near)}." if near else ""
    ours = ", ".join(BENCHMARKS)
    return f"No benchmark {name!r}. There are: {ours}; and every task of lmms-eval by its own name.{hint}"


def primary(metrics: Sequence[str]) -> str:
    """The figure of a task that papers print: a name out of `metrics`, else the first of them."""
    return next((name for name in _PRINTED if name in metrics), metrics[0])
