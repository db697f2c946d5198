"""What tower and method answer, made fit for the engine: stacked, counted and checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.host import send
from foveate.engine.bucket import Bucket
from foveate.engine.forms import EngineCut
from foveate.engine.samples import Sample
from foveate.errors import SettingError
from foveate.methods.base import Method

__all__ = ["check", "counted", "tower_cut"]


def tower_cut(samples: Sequence[Sample], device: torch.device) -> EngineCut:
    """What the tower made of the images of samples alike, as one cut with the samples in front; its rows say where they
    are in the stream."""
    kept, rows, assign, notes = [], [], [], dict[str, list[Tensor]]()
    first = begun = 0
    for items in zip(*(sample.items for sample in samples), strict=True):
        every = torch.arange(items[0].free, device=device).expand(len(items), -1)
        cuts = [item.cut for item in items if item.cut is not None]
        mine = torch.stack([cut.kept for cut in cuts]).to(device) if cuts else every
        given = [cut.assign for cut in cuts if cut.assign is not None]
        went = torch.stack(given).to(device) if given else every
        kept.append(torch.where(mine < 0, mine, mine + first) if first else mine)
        assign.append(torch.where(went < 0, went, went + begun) if begun else went)
        rows.append(torch.arange(first, first + mine.shape[1], device=device).expand_as(mine))
        for name in cuts[0].notes if cuts else ():
            notes.setdefault(name, []).append(torch.stack([cut.notes[name] for cut in cuts]).to(device))
        first, begun = first + items[0].free, begun + mine.shape[1]
    counts = tuple(part.shape[1] for part in kept)
    told = {name: torch.cat(parts, dim=1) for name, parts in notes.items()}
    return EngineCut(torch.cat(kept, dim=1), counts, torch.cat(rows, dim=1), torch.cat(assign, dim=1), told)


def counted(asked: Sequence[tuple[Bucket, EngineCut | None]]) -> list[tuple[Bucket, EngineCut | None]]:
    """The same, where a cut says which tokens stay and not how many: the device is asked once for the whole batch."""
    unknown = [(group, cut.kept) for group, cut in asked if cut is not None and cut.kept.dtype == torch.bool]
    if not unknown:
        return list(asked)
    parts = [
        torch.stack([part.sum(dim=1) for part in torch.split(stays, list(group.sizes or (group.left,)), dim=1)], dim=1)
        for group, stays in unknown
    ]
    found = torch.cat([part.flatten().to(parts[0].device) for part in parts]).tolist()
    answers: list[tuple[Bucket, EngineCut | None]] = []
    for group, cut in asked:
        if cut is None or cut.kept.dtype != torch.bool:
            answers.append((group, cut))
            continue
        images, alike = len(group.sizes or (1,)), dict[tuple[int, ...], list[int]]()
        for place in range(len(group.members)):
            counts, found = tuple(found[:images]), found[images:]
            alike.setdefault(counts, []).append(place)
        order = (~cut.kept).sort(dim=1, stable=True).indices
        for counts, places in alike.items():
            mine = order if len(alike) == 1 else order[send(torch.tensor(places), order.device)]
            sizes = None if group.sizes is None else counts
            answers.append((group.part(places), EngineCut(mine[:, : sum(counts)], sizes)))
    return answers


def check(cut: EngineCut, count: int, method: Method) -> None:
    """The shapes and dtypes a cut must have (values are not read: that would synchronise with the device)."""
    kept = cut.kept
    if kept.dtype == torch.bool and kept.shape == (count,) and cut.rows is None and not cut.notes:
        return
    if kept.dim() != 1 or kept.dtype != torch.int64 or kept.shape[0] > count:
        raise SettingError(
            f"{type(method).__name__}.cut must keep a (count,) int64 tensor of at most {count} indices; "
            f"got {tuple(kept.shape)} {kept.dtype}."
        )
    if cut.rows is not None and (cut.assign is None or cut.rows.shape[0] != kept.shape[0] or len(cut.assign) != count):
        raise SettingError(
            f"{type(method).__name__}.cut gives rows, so it must give one for each of the {kept.shape[0]} kept, and an "
            f"assign of {count}; got {tuple(cut.rows.shape)} rows."
        )
