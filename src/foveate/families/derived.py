"""Derived: serves any model whose decoder runs on vision tokens, by its structure and never by its name.

A family written by hand describes what is different. What 70 model types of transformers have in common is found here:
the core, the decoder and its layers, the places of vision tokens, and which of them belong to one image.
"""

import functools
import inspect
import itertools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveate._transformers import attention_of, indexes, keeps_index, kind_of
from foveate.core.cut import Cut
from foveate.core.signals import Attention, CachedAttention, KeyNorms, Keys, Pivots, Signal, TowerSignal
from foveate.errors import UnsupportedError
from foveate.families.base import Family, outside_lists
from foveate.families.feeding import NO_BLOCKS, blocks_of, encode_fed, has_cls, tower_by_feeding
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import images_of, place_rows, put_images
from foveate.families.proved import PROVED
from foveate.families.support import SERVED
from foveate.families.tap import takes_index
from foveate.families.tiles import run_lengths, runs
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, Tower
from foveate.families.vision import PictureLayout
from foveate.plain.upstream import warn_caller

DECODERS = ("language_model", "text_model")
INNER = ("model", "backbone", "decoder")
"""Names under which a module with a head holds the decoder."""
MODALITIES = ("image", "video")


class Derived(Family):
    """A model without a hand-written family.

    Positions are renumbered only if they are one running number. Rows of layers are gathered by the shapes of the
    layers' arguments.

    Raises:
        UnsupportedError: If the decoder gets no vision tokens, or has layers of a kind that cannot be served.
    """

    model_type: ClassVar[str] = "derived"
    tiled: ClassVar[bool] = True
    mergers: ClassVar[tuple[str, ...]] = ("get_placeholder_mask", "inputs_merger")
    gathers = True
    renumbers = False  # until its decoder has been inspected
    decoders: ClassVar[frozenset[str]] = frozenset()
    needs_all_rows: ClassVar[str | None] = None
    grows: ClassVar[bool] = False  # its image tokens may attend in both directions

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        reasons = dict.fromkeys(reason for layer in self.layers for reason in _kind_of(layer).unserved)
        if reasons:
            raise UnsupportedError(
                f"foveate cannot serve {model.config.model_type!r} ({type(model).__name__}): {'; '.join(reasons)}."
            )
        self.renumbers = self._numbers_run() and not self.lenders
        proved = PROVED.get(model.config.model_type)
        self.shares_prefix = proved is not None and proved.shares and not self.lenders  # type: ignore[misc]
        if proved is None:
            warn_of(f"{type(model).__name__} ({model.config.model_type!r})")

    # -- parts -------------------------------------------------------------------------------------------------

    def find_core(self) -> nn.Module:
        """The innermost module that encodes images for a decoder; see `Family.find_core`."""
        config = getattr(self.model, "config", None)
        kind = f"{type(self.model).__name__} ({getattr(config, 'model_type', None)!r})"
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedError(f"{kind} is an encoder-decoder: its decoder has no vision tokens to drop.")
        takes = inspect.signature(type(self.model).forward).parameters if isinstance(self.model, nn.Module) else ()
        encoding = []
        if "input_ids" in takes:
            encoding = [module for module in outside_lists(self.model) if _sees(module)]
        with_decoder = [module for module in encoding if _is_decoder(_decoder_in(module))] or [
            module for module in encoding if _is_decoder(_decoder_by_structure(module))
        ]
        if not with_decoder:
            raise UnsupportedError(
                f"{kind} has no module that takes pictures and has a decoder with layers, so foveate cannot find its "
                "vision tokens. Pass the whole vision-language model, or write a family: docs/guides/new-family.md."
            )
        encoding = [module for module in with_decoder if hasattr(module, "get_image_features")] or with_decoder
        named = [module for module in encoding if any(hasattr(module, name) for name in DECODERS)]
        return (named or encoding)[-1]

    @functools.cached_property
    def text(self) -> Any:
        """The innermost module below the core that has the layers."""
        return _decoder_in(self.core) or _decoder_by_structure(self.core)

    @functools.cached_property
    def layers(self) -> nn.ModuleList:
        """As in the base class, under any name."""
        layers = _layers_of(self.text)
        assert layers is not None
        return layers

    def final_norm(self, rows: Tensor) -> Tensor:
        """As in the base class, under any name."""
        norms = [module for name, module in self.text.named_children() if "norm" in name and name != "rotary_emb"]
        if not norms:
            raise UnsupportedError(f"{type(self.text).__name__} has no norm after its layers that foveate knows.")
        normed: Tensor = norms[-1](rows)
        return normed.to(rows.device)

    def _numbers_run(self) -> bool:
        """True if positions are one running number, and RoPE makes one (cos, sin) pair from them."""
        rotary, config = getattr(self.text, "rotary_emb", None), self.text.config
        several = hasattr(self.core, "get_rope_index") or "mrope_section" in str(getattr(config, "rope_parameters", ""))
        if rotary is None or several:
            return False
        ids = torch.arange(2, device=self.text.device)[None]
        hidden = torch.zeros(1, 2, 1, device=ids.device)
        try:
            return isinstance(self.rotary(0, hidden, ids), tuple)
        except (RuntimeError, TypeError, KeyError, AttributeError):
            return False

    @functools.cached_property
    def towers(self) -> list[Any]:
        """As in the base class; under other names, the outermost modules that take pixels and no text."""
        parts = [part for part in outside_lists(self.core) if _takes_pixels(part)]
        inside = {id(module) for part in parts for module in [*part.modules()][1:]}
        return super().towers or [part for part in parts if id(part) not in inside]

    # -- layers ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def recurrent(self) -> frozenset[int]:
        """Layers without attention: those that carry a state, and those that process each row separately."""
        return frozenset(index for index, layer in enumerate(self.layers) if _kind_of(layer).kind != "attention")

    @functools.cached_property
    def indexed(self) -> dict[int, int]:
        """As in the base class. A layer without an index uses the keys picked by the last layer that has one."""
        picked, counts = None, dict[int, int]()
        for index, layer in enumerate(self.layers):
            own = _kind_of(layer).index
            if own is not None and (part := own()) is not None:
                picked = indexes(part)
            if picked is not None and (own is not None or takes_index(layer)):
                counts[index] = picked
        return counts

    # -- pictures ----------------------------------------------------------------------------------------------

    def reduce_features(
        self, output: Any, modality: str, inputs: Inputs, reducer: ImageReducer, stats: Stats | None = None
    ) -> list[Cut | None]:
        """As in the base class. Tokens of unknown places are all ranked, since none is known to be a newline."""
        features = images_of(output, reducer.lengths)
        cuts = reduce_apart(features, [PictureLayout(())] * len(features), reducer, stats)
        self.place(output, features, cuts)
        return cuts

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """Reduce after the projector: see `encode_fed`."""
        return encode_fed(self, run, modality, inputs, reducer)

    def tower_parts(self, modality: str, run: Run, inputs: Inputs) -> Tower:
        """The tower, if all of its blocks attend to whole images: see `tower_by_feeding`."""
        return tower_by_feeding(self, run, inputs)

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        """None: only the model itself shows it."""
        return None

    @property
    def tower_cls(self) -> bool:
        """As in the base class, by the name of a parameter."""
        return has_cls(self.core)

    def lacks(self, signal: Signal) -> str | None:
        """As in the base class, and if anything of the tower can be read."""
        reason = super().lacks(signal)
        if reason is None and isinstance(signal, TowerSignal) and not blocks_of(self.core, self.layers):
            return NO_BLOCKS
        reads = isinstance(signal, Attention | CachedAttention | Keys | KeyNorms | Pivots) or not isinstance(
            signal, SERVED
        )
        if reads and any(hasattr(attention, "sinks") for attention in self.attentions):
            return "its rows pay attention to sinks too, which queries and keys do not show"
        return reason

    def later_additions(self, inputs: Inputs) -> Any:
        """As in the base class: the decoder's only argument whose name contains "deepstack"."""
        return next((value for name, value in inputs.items() if "deepstack" in name and value is not None), None)

    # -- vision tokens -----------------------------------------------------------------------------------------

    def vision_masks(self, placeholders: Any, inputs: Any) -> list[tuple[str, Tensor]]:
        """The merger's result. If it is not a mask, the columns whose ids are placeholders."""
        answers = placeholders if isinstance(placeholders, tuple) else (placeholders,)
        masks = [mask for mask in answers if isinstance(mask, Tensor) and mask.dtype == torch.bool]
        if len(masks) < len(answers) or not masks:
            return self.masks_by_ids(inputs)
        if len(masks) > 1:
            return [pair for pair in zip(MODALITIES, masks, strict=False) if self.has_pixels(pair[0], inputs)]
        there = [modality for modality in MODALITIES if self.has_pixels(modality, inputs)]
        if len(there) > 1:  # the merger is called once for each; its arguments show the modality
            asked = inputs.get("token_id")
            ids = [self.placeholder(modality) for modality in MODALITIES]
            is_video = inputs.get("video_features") is not None or (asked == ids[1] != ids[0])
            there = [MODALITIES[is_video]]
        asked = inputs.get("token_id")  # given to a merger that also locates other tokens, such as audio
        return [(modality, masks[0]) for modality in there if asked is None or asked == self.placeholder(modality)]

    def masks_by_ids(self, inputs: Any) -> list[tuple[str, Tensor]]:
        """The columns whose ids are placeholders, by modality."""
        ids = inputs.get("input_ids")
        if ids is None or ids.shape[1] == 1:  # a decode step may still get the images (Phi-4)
            return []
        masks = []
        for modality in MODALITIES:
            token = self.placeholder(modality)
            if token is not None and self.has_pixels(modality, inputs):
                masks.append((modality, ids == token))
        return masks

    def placeholder(self, modality: str) -> int | None:
        """As in the base class, by the names used in configs. Videos may have the placeholder of images."""
        token = token_id(self.model.config, modality)
        if token is None:
            return token_id(self.model.config, "image")
        return token

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """An image ends where both a piece of the features and a run of placeholders end."""
        return images_in(mask, pieces)


