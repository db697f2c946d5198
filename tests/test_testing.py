"""`foveate.testing` as somebody else uses it: on a method of their own, and on methods that break the contract."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import foveate as fv
from foveate.contract import Attention, Cut, Hidden, ImageStage, LayerStage, LayerView, Shape, Stage, attended
from foveate.contract.settings import Share
from foveate.testing import MethodContract, check_method, tiny_model

TEMPLATE = Path(__file__).parents[1] / "examples" / "new_method"


@pytest.mark.further
def test_a_package_of_ones_own_is_found_and_tested(tmp_path):
    """The template in examples/, with its entry point as pip leaves it, and its own tests."""
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    (points,) = project["entry-points"].items()
    group, names = points
    about = f"{project['name']}-{project['version']}.dist-info".replace("-", "_", 1)
    (tmp_path / about).mkdir()
    (tmp_path / about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = "\n".join(f"{name} = {place}" for name, place in names.items())
    (tmp_path / about / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
    shutil.copytree(TEMPLATE / "src", tmp_path, dirs_exist_ok=True)
    shutil.copy(TEMPLATE / "tests" / "test_longest.py", tmp_path)
    path = {"PYTHONPATH": ":".join((str(tmp_path), *sys.path)), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_longest.py")]
    done = subprocess.run(run, capture_output=True, text=True, env=path, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert "13 passed" in done.stdout


class Own(fv.Method):
    """A method with a stage before layer 2, whichever a test makes of it."""

    name = "own"

    keep: Share = 0.5
    retention: Share | None = None

    @property
    def share(self) -> float:
        return self.keep if self.retention is None else self.retention

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (LayerStage(2, reads=(Hidden(),), keep=self.share, score=self.score),)

    def score(self, view: LayerView) -> torch.Tensor:
        return view.hidden.float().norm(dim=-1)


def test_a_method_that_holds_it_passes():
    check_method(Own())


def test_a_method_may_take_its_budget_as_a_share_alone():
    assert Own().with_budget(retention=0.25) == Own(retention=0.25)
    with pytest.raises(fv.SettingError, match="retention="):
        Own().with_budget(tokens=64)


class Forgetful(Own):
    """Its JSON is not its settings."""

    def to_dict(self):
        return {**super().to_dict(), "keep": 0.25}


class Counting(Own):
    """Remembers how often it was asked."""

    def score(self, view):
        asked.append(1)
        return view.hidden.float().norm(dim=-1) * (-1) ** len(asked)


asked: list[int] = []


class Writing(Own):
    """Writes into what it is shown."""

    def score(self, view):
        return view.hidden.abs_().sum(dim=-1)


class Miscounting(Own):
    """Leaves one fewer than it said."""

    def stages(self, shape):
        return (LayerStage(2, reads=(Hidden(),), keep=self.share, choose=self.choose),)

    def choose(self, view, count):
        return Cut.take(torch.arange(count - 1), len(view))


class Twice(Own):
    """Takes the first token twice."""

    def stages(self, shape):
        return (LayerStage(2, reads=(Hidden(),), keep=self.share, choose=self.choose),)

    def choose(self, view, count):
        return None if count == len(view) else Cut.take(torch.arange(count).clamp(min=1), len(view))


class Undeclared(Own):
    """Reads what it has not declared."""

    def score(self, view):
        return view.attention


class Lossy(Own):
    """Never keeps everything."""

    @property
    def share(self):
        return min(0.96, super().share)


class Idle(Own):
    """Drops nothing."""

    def stages(self, shape):
        return (LayerStage(2, reads=(Hidden(),), keep=1.0, score=self.score),)


class Crowded(Own):
    """Looks at how many prompts were seen before."""

    def stages(self, shape):
        return (ImageStage(keep=self.share, score=self.score),)

    def score(self, view):
        asked.append(1)
        return view.features.float().norm(dim=-1) * (-1) ** (len(asked) // 5)


class Shallow(Own):
    """Its second cut is before layer 20 of any decoder."""

    def stages(self, shape):
        return (*super().stages(shape), LayerStage(20 if shape.depth > 6 else 4, keep=0.5, score=self.score))


BROKEN = {
    Shallow: "the defaults fit decoders of every depth: AssertionError: Shallow on a decoder of 8 layers: .*20",
    Forgetful: "settings survive json: AssertionError: .* came back as",
    Counting: "stages are pure: AssertionError: .* gives another result when it is called again",
    Writing: "stages are pure: AssertionError: .* writes into its input tensors",
    Miscounting: "stages count right: MethodError: .* but its count is",
    Twice: "stages count right: AssertionError: .* takes a token twice",
    Undeclared: "stages are pure: MethodError: own: .* without declaring it",
    Lossy: "keeping everything is the untouched model: AssertionError: .* changes llava",
    Idle: "something leaves: AssertionError: .* drops nothing",
    Crowded: r"a batch is its samples alone: AssertionError: .* other tokens are kept in a batch, "
    r"first at \w+: tokens \[\d[\d, ]*\] only there, \[\d[\d, ]*\] only alone. If their scores are equal",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_breaks_the_contract_is_found(kind):
    with pytest.raises(AssertionError, match=BROKEN[kind]):
        check_method(kind())


def test_no_examples_prove_nothing():
    with pytest.raises(AssertionError, match="Give examples"):
        check_method()


def test_a_method_without_a_budget_must_say_what_keeps_everything():
    class Fixed(fv.Method):
        name = "fixed"
        keep: Share = 0.5

        def stages(self, shape):
            return (LayerStage(2, reads=(Attention(),), keep=self.keep, score=attended),)

    with pytest.raises(AssertionError, match="Give keep_all"):
        check_method(Fixed())
    check_method(Fixed(), keep_all=Fixed(keep=1.0))


def test_a_method_that_leaves_something_on_the_model_is_found(monkeypatch):
    """Methods hardly can; the engine could."""
    from foveate.engine.session import Session

    def forget(self, **settings):
        self._core.left_behind = True
        original(self, **settings)

    original = Session.detach
    monkeypatch.setattr(Session, "detach", forget)
    contract = type("Contract", (MethodContract,), {"examples": (Own(),)})()
    try:
        with pytest.raises(AssertionError, match="something"):
            contract.test_leaving_restores_the_model()
    finally:
        for family in ("llava", "llava_onevision", "qwen2_vl"):
            vars(tiny_model(family).model.model).pop("left_behind", None)


READING = {
    "item": lambda norms: norms / norms.max().item(),
    "float": lambda norms: norms / float(norms.max()),
    "if": lambda norms: norms if norms.max() > 0 else -norms,
    "tolist": lambda norms: norms * max(norms.tolist()),
    "numpy": lambda norms: norms * float(norms.numpy()[0]),
    "mask": lambda norms: norms - norms[norms > norms.mean()].mean(),
    "nonzero": lambda norms: norms * len(norms.nonzero()),
    "slice": lambda norms: norms - norms[: norms.argmax() + 1].mean(),
    "index": lambda norms: norms * [1, 2][norms.argmax() * 0],
}


@pytest.mark.parametrize("way", READING)
def test_values_that_a_stage_reads_are_counted_where_it_reads_them(way):
    method = Own()
    read = READING[way]
    contract = type("Contract", (MethodContract,), {"examples": (method,)})()
    object.__setattr__(method, "score", lambda view: read(Own.score(method, view)))
    with pytest.warns(UserWarning, match=r"LayerStage\(2\) of own.* 1 at test_testing.py:\d+"):
        contract.test_stages_read_no_values()


class Stepping(Own):
    """Reads a value in a stage, which is allowed."""

    def score(self, view):
        norms = view.hidden.float().norm(dim=-1)
        return norms if norms.max() > 0 else -norms


def test_a_stage_may_read_values():
    with pytest.warns(UserWarning, match="reads values"):
        check_method(Stepping())
