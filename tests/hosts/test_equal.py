"""`drop_rows` and a decoder by hand give what `fv.drop` gives on transformers: the same tokens, the same logits."""

import copy
from functools import cache

import pytest
import torch

import foveate as fv
from foveate.contract import Shape
from foveate.contract.stages import ImageStage
from foveate.core.signals import Deepstack, Features
from foveate.engine.extensions.encoding import reducer
from foveate.naming import parse
from tests import oracle
from tests.models import (
    DEPTH,
    FAMILIES,
    TINY,
    batch,
    config_of,
    features,
    generate,
    is_vision,
    made_of,
    sample,
    tiny,
    with_video,
)

METHODS = (
    "averagepool", "cdpruner", "divprune", "divprune:positions=keep", "mmtok", "random:layers=0;seed=0",
    "uniform:layers=0", "vidcom2",
)  # fmt: skip
OF_FILMS = ("dycoke", "evs")
RETENTION = 0.5
NEAR = 1e-5
WHOLE_PROMPTS = ("gemma3", "paligemma")
"""Families whose `generate` takes no embeddings."""
AS_IMAGES = ("internvl", "smolvlm")
"""Families whose videos are images to their tower."""
TILED = ("idefics3", "internvl", "llava_next", "llava_next_video", "llava_onevision", "smolvlm")
"""Families whose pictures have several grids, which no `grid` can say, or newlines between the rows of one."""


@cache
def model_of(family):
    """The tiny model of a family, with a sliding window longer than the prompt: at old positions it counts columns."""
    config = config_of(family)
    if getattr(config.get_text_config(), "sliding_window", None) is None:
        return tiny(family)
    config = copy.deepcopy(config)
    config.get_text_config().sliding_window = 4096
    return made_of(family, config)


