"""The two trees, where their results are kept, and how their processes are started."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.witness.examples import PROMPTS

__all__ = ["COMMITS", "ROOT", "Tree", "new_tree", "old_tree", "prompts_of", "run_worker", "versions"]

COMMITS = ("32cba4e", "a50230a")
"""Old trees; the last one makes models and prompts for all."""
ROOT = Path(__file__).parents[2]
CACHE = ROOT / "out" / "witness"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tree:
    """A tree of foveate.

    Attributes:
        name: A commit, or "new".
        root: Where its `src` and `tests` are.
        commit: Which one it is, and whether files have been changed since.
    """

    name: str
    root: Path
    commit: str

    @cached_property
    def results(self) -> Path:
        """Where its results are kept: another folder for another source, worker, versions of libraries or machine."""
        content = hashlib.sha256((versions() + json.dumps(PROMPTS)).encode())
        for file in sorted((self.root / "src").rglob("*")):
            if file.is_file() and file.suffix != ".pyc":  # the embedded model's weights too
                content.update(str(file.relative_to(self.root)).encode() + file.read_bytes())
        for name in ("worker.py", "make.py"):
            content.update((HERE / name).read_bytes())
        return CACHE / f"results-{self.name}-{content.hexdigest()[:12]}"


def versions() -> str:
    """Versions of the libraries, and what the processor can do."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, transformers {version('transformers')}, {capability}"


def old_tree(commit: str = COMMITS[0]) -> Tree:
    """The tree of an old commit, taken out of git once."""
    root = CACHE / f"tree-{commit}"
    if not root.exists():
        archive = subprocess.run(["git", "archive", commit, "src", "tests"], cwd=ROOT, capture_output=True, check=True)
        partial = CACHE / f"tree-{commit}-{os.getpid()}"
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(root)
    return Tree(commit, root, commit)


def new_tree() -> Tree:
    """The working tree."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "src")
    return Tree("new", ROOT, f"{commit} with changes in src" if changed else commit)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def prompts_of(old: Tree) -> Path:
    """The folder of models and prompts, made by this old tree if need be."""
    wanted = json.dumps(PROMPTS) + versions() + (HERE / "make.py").read_text()
    folder = CACHE / f"prompts-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if (folder / "done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, str(HERE / "make.py"), str(folder), json.dumps(PROMPTS)]
    subprocess.run(command, cwd=old.root, env=_environment(old.root, old.root / "src"), check=True)
    return folder


def run_worker(tree: Tree, task: dict[str, Any]) -> None:
    """Run a task of `tests.witness.worker` on a tree."""
    command = [sys.executable, "-m", "tests.witness.worker", json.dumps(task)]
    subprocess.run(command, cwd=ROOT, env=_environment(tree.root / "src"), check=True)


def _environment(*paths: Path) -> dict[str, str]:
    """One thread, no network, and these folders in front of all others."""
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(map(str, paths))}
