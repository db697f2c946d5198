"""What a run of lmms-eval asked for and spent: a file of our own, named after its setting."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.eval.lmms.requests import Conduct
from foveate.eval.lmms.setting import Setting
from foveate.eval.records import FULL, fingerprint

LONGEST = 80
"""Most characters of a part of a file's name."""

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""The record of each answer, by task and document."""
SPENT = {"retention": "retention", "tokens": "spent", "vision_tokens": "vision_tokens"}
"""What is said of an answer, and its name in a record."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A run under one setting, as its file names it.

    Attributes:
        model: A hub id, a folder, or "embedded".
        setting: What drops, and the budget that was asked for.
        conduct: How it was run.
    """

    model: str
    setting: Setting
    conduct: Conduct

    @property
    def name(self) -> str:
        """Of its file: llava-hf__llava-1.5-7b-hf__v2drop__192-tokens."""
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

    def asked(self) -> dict[str, object]:
        """What was asked for, as plain values."""
        setting = self.setting
        values: dict[str, object] = {
            "method": setting.name or FULL,
            "budget": setting.budget,
            "asked_retention": setting.share,
        }
        if setting.seed is not None:
            values["seed"] = setting.seed
        if setting.settings:
            values["settings"] = setting.settings
        return values

    def summary(self, records: Records) -> dict[str, object]:
        """What was asked for and what was spent, over all answers and task by task, as plain values.

        Args:
            records: What is kept of each answer.
        """
        of_task: dict[str, list[Mapping[str, object]]] = {}
        for (task, _), row in records.items():
            of_task.setdefault(task, []).append(row)
        return {
            "model": self.model,
            **self.asked(),
            "protocol": self.conduct.protocol,
            **_spent(list(records.values())),
            "tasks": {task: _spent(rows) for task, rows in of_task.items()},
        }


def _spent(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """How many answers, and means over them: the share of vision tokens that a layer processed, and their number."""
    means = {name: float(np.mean([row[column] for row in rows])) for name, column in SPENT.items()}
    return {"answers": len(rows), **means}


def spent_of(records: Records) -> dict[tuple[str, int], dict[str, object]]:
    """What this needs of records, and no more: for other processes."""
    return {key: {column: row[column] for column in SPENT.values()} for key, row in records.items()}


def _pair(name: str, value: object) -> str:
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