@cache
def prompt(family, word):
    """A prompt's inputs, and all that the core hands its decoder."""
    model, inputs, handed = model_of(family), batch(family, [word]), {}
    hook = model.get_decoder().register_forward_pre_hook(lambda *call: handed.update(call[2]), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return inputs, handed


@cache
def media_of(family, word):
    """Of each image or video in a prompt: its columns, its layout, and whether it is a video; in order."""
    model, media = model_of(family), []
    marked = is_vision(prompt(family, word)[0]["input_ids"][0]).nonzero()[:, 0]
    letters = [letter for letter in word if letter in "iv"]
    for letter, medium in zip(letters, sample(family, word)[1], strict=True):
        modality = {"i": "image", "v": "video"}[letter]
        count = sum(map(len, features(model, medium, modality)))
        inputs = oracle.features_given(model.model, medium, modality)
        (layout,) = fv.families()[family].pictures(model.config, modality, inputs, [count])
        media.append((marked[:count], layout, letter == "v"))
        marked = marked[count:]
    return media


def cases():
    for family in FAMILIES:
        kind, films = fv.families()[family], TINY[family].videos and family not in AS_IMAGES
        for word in ("tit", "titit", *(("tvt", with_video(family)) if films else ())):
            for name in (*METHODS, *(OF_FILMS if "v" in word else ())):
                reads_tower = name == "mmtok" and kind.defines("encode") and kind.renumbers
                views = family in TILED and "i" in word and name in ("averagepool", "vidcom2", *OF_FILMS)
                if not (reads_tower or views):
                    yield family, word, name


def kept_by_hand(family, word, method, count):
    """Give `drop_rows` the rows of a prompt. Returns the column that each row left has, and the rows, as they enter."""
    kind, (_, handed) = fv.families()[family], prompt(family, word)
    embeds, media = handed["inputs_embeds"][0], media_of(family, word)
    levels, is_media = handed.get("deepstack_visual_embeds"), torch.zeros(len(embeds), dtype=torch.bool)
    for columns, *_ in media:
        is_media[columns] = True
    early = any(isinstance(stage, ImageStage) for stage in method.placed(Shape(DEPTH, renumbers=kind.renumbers)))
    ends = [*(columns[-1] for columns, *_ in media[1:]), len(embeds)]
    places, given = [], {name: [] for name in ("rows", "grid", "text", "signals", "fixed")}
    for (columns, layout, film), end in zip(media, ends, strict=True):
        grids, fixed, behind = layout.grids, (), torch.arange(columns[-1] + 1, end)
        if kind.keeps_beside:
            fixed = layout.beside
        elif layout.beside and early and (film or method.name not in OF_FILMS):
            # Newlines go, but for one that closes a film. They count to the whole, of which a share stays.
            closing = [len(columns) - 1] if len(layout.beside) == 1 else []
            tokens = [place for place in range(len(columns)) if closing or place not in layout.beside]
            columns, fixed = columns[tokens], closing
            method = method.with_budget(retention=(count - len(fixed)) / (len(columns) - len(fixed)))
        elif layout.beside:  # stages before a layer rank newlines too
            grids = ()
        if len(set(grids)) != 1 or not (film or len(grids) == 1):
            grids = ()
        places.append(columns)
        given["rows"].append(embeds[columns])
        given["grid"].append((*([len(grids)] if film else []), *grids[0]) if grids else None)
        given["text"].append(embeds[behind[~is_media[behind]]])
        given["signals"].append({Deepstack(): of_columns(levels, is_media, columns)} if levels else None)
        given["fixed"].append(fixed)
    kept = fv.drop_rows(given.pop("rows"), method, family=family, **given)
    order, rows, begin = [], [], 0
    for columns, own in zip(places, kept, strict=True):
        before = torch.arange(begin, columns[0])
        order += [before, columns[own.source]]
        rows += [embeds[before], own.rows]
        # Text between a picture's tokens stays behind those that come before it.
        inside = torch.arange(columns[0], columns[-1])
        order.append(inside := inside[~is_media[inside]])
        rows.append(embeds[inside])
        begin = columns[-1] + 1
    order, rows = torch.cat([*order, torch.arange(begin, len(embeds))]), torch.cat([*rows, embeds[begin:]])
    if any(len(columns) < columns[-1] - columns[0] + 1 for columns in places):
        sorting = order.sort()
        return sorting.values, rows[sorting.indices]
    return order, rows


def of_columns(levels, is_media, columns):
    """Deepstack features of some columns, layers side by side."""
    return torch.cat([level[torch.isin(is_media.nonzero()[:, 0], columns)] for level in levels], dim=1)


@pytest.mark.parametrize(("family", "word", "name"), [*cases()])
def test_rows_chosen_by_hand_are_those_of_transformers_and_so_are_the_logits(family, word, name):
    model, kind, (inputs, handed) = model_of(family), fv.families()[family], prompt(family, word)
    method = parse(name).with_budget(retention=RETENTION)
    with fv.drop(model, method) as trace:
        expected = generate(model, inputs, 3).logits
    vision = torch.cat([media[0] for media in media_of(family, word)])
    left = vision[trace.stages[-1].kept[0]] if trace.stages else vision
    columns, rows = kept_by_hand(family, word, method, len(left))
    assert set(columns.tolist()) - set(left.tolist()) == set(range(len(is_vision(inputs["input_ids"][0])))) - set(
        vision.tolist()
    )
    given = {"inputs_embeds": rows[None], "attention_mask": torch.ones(1, len(rows), dtype=torch.int64)}
    given |= {name: inputs[name][:, columns] for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    renumbers = any(stage.positions == "reindex" for stage in method.placed(Shape(DEPTH)) if stage.drops)
    if kind.renumbers and not renumbers:
        given["position_ids"] = columns[None]
    if not kind.renumbers or family == "gemma4":
        logits = with_places(family, handed, rows, columns, renumbers and kind.renumbers)
    elif family in WHOLE_PROMPTS:
        with torch.no_grad():
            logits = [model(**given).logits[:, -1]]
    else:
        logits = generate(model, given, 3).logits
    for own, other in zip(logits, expected, strict=False):
        torch.testing.assert_close(own, other, atol=NEAR, rtol=0)


def test_a_short_window_counts_new_numbers_on_both_sides(monkeypatch):
    assert tiny("gemma3").config.text_config.sliding_window < len(prompt("gemma3", "titit")[0]["input_ids"][0]) // 2
    monkeypatch.setitem(globals(), "model_of", tiny)
    test_rows_chosen_by_hand_are_those_of_transformers_and_so_are_the_logits("gemma3", "titit", "divprune")


def with_places(family, handed, rows, columns, renumbers):
    """Run a decoder on rows at the positions of their columns, or at new ones. Deepstack rows move whole."""
    places = handed["position_ids"]
    places = places[..., : len(columns)] if renumbers else places[..., columns]
    model, vision = model_of(family), handed.get("visual_pos_masks")
    arguments = {"inputs_embeds": rows[None], "position_ids": places}
    if family == "gemma4":
        masks = handed["attention_mask"].items()
        arguments["attention_mask"] = {
            kind: None if mask is None else mask[..., columns, :][..., columns] for kind, mask in masks
        }
    if vision is not None:
        stays = torch.isin(vision[0].nonzero()[:, 0], columns)
        arguments["visual_pos_masks"] = vision[:, columns]
        arguments["deepstack_visual_embeds"] = [level[stays] for level in handed["deepstack_visual_embeds"]]
    with torch.no_grad():
        return [model.lm_head(model.get_decoder()(**arguments).last_hidden_state[:, -1])]


OF_TOWERS = ("visionzip", "hiprune", "vispruner", "scope", "holov", "prumerge:retention=0.5", "tome")


@pytest.mark.parametrize("name", OF_TOWERS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_with_what_the_tower_shows_the_tokens_of_transformers_stay(family, name, monkeypatch):
    method, shown = parse(name), {}
    method = method.with_budget(retention=RETENTION) if method.open else method

    def note(stage, image, video, original=reducer.image_view):
        reads = [signal for signal in stage.reads if isinstance(signal, Features) or not image.lacks(signal)]
        shown.update({signal: image.signal(signal) for signal in reads})
        shown.setdefault("rows", (image.rows, image.view.grid))
        return original(stage, image, video)

    monkeypatch.setattr(reducer, "image_view", note)
    with fv.drop(tiny(family), method) as trace, torch.no_grad():
        tiny(family)(**batch(family, ["tit"]))
    rows, grid = shown.pop("rows")
    kept = fv.drop_rows(rows, method, grid=grid, signals=shown, family=family)
    (record,) = trace.stages
    assert kept.source[kept.source >= 0].sort().values.tolist() == record.kept[0].sort().values.tolist()
