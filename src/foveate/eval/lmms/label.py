"""What lmms-eval writes of a run: with the method, its budget and what was spent, in a folder named after them."""

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from foveate.eval.answer_store import FULL, fingerprint
from foveate.eval.lmms.answerer import Conduct
from foveate.eval.lmms.setting import Setting

__all__ = ["Label", "spent_of", "when_written"]

KEY = "foveate"
"""The key of results and of samples under which our values are."""
LONGEST = 80
"""Most characters of a part of a folder's name."""

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""The record of each answer, by task and document."""
SPENT = {"retention": "retention", "tokens": "spent", "vision_tokens": "vision_tokens"}
"""What is said of an answer, and its name in a record."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A run under one setting, as its files name it.

    Attributes:
        model: A hub id, a folder, or "embedded".
        setting: What drops, and the budget that was asked for.
        conduct: How it was run.
    """

    model: str
    setting: Setting
    conduct: Conduct

    @property
    def folder(self) -> str:
        """The name of its folder: llava-hf__llava-1.5-7b-hf__v2drop__192-tokens."""
        from lmms_eval.utils import sanitize_model_name

        setting = self.setting
        words = [Path(setting.name).stem if setting.name.endswith(".json") else setting.name or FULL]
        if isinstance(setting.settings, str):
            words.append(setting.settings)
        elif setting.settings:
            words.append(";".join(_pair(name, value) for name, value in setting.settings.items()))
        if setting.budget is not None:
            words.append(f"{setting.budget:g}-tokens")
        if setting.share is not None:
            words.append(f"retention-{setting.share:.4g}")
        if setting.seed is not None:
            words.append(f"seed-{setting.seed}")
        parts = [sanitize_model_name(self.model), *map(_plain, words)]
        usual = Conduct()
        if self.conduct.protocol != usual.protocol:
            parts.append(self.conduct.protocol)
        if self.conduct.most_frames != usual.most_frames:
            parts.append(f"{self.conduct.most_frames}-frames")
        return "__".join(parts)

    def asked(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        setting = self.setting
        values: dict[str, Any] = {
            "method": setting.name or FULL,
            "budget": setting.budget,
            "asked_retention": setting.share,
        }
        if setting.seed is not None:
            values["seed"] = setting.seed
        if setting.settings:
            values["settings"] = setting.settings
        return values

    def add_to(
        self,
        results: MutableMapping[str, Any],
        samples: Mapping[str, Sequence[MutableMapping[str, Any]]] | None,
        records: Records,
    ) -> None:
        """Add what was asked and what was spent: to the results, to each task's figures, and to each sample.

        Args:
            results: The harness's results; its table prints what a task's figures have.
            samples: The harness's samples by task, where it keeps them.
            records: What is kept of each answer.
        """
        asked = self.asked()
        results[KEY] = {
            "model": self.model,
            **asked,
            **_spent(list(records.values())),
            "protocol": self.conduct.protocol,
        }
        for task, figures in results["results"].items():
            rows = [row for (name, _), row in records.items() if name == task]
            if rows:
                spent = _spent(rows)
                figures |= {"retention,none": spent["retention"], "tokens,none": spent["tokens"]}
        for task, rows_of_task in (samples or {}).items():
            for sample in rows_of_task:
                row = records.get((task, int(sample["doc_id"])))
                if row is not None:
                    sample[KEY] = {**asked, **_spent([row])}


def _spent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over answers: the share of vision tokens that a decoder layer processed, and their number."""
    if not rows:
        return dict.fromkeys(SPENT)
    return {name: float(np.mean([row[column] for row in rows])) for name, column in SPENT.items()}


def spent_of(records: Records) -> dict[tuple[str, int], dict[str, Any]]:
    """What this needs of records, and no more: for other processes."""
    return {key: {column: row[column] for column in SPENT.values()} for key, row in records.items()}


def _pair(name: str, value: Any) -> str:
    """A setting as it is written behind a method's name: layers=3,17."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return f"{name}={value}"


def _plain(text: str) -> str:
    """A text that any file system takes as part of a name; a long one ends in its fingerprint."""
    plain = re.sub(r"[^\w.+=-]+", "-", text).strip("-")
    if len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}-{fingerprint({'text': text})[:8]}"


def when_written(label: Label, records: Callable[[], Records]) -> None:
    """Have the next results that lmms-eval writes say all this; nothing of lmms-eval asks a model for it.

    A method of its tracker is replaced until it is called.

    Args:
        label: What they are of.
        records: What is kept of each answer; called when they are written.
    """
    from lmms_eval.loggers import EvaluationTracker

    save = EvaluationTracker.save_results_aggregated
    save = getattr(save, "__wrapped__", save)  # a run before this one may have ended without results

    @wraps(save)
    def saved(tracker: Any, results: Any, samples: Any, datetime_str: str) -> None:
        EvaluationTracker.save_results_aggregated = save
        if results["config"]["model"] == KEY:
            label.add_to(results, samples, records())
            tracker.general_config_tracker.model_name = label.model
            tracker.general_config_tracker.model_name_sanitized = label.folder
        save(tracker, results=results, samples=samples, datetime_str=datetime_str)

    EvaluationTracker.save_results_aggregated = saved
