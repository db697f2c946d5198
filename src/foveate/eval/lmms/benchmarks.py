"""The benchmarks of the papers by the names people use, and what lmms-eval calls them.

Needs neither torch nor lmms-eval, so that a command refuses a name at once.
"""

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from foveate.errors import InputError, UnknownNameError, UnsupportedError
from foveate.plain.spelling import nearest
from foveate.plain.upstream import install_line

MME_TOTAL = "mme_score"
"""MME's perception and cognition scores added up, as the papers print it."""
PRINTED = ("pope_f1_score", "seed_all", "relaxed_overall")
"""Figures that papers print, of tasks with several."""

BENCHMARKS = {
    "gqa": "gqa",  # compositional questions about photographs
    "mmbench_en": "mmbench_en_dev",  # choices, English; mmbench_en_dev_static needs no judge
    "mmbench_cn": "mmbench_cn_dev",  # choices, Chinese
    "mme": "mme",  # pairs of yes/no questions about a picture
    "pope": "pope_full",  # is it there, yes or no; all three splits
    "scienceqa": "scienceqa_img",  # school science with pictures, choices
    "vqav2": "vqav2_val",  # open questions about photographs
    "textvqa": "textvqa_val",  # reading text in photographs
    "vizwiz": "vizwiz_vqa_val",  # questions of blind people about their photographs
    "seedbench": "seedbench",  # choices about pictures and videos
    "mvbench": "mvbench",  # twenty kinds of questions about short videos
    "videomme": "videomme",  # choices about videos; also for short, medium and long ones apart
    "longvideobench": "longvideobench_val_v",  # choices about long videos
    "mlvu": "mlvu_dev",  # choices about long videos
    "egoschema": "egoschema_subset",  # choices about first-person videos
    "refcoco": "refcoco_bbox_rec",  # grounding: the box of what is described
    "docvqa": "docvqa_val",  # questions about scanned pages
    "chartqa": "chartqa",  # questions about charts
    "ocrbench": "ocrbench",  # reading text of every kind
}
"""What lmms-eval calls each: a task, a group or a tag of tasks."""


def resolve(names: Sequence[str], others: Collection[str] = ()) -> dict[str, str]:
    """What lmms-eval calls each name: ours first, then its own (`others`) as they are.

    Raises:
        UnknownNameError: If there is no such benchmark; the message lists those there are.
    """
    for name in names:
        if name not in BENCHMARKS and name not in others:
            ours = ", ".join(BENCHMARKS)
            raise UnknownNameError(
                f"No benchmark {name!r}. There are: {ours}; and every task of lmms-eval by its own name."
                f"{nearest(name, others, 3)}"
            )
    return {name: BENCHMARKS.get(name, name) for name in names}


def primary(metrics: Sequence[str]) -> str:
    """The figure of a task that papers print: a name out of `metrics`, else the first of them."""
    return next((name for name in PRINTED if name in metrics), metrics[0])


def check_installed() -> None:
    """Refuse to go on without lmms-eval.

    Raises:
        UnsupportedError: If it is not installed.
    """
    if find_spec("lmms_eval") is None:
        raise UnsupportedError(
            f"Benchmarks by name are run by lmms-eval, which is not installed: {install_line('eval')}, "
            "with -c constraints.txt (docs/guides/benchmarks.md says how to keep your torch)."
        )


def check_folders(include: Sequence[Path]) -> None:
    """Refuse folders of tasks that there are not.

    Raises:
        InputError: If there is one.
    """
    for folder in include:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder} to take tasks from.")