@functools.cache
def warn_of(kind: str) -> None:
    """Warn once for each kind of model that it was not tested, and say how to test it."""
    warn_caller(
        f"{kind} is not among the models that foveate was tested on. Check it first: foveate.testing.check(model, "
        "inputs), or `foveate check MODEL`."
    )


def _sees(module: nn.Module) -> bool:
    """True if a module encodes images: by a function for it, or in its forward."""
    takes = inspect.signature(type(module).forward).parameters
    return hasattr(module, "get_image_features") or any("pixel_values" in name for name in takes)


def _takes_pixels(module: nn.Module) -> bool:
    """True if a module's forward takes pixels and no text."""
    names = inspect.signature(type(module).forward).parameters
    return any("pixel_values" in name for name in names) and not {"input_ids", "inputs_embeds"} & names.keys()


def _decoder_in(core: nn.Module) -> nn.Module | None:
    """The decoder of a core: its attribute of a usual name, or the core itself, down to the module that has layers."""
    module = next((getattr(core, name) for name in DECODERS if isinstance(getattr(core, name, None), nn.Module)), core)
    while not isinstance(getattr(module, "layers", None), nn.ModuleList):
        inner = (getattr(module, name, None) for name in INNER)
        decoder = next((part for part in inner if isinstance(part, nn.Module)), None)
        if decoder is None:
            return None
        module = decoder
    return module


