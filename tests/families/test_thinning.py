"""Blocks of a tower on some rows: as full-length blocks in which rows that left are copies, and as hidden columns."""

import copy
import inspect
import itertools
import math
from contextlib import contextmanager
from functools import cache
from unittest.mock import Mock

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.pixtral import modeling_pixtral

import foveate as fv
from foveate.registry import family_for
from foveate.testing.contract import state_of_model
from tests.core.test_thin import looped_parents, looped_picks
from tests.families.test_qwen_subset import GRIDS, pictures
from tests.models import FAMILIES, QWENS, TINY, batch, given, tiny, with_video

THIN = [name for name in FAMILIES if fv.families()[name].needs_all_rows is None]
CLOSE = {"atol": 3e-5, "rtol": 1e-4}
SETTINGS = [(1 / 3, 0.5), (1 / 9, 0.0)]


@cache
def strong(family, kernel="sdpa"):
    """A family's tiny model whose tower attends with this kernel; weights are as large as to show what is wrong."""
    model = copy.deepcopy(tiny(family))
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and module is not model and hasattr(config, "_attn_implementation"):
            config._attn_implementation = kernel
    if family in QWENS:
        with torch.no_grad():
            for weight in model.model.visual.parameters():
                weight.mul_(6 if weight.dim() > 1 else 1)
    return model


def tower_of(model, modality):
    """Its blocks, and which are read, in words of the test alone."""
    core = model.model
    if hasattr(core, "visual"):
        blocks = core.visual.blocks
        return core.visual, blocks, {len(blocks) - 1, *getattr(core.visual, "deepstack_visual_indexes", ())}
    name = {"image": "image_tower", "video": "video_tower"}[modality]
    tower = next(getattr(core, name) for name in (name, "vision_tower", "vision_model") if hasattr(core, name))
    part = getattr(tower, "encoder", None) or getattr(tower, "transformer", None) or tower.vision_model.encoder
    blocks = getattr(part, "layers", None) or part.layer
    chosen = getattr(model.config, "vision_feature_layer", -1)
    chosen = [chosen] if isinstance(chosen, int) else chosen
    return tower, blocks, {(layer if layer >= 0 else len(blocks) + 1 + layer) - 1 for layer in chosen}


def frames_of(grids):
    return [(h, w) for t, h, w in grids.tolist() for _ in range(t)]


