"""What tests of signals share: a stage that reads some, and samples of a batch that keep what they keep alone."""

from contextlib import contextmanager

import torch

import foveate as fv
from foveate.contract import LayerStage
from tests.models import batch, tiny


def read(model, inputs, signals, layer=3, unit="sample"):
    """What a stage before a layer gets of these signals, unit by unit; a later one drops half of the tokens."""
    seen = []

    class Probe(fv.Method):
        name = "probe"

        def stages(self, shape):
            noting = LayerStage(layer, reads=signals, choose=self.note, unit=unit)
            return (noting, LayerStage(5, keep=0.5, score=lambda view: view.tokens, unit=unit))

        @staticmethod
        def note(view, _):
            seen.append({signal: view[signal] for signal in signals})

    with fv.drop(model, Probe()), torch.no_grad():
        model(**inputs)
    return seen


@contextmanager
def handed(*modules):
    """What each of these modules is handed, by module: its arguments, and those by name."""
    calls = {}

    def note(module, *given):
        calls.setdefault(module, given)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    yield calls
    for hook in hooks:
        hook.remove()


def assert_samples_keep_what_they_keep_alone(family, method, words=("tit", "ttitt", "titit", "it")):
    """In a batch that is padded."""
    with fv.drop(tiny(family), method) as together, torch.no_grad():
        tiny(family)(**batch(family, words))
    for index, word in enumerate(words):
        with fv.drop(tiny(family), method) as alone, torch.no_grad():
            tiny(family)(**batch(family, [word]))
        for one, other in zip(alone.stages, together.stages, strict=True):
            assert other.kept[index].tolist() == one.kept[0].tolist()