def _decoder_by_structure(core: nn.Module) -> nn.Module | None:
    """The decoder of a core under another name: a part that takes embeddings, has layers, and is not a tower."""
    parts = [part for part in outside_lists(core) if part is not core and _takes_embeddings(part)]
    return next((part for part in parts if not _sees(part) and _layers_of(part) is not None), None)


def _takes_embeddings(module: nn.Module) -> bool:
    return "inputs_embeds" in inspect.signature(type(module).forward).parameters


def _layers_of(module: nn.Module) -> nn.ModuleList | None:
    """A decoder's layers: its `layers`, or, if it takes embeddings, its only list of modules that attend."""
    layers = getattr(module, "layers", None)
    if isinstance(layers, nn.ModuleList) and len(layers):
        return layers
    if not _takes_embeddings(module):
        return None
    lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part)]
    lists = [part for part in lists if any(_kind_of(layer).kind == "attention" for layer in part)]
    if len(lists) != 1:
        return None
    return lists[0]


def _is_decoder(module: nn.Module | None) -> bool:
    """True if some layer of a module is causal. Otherwise the module is a tower, not a decoder."""
    layers = () if module is None else _layers_of(module) or ()
    attentions = [attention for layer in layers if (attention := attention_of(layer)) is not None]
    return any(getattr(attention, "is_causal", True) for attention in attentions)