def places_of(model, tower, calls, rows):
    """The rows of each segment in raster order, as a block has them: (picture of the batch, row); and padding."""
    args, kwargs = calls
    if hasattr(model.model, "visual"):
        grids = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        order = family_for(model).token_order(grids)  # of features: back from windows
        order = torch.arange(rows // 4)[order] if isinstance(order, slice) else order
        segments, start = [], 0
        for height, width in frames_of(grids):
            across = width // 2
            tokens = [start + (r // 2) * across + c // 2 for r in range(height) for c in range(width)]
            inner = [(r % 2) * 2 + c % 2 for r in range(height) for c in range(width)]
            segments.append([(0, int(order[t]) * 4 + i) for t, i in zip(tokens, inner, strict=True)])
            start += height * width // 4
        return segments
    if "image_sizes" in kwargs:  # Pixtral: pictures one behind the other
        patch, segments, start = tower.config.patch_size, [], 0
        for height, width in torch.as_tensor(kwargs["image_sizes"]).tolist():
            count = (height // patch) * (width // patch)
            segments.append([(0, start + place) for place in range(count)])
            start += count
        return segments
    pixels = args[0] if args else kwargs["pixel_values"]
    patch = tower.config.patch_size
    side = patch if isinstance(patch, int) else patch[0]
    cells = (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
    cls = rows - cells
    mask = kwargs.get("patch_attention_mask")
    inside = torch.ones(len(pixels), cells, dtype=torch.bool) if mask is None else mask.flatten(1)
    return [[(image, cls + place) for place in range(cells) if inside[image, place]] for image in range(len(pixels))]


@contextmanager
def hooks():
    handles = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def failing(model, part):
    """A call in which a part of the model fails; behind it the model is as it was, hooks and attributes alike."""
    before = state_of_model(model)
    with hooks() as on:
        on.append(part.register_forward_pre_hook(Mock(side_effect=KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            yield
    assert state_of_model(model) == before


def seen(tower, block, run):
    """What the tower is called with, and what its block is given, (pictures, rows, width), in an untouched run."""
    calls, entering = [], []
    with hooks() as on, torch.no_grad():
        on.append(tower.register_forward_pre_hook(lambda _, a, k: calls.append((a, k)), with_kwargs=True))
        on.append(block.register_forward_pre_hook(lambda _, a, k: entering.append(a[0]), with_kwargs=True))
        run()
    (call,), (hidden,) = calls, entering
    return call, hidden


def chosen(hidden, segments, keep):
    """For each segment which of its rows stay, and with which of all rows each row goes; by loops.

    `keep` is a share of them, or the rows of each segment that stay.
    """
    rows = hidden if hidden.dim() == 3 else hidden[None]
    goes_with = {}
    for index, places in enumerate(segments):
        of_segment = torch.stack([rows[at] for at in places])
        if isinstance(keep, list):
            kept = keep[index]
        else:
            count = max(1, math.floor(keep * len(places) + 0.5))
            kept = looped_picks(of_segment, count, 64) if count < len(places) else list(range(len(places)))
        for j, parent in enumerate(looped_parents(of_segment, torch.tensor(kept))):
            goes_with[places[j]] = places[kept[parent]]
    padding = [(0, row) for row in range(0)]
    for image in {at[0] for at in goes_with}:
        first = min(row for at, row in goes_with if at == image)
        own = sorted({parent for at, parent in goes_with.items() if at[0] == image})
        padding += [(image, row) for row in range(first, rows.shape[1]) if (image, row) not in goes_with]
        for at in [at for at in padding if at[0] == image]:
            goes_with[at] = min(own, key=lambda parent: float((rows[at] - rows[parent]).double().square().sum()))
    return goes_with


def moved(hidden, goes_with):
    """Rows with each row's own, or with that of the row that it goes with: (pictures, rows) of ordinals."""
    whole = torch.arange(hidden.shape[-2]).repeat(hidden.shape[0] if hidden.dim() == 3 else 1, 1)
    for (image, row), (_, parent) in goes_with.items():
        whole[image, row] = parent
    return whole


def taken(rows, places):
    """(…, rows, width) at these places of each picture."""
    if rows.dim() == 2:
        return rows[places[0]]
    return torch.stack([of_image[at] for of_image, at in zip(rows.expand(len(places), -1, -1), places, strict=True)])


def of_copies(model, modality, run, keep, at):
    """Features where from a block on every row that left is the one it goes with, in untouched blocks of all rows."""
    tower, blocks, read = tower_of(model, modality)
    first = math.floor(at * (max(read) + 1) + 0.5)
    call, before = seen(tower, blocks[first], run)
    before = before.detach()
    places = moved(before, chosen(before, places_of(model, tower, call, before.shape[-2]), keep))
    stream = {"rows": taken(before, places)}

    def enter(index, _, args, kwargs):
        tables = kwargs.get("position_embeddings")
        if tables is not None:
            kwargs = {**kwargs, "position_embeddings": tuple(taken(table, places) for table in tables)}
            if tables[0].dim() == 2:
                kwargs["position_embeddings"] = tuple(table[places[0]] for table in tables)
        return (stream["rows"], *args[1:]), kwargs

    def leave(index, _, args, output):
        stream["rows"] = output
        if index not in read and index != len(blocks) - 1:
            return None
        copies, entered = output.double(), before.double()
        full = entered + taken(copies, places) - taken(entered, places)
        return full.to(output.dtype)

    with hooks() as on, torch.no_grad():
        for index, block in list(enumerate(blocks))[first:]:
            on.append(block.register_forward_pre_hook(lambda *a, i=index: enter(i, *a), with_kwargs=True))
            on.append(block.register_forward_hook(lambda *a, i=index: leave(i, *a), prepend=True))
        return features(run())


def features(output):
    """All features of a call, deepstack's too."""
    parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    whole = [part if torch.is_tensor(part) else torch.cat([one.flatten(0, -2) for one in part]) for part in parts]
    return [part.flatten(0, -2) for part in whole]


def thinned(model, run, keep, at, pick="maxmin"):
    with fv.drop(model, fv.ThinTower(keep=keep, at=at, pick=pick)), torch.no_grad():
        return features(run())


def call_of(model, family, modality):
    if family in QWENS:
        inputs = pictures(model, modality, GRIDS[modality][0][:3] if modality == "image" else GRIDS[modality][0])
    else:
        inputs = given(
            model, batch(family, ["titit", "tit"] if modality == "image" else [with_video(family)]), modality
        )
    return lambda: getattr(model.model, f"get_{modality}_features")(**inputs)


MODALITIES = [
    (family, modality)
    for family in THIN
    for modality in ("image", "video")
    if modality == "image" or (TINY[family].videos and hasattr(tiny(family).model, "get_video_features"))
]


@pytest.mark.parametrize(
    ("family", "modality", "keep", "at"),
    [(*pair, *SETTINGS[turn % 2]) for turn, pair in enumerate(MODALITIES) if pair[0] != "qwen2_5_vl"],
)
def test_rows_that_left_are_copies_in_the_untouched_blocks(family, modality, keep, at):
    model = strong(family, "sdpa" if keep > 0.3 else "eager")
    run = call_of(model, family, modality)
    with torch.no_grad():
        plain = features(run())
        wanted = of_copies(model, modality, run, keep, at)
    got = thinned(model, run, keep, at)
    assert len(got) == len(wanted) == len(plain)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert max((ours - whole).abs().max() for ours, whole in zip(got, plain, strict=True)) > 0.01
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(features(run()), plain, strict=True))


# -- windows, and other kernels ------------------------------------------------------------------------------------


def weighted(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Full-length attention that hides the columns of rows that left, and counts kept ones by loops over the segment.

    `weighted.rows` are all rows in front of the block where rows leave, in order; None: not there yet.
    """
    count = key.shape[2]
    logits = (query.double() @ key.double().transpose(2, 3)) * scaling
    if weighted.rows is not None:
        inside = range(weighted.start, weighted.start + count)
        weighted.start = (weighted.start + count) % len(weighted.rows)
        kept = [row - inside[0] for row in inside if row in weighted.kept]
        bias = torch.full((count,), -1e30, dtype=torch.float64)
        if kept:
            parents = looped_parents(weighted.rows[inside[0] : inside[-1] + 1], torch.tensor(kept))
            for place, row in enumerate(kept):
                bias[row] = math.log(parents.count(place))
        logits = logits + bias
    return (logits.softmax(-1) @ value.double()).to(value).transpose(1, 2), None


AttentionInterface.register("weighted", weighted)


def of_loops(model, family, run, keep, at):
    """Features of a Qwen where late blocks hide columns of rows that left; rows come back behind the last."""
    whole = strong(family, "weighted")
    tower, blocks, read = tower_of(whole, "image")
    first = math.floor(at * (max(read) + 1) + 0.5)
    weighted.rows = None
    call, before = seen(tower, blocks[first], lambda: run(whole))
    goes_with = chosen(before, places_of(whole, tower, call, len(before)), keep)
    places = moved(before, goes_with)

    def enter(*_):
        weighted.rows, weighted.kept, weighted.start = before, {row for _, row in goes_with.values()}, 0

    def leave(_, args, output):
        return before + taken(output, places) - taken(before, places)

    with hooks() as on, torch.no_grad():
        on.append(blocks[first].register_forward_pre_hook(enter))
        on.append(blocks[-1].register_forward_hook(leave, prepend=True))
        try:
            return features(run(whole))
        finally:
            weighted.rows = None


WINDOWED = [[1, 6, 8], [1, 20, 14], [1, 2, 30], [1, 2, 2], [1, 18, 18]]


@pytest.mark.parametrize(
    ("family", "keep", "at", "kernel"),
    [
        ("qwen2_5_vl", 1 / 3, 0.0, "sdpa"),
        ("qwen2_5_vl", 1 / 9, 0.5, "eager"),
        ("qwen2_5_vl", 0.01, 0.0, "eager"),
        ("qwen2_vl", 1 / 9, 0.5, "eager"),
    ],
)
def test_kept_rows_count_in_windows_as_the_rows_of_the_window(family, keep, at, kernel):
    inputs = pictures(tiny(family), "image", WINDOWED)
    model = strong(family, kernel)

    def run(of=model):
        return of.model.get_image_features(**inputs)

    wanted, got = of_loops(model, family, run, keep, at), thinned(model, run, keep, at)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=1e-3)


def packed_flash(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **_):
    """A kernel that takes no mask, and packed sequences at once, as flash attention does."""
    assert attention_mask is None
    packed_flash.calls.append(query.shape[-1])
    ends, parts = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist(), []
    for start, end in itertools.pairwise(ends):
        q, k, v = (part[:, :, start:end] for part in (query, key, value))
        parts.append(((q @ k.transpose(2, 3)) * scaling).softmax(-1) @ v)
    return torch.cat(parts, dim=2).transpose(1, 2), None


packed_flash.calls = []
AttentionInterface.register("my_flash_attention", packed_flash)
ALL_MASK_ATTENTION_FUNCTIONS.register("my_flash_attention", lambda *_, **__: None)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "mistral3"])
def test_a_kernel_without_masks_gets_eight_channels_more(family):
    plain = strong(family)
    model = strong(family, "my_flash_attention")
    if family == "mistral3" and "cu_seq_lens_q" not in inspect.getsource(modeling_pixtral):  # an old one
        with pytest.raises(fv.UnsupportedError, match="position"):
            thinned(model, call_of(model, family, "image"), 1 / 3, 0.5)
        return
    wanted = thinned(plain, call_of(plain, family, "image"), 1 / 3, 0.5)
    packed_flash.calls.clear()
    got = thinned(model, call_of(model, family, "image"), 1 / 3, 0.5)
    sizes = set(packed_flash.calls)
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) == 8
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


# -- padding, neighbours, places -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pick", ["maxmin", "unlike"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_padding_of_tiles_is_neither_kept_nor_counted(kernel, pick):
    """What stands in padded patches changes no row that is none, and a tile alone is that tile in the batch."""
    model = strong("idefics3", kernel)
    vision = model.config.vision_config
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 3, vision.image_size, vision.image_size, generator=rng)
    mask = torch.ones(1, 3, vision.image_size, vision.image_size, dtype=torch.long)
    mask[0, 1, :, vision.image_size * 2 // 3 :] = 0
    mask[0, 2, vision.image_size // 3 :] = 0

    def ran(pixels, mask):
        rows = []
        _, blocks, _ = tower_of(model, "image")
        with hooks() as on:
            on.append(blocks[-1].register_forward_hook(lambda _, args, output: rows.append(output)))
            with fv.drop(model, fv.ThinTower(at=0.0, pick=pick)), torch.no_grad():
                model.model.get_image_features(pixel_values=pixels, pixel_attention_mask=mask)
        return rows[0]

    together, changed = ran(pixels, mask), pixels.clone()
    changed[mask[:, :, None].expand_as(pixels) == 0] = 7.0
    patch = vision.patch_size
    is_real = mask[0].unfold(1, patch, patch).unfold(2, patch, patch).sum((-1, -2)).flatten(1) > 0
    assert not is_real.all()
    torch.testing.assert_close(ran(changed, mask)[is_real], together[is_real], **CLOSE)
    for tile in range(3):
        alone = ran(pixels[:, tile : tile + 1], mask[:, tile : tile + 1])[0]
        torch.testing.assert_close(alone[is_real[tile]], together[tile][is_real[tile]], **CLOSE)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_neighbours_are_those_of_the_picture(family):
    """Rows of a Qwen stand token by token, and window by window: the trace has them in raster order."""
    model = strong(family)
    inputs = batch(family, ["tit"])
    tower, blocks, _ = tower_of(model, "image")
    of = given(model, inputs)
    call, before = seen(tower, blocks[0], lambda: model.model.get_image_features(**of))
    (places,) = places_of(model, tower, call, before.shape[-2])
    rows = before if before.dim() == 3 else before[None]
    in_order = torch.nn.functional.normalize(torch.stack([rows[at] for at in places]).double(), dim=1)
    grid = of["image_grid_thw"][0, 1:].tolist() if "image_grid_thw" in of else [math.isqrt(len(places))] * 2
    scores = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [r * grid[1] + c for r, c in beside if 0 <= r < grid[0] and 0 <= c < grid[1]]
            scores.append(float(in_order[row * grid[1] + column] @ in_order[inside].mean(0)))
    wanted = sorted(range(len(scores)), key=lambda at: scores[at])[: round(len(scores) / 3)]
    with fv.drop(model, fv.ThinTower(at=0.0, pick="unlike")) as trace, torch.no_grad():
        model(**inputs)
    (stage,) = trace.stages
    assert (stage.where, stage.rows, stage.before, stage.after) == ("tower", True, (len(scores),), (len(wanted),))
    assert stage.kept[0].tolist() == sorted(wanted)
    assert sorted(torch.cat(stage.merged[0]).tolist()) == list(range(len(scores)))
