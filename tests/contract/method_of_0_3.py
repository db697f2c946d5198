"""A method as the guide of foveate 0.3 told to write it, when stages ran on many samples at once.

Only `host=` is gone, which foveate 0.5 refuses: every stage may read values.
"""

import torch

from foveate.contract import Cut, Hidden, ImageStage, LayerStage, Method, Share


class Old(Method):
    """Merges neighbours until a tenth is gone, then keeps half of the tokens, then those that are longer than most."""

    name = "old"

    keep: Share = 0.5

    def stages(self, shape):
        return (
            ImageStage(side="behind", choose=merge, flops=free),
            LayerStage(2, reads=(Hidden(),), keep=self.keep, score=length, unit="image", flops=free),
            LayerStage(4, reads=(Hidden(),), choose=above_mean, unit="image", flops=free),
        )


def free(arriving, width):
    return 0


def merge(view, count):
    rows = view.features.float()
    change = (rows[1:] - rows[:-1]).norm(dim=-1)
    joins = sorted(change.argsort()[: len(view) // 10].tolist())
    parent, source = [], []
    for token in range(len(view)):
        if token - 1 not in joins:
            source.append(token)
        parent.append(len(source) - 1)
    of = torch.tensor(parent, device=rows.device)
    sums = rows.new_zeros(len(source), rows.shape[1]).index_add(0, of, rows)
    means = sums / of.bincount(minlength=len(source))[:, None]
    return Cut.merge(torch.tensor(source, device=rows.device), means.to(view.features.dtype), of)


def length(view):
    return view.hidden.float().norm(dim=-1)


def above_mean(view, count):
    lengths = view.hidden.float().norm(dim=-1)
    return Cut.keep(lengths >= lengths.mean())