@dataclass(frozen=True, slots=True)
class _LayerKind:
    """The properties of a layer, found from the code of its modules.

    Attributes:
        parts: Types of the layer's parts when it was inspected.
        kind: What the layer does: "attention", "state", "hybrid" or "plain".
        index: The module that picks keys by a separate index. None if there is none.
        unserved: Why it cannot run on some of its rows.
    """

    parts: tuple[type, ...]
    kind: str
    index: weakref.ref[nn.Module] | None
    unserved: tuple[str, ...]


_KINDS: WeakKeyDictionary[nn.Module, _LayerKind] = WeakKeyDictionary()


def _kind_of(layer: nn.Module) -> _LayerKind:
    """The kind of a layer, inspected once. Contexts ask for it whenever they open, and experts are many modules."""
    parts, remembered = tuple(map(type, layer.children())), _KINDS.get(layer)
    if remembered is None or remembered.parts != parts:
        modules = [*layer.modules()]
        kinds = set(map(kind_of, modules))
        kind = next((kind for kind in ("attention", "state") if kind in kinds), "plain")
        if "hybrid" in kinds or {"attention", "state"} <= kinds:
            kind = "hybrid"
        index = next(filter(keeps_index, modules), None)
        unserved = _reasons_against(layer, kind, index)
        remembered = _LayerKind(parts, kind, None if index is None else weakref.ref(index), unserved)
        _KINDS[layer] = remembered
    return remembered


def _reasons_against(layer: nn.Module, kind: str, index: nn.Module | None) -> tuple[str, ...]:
    """Reasons why a layer of this kind, with this index, cannot run on some of its rows."""
    name, attention = type(layer).__name__, attention_of(layer)
    if kind == "hybrid":
        return (f"its {name} attends and carries a state, and stores both in one layer of the cache",)
    if index is not None and indexes(index) is None:
        return (
            f"its {name} picks the keys that it attends to by pools or positions of them, which dropping would shift",
        )
    if getattr(attention, "is_kv_shared_layer", False) and not hasattr(attention, "layer_type"):
        return (f"it is not known whose keys its {name} borrows",)
    if kind == "attention" and attention is None:
        return (f"its {name} attends in several places, or in none that foveate knows",)
    return ()


NAMES = ("{}_token_id", "{}_token_index", "{}_patch_id")
INSIDE = ("vision_config", "text_config")


def token_id(config: Any, modality: str) -> int | None:
    """The id of a placeholder, by the names used in configs. None if there is none."""
    for part in (config, *(getattr(config, name, None) for name in INSIDE)):
        for name in NAMES:
            token: int | None = getattr(part, name.format(modality), None)
            if token is not None:
                return token
    return None


def images_in(mask: Tensor, pieces: Sequence[int]) -> list[list[int]]:
    """The number of vision tokens in each image of each sample.

    An image ends where both a piece and a run of placeholders end. Tiles in one run are one image, and so are rows with
    one run each. Example with 12 tokens:

        runs      4   4   4        an image whose three rows are separated in the prompt, or a video's frames
        pieces    12               one image of 12

        runs      8       4        one run of two tiles, and one of one
        pieces    4   4   4        images of 8 and 4

    Args:
        mask: True at vision tokens, (samples, columns) bool.
        pieces: Number of tokens in each piece of the features, in order. Empty: every run is an image.
    """
    runs = run_lengths(mask)
    if not pieces or sum(pieces) != sum(itertools.chain(*runs)):
        return runs
    ends = set(itertools.accumulate(pieces))
    images, end = [], 0
    for sample in runs:
        lengths, begun = [], 0
        for length in sample:
            end, begun = end + length, begun + length
            if end in ends:
                lengths.append(begun)
                begun = 0
        images.append(lengths if not begun else sample)  # a piece spans two samples: fall back to runs
    return images


class HunYuanVL(Derived):
    """An image's grid has a newline after each row, and a token before and after all rows. These always stay.

    begin 0 1 2 ↵ 3 4 5 ↵ end        a grid of 2 x 3
    """

    model_type: ClassVar[str] = "hunyuan_vl"
    tiled: ClassVar[bool] = False
    keeps_beside: ClassVar[bool] = True

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        if "image_grid_thw" not in inputs:
            return super().pictures(config, modality, inputs, lengths)
        side, pictures = config.vision_config.spatial_merge_size, []
        for _, height, width in inputs["image_grid_thw"].tolist():
            rows, columns = height // side, width // side
            end = rows * (columns + 1) + 1
            pictures.append(PictureLayout(((rows, columns),), (*range(0, end, columns + 1), end)))
        return pictures

    def reduce_features(
        self, output: Any, modality: str, inputs: Inputs, reducer: ImageReducer, stats: Stats | None = None
    ) -> list[Cut | None]:
        images = list(output.pooler_output)
        pictures = self.pictures(self.model.config, modality, inputs, ())
        cells = [picture.in_grids.to(images[0].device) for picture in pictures]
        of_cells = [image[own] for image, own in zip(images, cells, strict=True)]
        cuts = reduce_apart(of_cells, [PictureLayout(picture.grids) for picture in pictures], reducer, stats)
        for index, (own, cut) in enumerate(zip(cells, cuts, strict=True)):
            if cut is not None and not cut.stays_whole:
                images[index] = images[index].index_put((own,), place_rows(of_cells[index], cut))
        put_images(output, images)
        return cuts


class Ovis2(Derived):
    """An image begins at a special token. A view of the whole, and tiles separated by other tokens, are one image."""

    model_type: ClassVar[str] = "ovis2"

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """As in the base class, by these tokens. If the prompt came as embeddings, every tile counts as an image."""
        if ids is None:
            return super().image_lengths(mask, ids, pieces)
        begin = self.model.config.visual_indicator_token_ids[0]
        samples = []
        for row, tiles in zip((ids == begin).cpu(), runs(mask), strict=True):
            before = row.cumsum(dim=0).tolist()  # (columns,): number of images that have begun up to each column
            images: dict[int, int] = {}
            for start, end in tiles:
                images[before[start]] = images.get(before[start], 0) + end - start
            samples.append(list(images.values()))
        return samples


OVERRIDES: Mapping[str, type[Derived]] = {kind.model_type: kind for kind in (HunYuanVL, Ovis2)}
"""Derived families with differences, by `model_type`."""
