"""Family: the interface between the engine and a model family. A family knows a model's structure and no method."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import getattr_static
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate._transformers import OLDEST, Reach, attention_of, numbers_rows, reach_of, require, rotation, turns
from foveate.core.cut import Cut
from foveate.core.patching import Patcher
from foveate.core.signals import Cells, Signal, TowerAttention, TowerSignal
from foveate.core.tensors import take_along
from foveate.errors import SettingError, UnsupportedError
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import images_of, lengths_of, move_additions, place_rows, put_images, stays_whole
from foveate.families.tap import Tapped, queries_and_keys_of
from foveate.families.thinning import encode_leaving
from foveate.families.tower import (
    Encoded,
    ImageReducer,
    Inputs,
    KeysOf,
    Run,
    Taps,
    Tower,
    TowerLayout,
    encoder_layers,
    feature_layers,
)
from foveate.families.vision import PictureLayout

TOWERS = (
    *("visual", "vision_tower", "image_tower", "vision_model"),  # under one of these names for images
    *("video_tower", "high_res_vision_model"),
)
"""Names under which a core has its vision towers."""
PICTURES = frozenset(
    {"always_kept", "boxes", "fixed_tokens", "frames_of", "pictures_of", "token_grids", "tower_images"}
)
"""Methods of families in foveate 0.3 and before, in the place of `Family.pictures`."""


class Family:
    """The structure of a vision-language model of transformers.

    The defaults fit a model whose core module has a `language_model` with `layers`, a `get_placeholder_mask` and
    `get_image_features` / `get_video_features`. A family overrides what differs.

    Attributes:
        model_type: The `config.model_type` this family serves.
        title: The usual name of its models. Empty if not given.
        oldest: The oldest supported version of transformers.
        fit: How the usual processor prepares an image: "whole" (resized), or "crop" (the centre square is cut out).
        renumbers: True if positions are one running number, so that rows may be renumbered (not with M-RoPE).
        shares_prefix: True if everything before a question is computed without seeing the question, so that questions
            about one image may share its prefill. False if the whole prompt is seen in both directions, and until a
            family sets it.
        grows: True if an image has the same rows over a cache as in a whole prompt, given `shares_prefix`.
        closing_tokens: Number of tokens after an image that show where it ends, and so belong to it.
        keeps_beside: True if the tokens beside a picture's grids, such as a frame's CLS, always stay: they are not
            ranked, and a method's counts do not include them. False: they are newlines.
        decoder: Name of the decoder in the core.
        mergers: Names of the core's function that locates vision tokens (see `vision_masks`); the first existing one is
            used. If there is none, ids locate them (see `masks_by_ids`).
        videos: True if the model supports videos.
        projects_frames: True if the projector treats a video's frames differently from images (see `frames` of
            `PictureLayout`).
        tiled: True if features come in pieces other than images, such as tiles. Then the prompt shows which pieces
            belong to which image (see `image_lengths`).
        runs_grids: True if the tower runs on the token grids of images, so that these determine its cost.
        tower_blocks: Path of the tower's blocks.
        tower_attention: Name of the attention in these blocks.
        keys_of: In a tower with RoPE, the part of an attention that makes keys.
        parts: Whether the tower runs several images, or padding, as one sample, whose signals are read in parts.
        needs_all_rows: Why blocks of the tower cannot run on some of its rows, as the end of a sentence. None: they can
            (see `tower_parts`).
        pixel_mean, pixel_std: What the processor subtracts from each channel of pixels in [0, 1], and then divides them
            by.
        gathers: True if layers may get more than the usual arguments, which are recognised by their shapes.
        core: The module that merges vision features into the text.
        retriever: The retrieval model around this one, if any (see `families.retrieval`).
        decoders: The `text_config.model_type`s whose queries and keys are made in the usual way.
    """

    model_type: ClassVar[str]
    title: ClassVar[str] = ""
    oldest: ClassVar[str] = OLDEST
    decoders: ClassVar[frozenset[str]] = frozenset({"llama", "mistral", "qwen2", "qwen3"})
    fit: ClassVar[Literal["whole", "crop"]] = "whole"
    renumbers: bool = True
    shares_prefix: ClassVar[bool] = False
    grows: ClassVar[bool] = True
    closing_tokens: ClassVar[int] = 0
    keeps_beside: ClassVar[bool] = False
    decoder: ClassVar[str] = "language_model"
    mergers: ClassVar[tuple[str, ...]] = ("get_placeholder_mask",)
    videos: ClassVar[bool] = False
    projects_frames: ClassVar[bool] = False
    tiled: ClassVar[bool] = False
    runs_grids: ClassVar[bool] = True
    gathers: bool = False
    retriever: Any = None
    tower_blocks: ClassVar[str] = "encoder.layers"
    tower_attention: ClassVar[str] = "self_attn"
    keys_of: ClassVar[KeysOf | None] = None
    parts: ClassVar[bool] = False
    needs_all_rows: ClassVar[str | None] = "it is not known how its blocks would run on some of them"
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __init_subclass__(cls) -> None:
        old = sorted(PICTURES & vars(cls).keys())
        if old:
            raise SettingError(
                f"{cls.__name__} overrides {', '.join(old)}, which foveate no longer calls. Override pictures instead, "
                "which returns a PictureLayout for each picture: docs/guides/new-family.md."
            )

    def __init__(self, model: Any) -> None:
        require(self.oldest, type(self).__name__)
        self.model = model
        self.core: Any = self.find_core()

    def find_core(self) -> nn.Module:
        """The innermost module that has both the `decoder` and a merger.

        Raises:
            UnsupportedError: If there is none.
        """
        outside = outside_lists(self.model)
        decoding = [module for module in outside if isinstance(getattr(module, self.decoder, None), nn.Module)]
        cores = [module for module in decoding if any(map(partial(hasattr, module), self.mergers))]
        if not cores:
            raise UnsupportedError(
                f"{type(self.model).__name__} has no module with a {self.decoder} and a "
                f"{' or '.join(self.mergers)}; "
                "pass the whole vision-language model, not a part of it."
            )
        return cores[-1]

    @property
    def merger(self) -> str | None:
        """Name of the core's function that locates the vision tokens. None if only ids locate them."""
        return next((name for name in self.mergers if hasattr(self.core, name)), None)

    @property
    def text(self) -> Any:
        """The decoder, which takes `inputs_embeds` and runs `layers`."""
        return getattr(self.core, self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers in order. Each takes hidden states and one `position_embeddings` pair (cos, sin)."""
        layers: nn.ModuleList = self.text.layers
        return layers

    def final_norm(self, rows: Tensor) -> Tensor:
        """Apply the norm after the decoder's last layer to rows of the residual stream, (…, rows, width)."""
        normed: Tensor = self.text.norm(rows)
        return normed.to(rows.device)

    def rotary_type(self, layer: int) -> str | None:
        """The RoPE that a decoder layer uses, as named by `text.rotary_emb`. None if all layers use the same."""
        if not hasattr(self.text.rotary_emb, "layer_types"):
            return None
        kind: str = self.text.config.layer_types[layer]
        return kind

    def rotary(self, layer: int, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of position ids, (samples or 1, rows), as the decoder makes them for a layer."""
        kind = self.rotary_type(layer)
        kinds = () if kind is None else (kind,)
        pair: tuple[Tensor, Tensor] = self.text.rotary_emb(hidden, ids, *kinds)
        return pair

    def frequencies(self, layer: int) -> Tensor | None:
        """The radians by which one position rotates each pair of numbers in a layer, (pairs,); 0 for unrotated pairs.

        A layer without RoPE has those of the next layer with RoPE. None if there is no such layer.
        """
        rotary = getattr(self.text, "rotary_emb", None)
        for index in range(layer, 0 if rotary is None else len(self.layers)):
            kind = self.rotary_type(index)
            radians: Tensor | None = getattr(rotary, "inv_freq" if kind is None else f"{kind}_inv_freq", None)
            if radians is not None and index not in self.recurrent and turns(attention_of(self.layers[index])):
                return radians
        return None

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        """True if the vision tower has a CLS whose attention row can be read.

        Args:
            config: The model's config. Without it the result is None if models of the family differ.
        """
        return False

    @property
    def tower_cls(self) -> bool:
        """True if this model's vision tower has a CLS."""
        return bool(self.cls_in_tower(self.model.config))

    @classmethod
    def defines(cls, name: str) -> bool:
        """True if this family or one of its ancestors overrides the default of `name`."""
        return getattr_static(cls, name) is not getattr_static(Family, name)

    @classmethod
    def lacking(cls, signal: Signal, tower_cls: bool) -> str | None:
        """The reason why a stage cannot read this signal, if the tower has or lacks a CLS. None if it can."""
        if isinstance(signal, Cells) and not cls.defines("pictures"):
            return f"the places of the vision tokens of {cls.model_type!r} are not known"
        if not isinstance(signal, TowerAttention) or signal.by == "patches" or tower_cls:
            return None
        return f"the vision tower of {cls.model_type!r} has no CLS"

    def lacks(self, signal: Signal) -> str | None:
        """The reason why a stage cannot read this signal from this model. None if it can."""
        return self.lacking(signal, self.tower_cls)

    @property
    def recurrent(self) -> frozenset[int]:
        """Decoder layers that carry a state from token to token, and cache it instead of keys and values.

        They get a mask of padding, (samples, columns), and no attention can be read there.
        """
        return frozenset()

    @functools.cached_property
    def attentions(self) -> list[Any]:
        """The attention module of each decoder layer. None for a layer without attention."""
        return [attention_of(layer) for layer in self.layers]

    @functools.cached_property
    def windows(self) -> dict[int, Reach]:
        """How far each decoder layer attends that has a sliding window, or attends in chunks."""
        config = self.text.config.get_text_config(decoder=True)
        reaches = [reach_of(config, index, attention) for index, attention in enumerate(self.attentions)]
        return {index: reach for index, reach in enumerate(reaches) if reach is not None}

    @functools.cached_property
    def lenders(self) -> dict[int, int]:
        """Decoder layers that attend to keys and values of an earlier layer, and that layer (Gemma 3n, Gemma 4 E2B)."""
        lenders: dict[int, int] = {}
        own: dict[Any, int] = {}  # by type, the last layer that makes its own keys and values
        for index, attention in enumerate(self.attentions):
            kind = getattr(attention, "layer_type", None)
            if getattr(attention, "is_kv_shared_layer", False):
                lenders[index] = own[kind]
            else:
                own[kind] = index
        return lenders

    @functools.cached_property
    def indexed(self) -> dict[int, int]:
        """Decoder layers whose rows pick keys by a separate index (DSA), and how many keys they pick.

        Up to that many columns they pick all keys, so the index is not needed. Longer prompts are not served.
        """
        return {}

    @functools.cached_property
    def longest(self) -> float:
        """Columns of the longest prompt from which tokens may be dropped.

        From there on layers scale rows by the number of rows before them, which dropping would change.
        """
        scaling = [part for part in self.attentions if part is not None and numbers_rows(part)]
        return min([getattr(part, "floor_scale", 1) - 1 for part in scaling], default=math.inf)

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """Turn the merger's result into (modality, mask) pairs. Masks are (samples, tokens, …) bool.

        Args:
            placeholders: The merger's return value: one mask, or one for images and one for videos.
            inputs: The arguments of its call and of the core's call. A modality without features is left out.
        """
        masks = placeholders if isinstance(placeholders, tuple) else (placeholders,)
        pairs = []
        for modality, mask in zip(("image", "video"), masks, strict=False):
            if inputs.get(f"{modality}_features") is not None:
                pairs.append((modality, mask))
        return pairs

    def has_pixels(self, modality: str, inputs: Inputs) -> bool:
        """True if the core's call has pixels of a modality, or features made from them."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        pixels = [name for name in inputs if "pixel_values" in name and ("video" in name) == (modality == "video")]
        return encoded.get(modality) is not None or any(inputs[name] is not None for name in pixels)

    def placeholder(self, modality: str) -> int | None:
        """The id of a modality's placeholders in the prompt."""
        return getattr(self.model.config, f"{modality}_token_id", None)

    def masks_by_ids(self, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """The masks of `vision_masks` for a core without a merger, from the ids in the arguments of its call."""
        raise NotImplementedError

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """For `tiled` families: the number of vision tokens in each image of each sample, read from the prompt.

        Args:
            mask: True at vision tokens, (samples, columns) bool.
            ids: The prompt's ids, (samples, columns). None if the prompt came as embeddings.
            pieces: Number of tokens in each piece of the features. Empty before there are any.
        """
        raise NotImplementedError

    def later_additions(self, inputs: Inputs) -> list[Tensor] | None:
        """The features that the decoder adds to vision tokens after its first layers, from its forward's arguments.

        A list with one entry per layer, (all vision tokens of the batch in order, width). The engine may write into it:
        rows that now stand for other tokens get those tokens' additions. None if there are none.
        """
        return None

    def add_at(self, patches: Patcher, columns: Tensor) -> None:
        """Make the decoder add to vision tokens at these places, (tokens,) int64, without a mask.

        Places count the columns of all samples in order.
        """

        def add(original: Callable[..., Tensor], hidden: Tensor, mask: Tensor, features: Tensor) -> Tensor:
            rows = hidden.flatten(0, 1)
            added = rows.index_select(0, columns) + features.to(rows.dtype)
            return rows.index_copy(0, columns, added).view_as(hidden)

        if hasattr(self.text, "_deepstack_process"):
            patches.wrap(self.text, "_deepstack_process", add)

    @property
    def is_usual(self) -> bool:
        """True if the decoder's layers make queries and keys in the usual way."""
        return self.text.config.model_type in self.decoders

    def queries_and_keys(
        self, layer: Any, hidden: Tensor, queries: Tensor, rotary: Any, others: Mapping[str, Any] | None = None
    ) -> Tapped:
        """Compute the queries and keys of a decoder layer's attention from its input, without running the layer.

        Args:
            layer: The decoder layer.
            hidden: Its input, (samples, rows, width), before the input norm.
            queries: Rows whose queries are needed, (samples, …) int64.
            rotary: (cos, sin) of all rows, (samples, rows, head size) each. M-RoPE's axes come first if layers combine
                them.
            others: Other arguments of the layer, at these rows. None: no others.

        Returns:
            Queries (samples, heads, …, head size), keys of all rows (samples, key heads, rows, head size), both after
            norms and RoPE, and the scaling of their product.

        Raises:
            UnsupportedError: If the layer's attention has an unknown structure.
        """
        attention = layer.self_attn
        if not self.is_usual:
            return queries_and_keys_of(layer, hidden, queries, {"position_embeddings": rotary, **(others or {})})
        normed = layer.input_layernorm(hidden)

        def heads(rows: Tensor, projection: Any, norm: Any, cos: Tensor, sin: Tensor) -> Tensor:
            """(samples, rows, width) -> (samples, heads, rows, head size), after norm and RoPE."""
            states = projection(rows).unflatten(-1, (-1, attention.head_dim))
            if norm is not None:
                states = norm(states)
            states = states.transpose(1, 2)
            return self.rotate(layer, states, (cos, sin))

        q_norm = getattr(attention, "q_norm", None)
        k_norm = getattr(attention, "k_norm", None)
        places = queries[..., None]  # (samples, …, 1)
        axes = (1,) * (rotary[0].dim() - places.dim())  # M-RoPE's
        in_tables = places.view(*axes, *places.shape)
        tables = (take_along(table, in_tables, dim=-2) for table in rotary)
        query = self.query_projection(attention)
        asking = heads(take_along(normed, places, dim=1), query, q_norm, *tables)
        keys = heads(normed, attention.k_proj, k_norm, *rotary)
        return Tapped(asking, keys, float(attention.scaling))

    def rotate(self, layer: Any, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Apply RoPE as a decoder layer applies it to queries and to keys.

        Args:
            layer: The decoder layer.
            states: (samples, heads, rows, head size).
            rotary: (cos, sin) of these rows, as in `queries_and_keys`.

        Raises:
            UnsupportedError: If the layer's attention has an unknown structure, in which RoPE may be missing.
        """
        rotate = rotation(layer.self_attn)
        if rotate is None or not self.is_usual:
            raise UnsupportedError(
                f"foveate does not know how {type(layer.self_attn).__name__} applies RoPE, so it cannot read "
                "Attention(without_distance=True). Use a method that does not read it, such as SparseVLM."
            )
        turned: Tensor = rotate(states, states[:, :1], *rotary)[0]
        return turned

    def query_projection(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """The function that makes queries before norm and RoPE.

        (samples, rows, width) -> (samples, rows, heads · head size).
        """
        projection: nn.Module = attention.q_proj
        return projection

    def softcap(self, layer: Any) -> float | None:
        """The bound of a decoder layer's attention logits, as in Gemma 2. None if there is none."""
        return getattr(attention_of(layer), "attn_logit_softcapping", None)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """Run a `get_*_features` call and reduce every image's tokens. The number of placeholders does not change.

        The default works after the projector, if `token_means` provides the tower's values of a token.

        Args:
            run: Calls the original. Arguments passed to it replace the original ones.
            modality: "image" or "video".
            inputs: The call's arguments by name.
            reducer: Reduces the tokens.

        Returns:
            The original's return value, with each image's remaining rows in the first places of its features; and a cut
            (or None) for each image.

        Raises:
            UnsupportedError: If the family cannot reduce tokens there.
        """
        if not self.defines("token_means"):
            raise UnsupportedError(
                f"foveate cannot reduce tokens in or after the vision tower of {self.model_type!r} ({modality}). "
                "Use a method that drops between decoder layers."
            )
        taps = self.tower_parts(modality, run, inputs).taps(reducer.reads)
        output = taps.run(run)

        @functools.cache
        def stats(signal: TowerSignal) -> tuple[Tensor, ...]:
            means = self.token_means(taps, signal, modality, inputs)
            if not isinstance(means, Tensor):
                means = torch.cat([*means])
            sizes = reducer.lengths(len(means)) if self.tiled else lengths_of(output.pooler_output)
            return torch.split(means, list(sizes))

        return output, self.reduce_features(output, modality, inputs, reducer, stats)

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterable[Tensor] | Tensor:
        """Means of a signal over the patches of each token, (tokens, numbers) float32, in the order of the features.

        Either all together, or image by image.

        Args:
            taps: What the tower's attentions showed.
            signal: The signal to read.
            modality: "image" or "video".
            inputs: The arguments of the `get_*_features` call.
        """
        raise NotImplementedError

    def encode_projected(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As `encode`, after the projector in every family. The tower's attention and keys are not read."""
        output = run()
        return output, self.reduce_features(output, modality, inputs, reducer)

    def reduce_features(
        self, output: Any, modality: str, inputs: Inputs, reducer: ImageReducer, stats: Stats | None = None
    ) -> list[Cut | None]:
        """Reduce every image's tokens in the result of a `get_*_features` call. Returns a cut (or None) for each image.

        Args:
            output: The result; its features are replaced.
            modality: "image" or "video".
            inputs: The call's arguments by name.
            reducer: Reduces the tokens.
            stats: Scores and keys of each image's tokens. None if no method reads them.
        """
        features = images_of(output, reducer.lengths if self.tiled else None)
        pictures = self.pictures(self.model.config, modality, inputs, lengths_of(features))
        cuts = reduce_apart(features, pictures, reducer, stats, partial(self.view_extras, output))
        self.place(output, features, cuts)
        return cuts

    def place(self, output: Any, images: Sequence[Tensor], cuts: Sequence[Cut | None]) -> None:
        """Write the rows that cuts leave of images, (tokens, width) each, into a `get_*_features` result."""
        put_images(output, [place_rows(image, cut) for image, cut in zip(images, cuts, strict=True)])
        later = getattr(output, "deepstack_features", None)
        if later and not all(map(stays_whole, cuts)):
            lengths = [len(image) for image in images]
            output.deepstack_features = [move_additions(pieces, lengths, cuts) for pieces in later]

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As `encode`, with smaller images given to the tower, of the token grids that `reducer.coarsen` returns."""
        raise UnsupportedError(
            f"foveate cannot give smaller images to the tower of {self.model_type!r} ({modality}). "
            "Use AveragePool, which averages the tower's tokens instead."
        )

    def encode_subset(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As `encode`, with a tower that runs only on the patches of the tokens that `reducer.leave` keeps.

        By default all rows are restored after its last block, so that the projector gets whole images.
        """
        return encode_leaving(self, run, modality, inputs, reducer)

    def tower_pixels(self, modality: str, inputs: Inputs, reducer: ImageReducer) -> Sequence[Tensor]:
        """The tower's input for each image or video, (images, channels, height, width) without padding."""
        pixels: Tensor = inputs[pixels_name(inputs)]
        return list(pixels if pixels.dim() == 5 else pixels[:, None])

    def tokens_left(self, modality: str, stays: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """Mark the tokens of all images that are left, (tokens,) bool, newlines and the like excluded.

        Args:
            modality: "image" or "video".
            stays: Which units of each image or video stay, (images, rows, columns) bool each.
            inputs: The arguments of the `get_*_features` call.
        """
        return torch.cat([of_image.flatten() for of_image in stays])

    @property
    def towers(self) -> list[Any]:
        """The modules that get pixels: one, or several if videos or larger images have their own. Empty if unknown."""
        towers: list[Any] = []
        for name in TOWERS:
            tower = getattr(self.core, name, None)
            if isinstance(tower, nn.Module) and tower not in towers:  # some have two names
                towers.append(tower)
        return towers

    @property
    def tower(self) -> Any:
        """The first of `towers`, which is for images. None if there is none."""
        return next(iter(self.towers), None)

    def patch_tower(self, patches: Patcher) -> None:
        """Patch the tower while a context is open: fewer host syncs, and the same results, bit for bit."""

    def replay_tower(self, patches: Patcher, replay: Callable[..., Any]) -> None:
        """Route each tower's forward through `replay(tower, original, *args, **kwargs)`, inside `patch_tower`.

        A tower that reads arguments on the host passes these as `on_host=`, and the tensors that it makes from them as
        `held=`.
        """
        for tower in self.towers:
            patches.wrap(tower, "forward", partial(replay, tower))

    @property
    def seeing_blocks(self) -> Sequence[int] | None:
        """Blocks of the tower that attend to the whole image. None: all."""
        return None

    def tower_parts(self, modality: str, run: Run, inputs: Inputs) -> Tower:
        """The parts of the tower that a `get_*_features` call runs. Arguments as in `encode`.

        Raises:
            UnsupportedError: If its structure is not known.
        """
        tower = self.tower
        if modality == "video":  # some models have a tower for each
            tower = getattr(self.core, "video_tower", tower)
        blocks = encoder_layers(tower, self.tower_blocks)
        attentions = [getattr(block, self.tower_attention) for block in blocks]
        config = self.model.config
        # Deepstack reads earlier blocks too.
        read = [*feature_layers(config, len(blocks)), *getattr(tower, "deepstack_visual_indexes", ())]
        cls = bool(self.cls_in_tower(config))
        of_class = self.seeing_blocks, cls, self.keys_of, self.parts
        return Tower(tower, blocks, attentions, read, self.tower_layout, *of_class)

    def tower_layout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerLayout:
        """The layout of rows in the tower, from the arguments of its call.

        The default is for images in a batch of pixels, (images, channels, rows, columns).
        """
        pixels, patch = args[0] if args else kwargs["pixel_values"], self.model.config.vision_config.patch_size
        tall, wide = (patch, patch) if isinstance(patch, int) else patch
        return TowerLayout(None, [(pixels.shape[-2] // tall, pixels.shape[-1] // wide)])

    def view_extras(self, output: Any, index: int) -> dict[str, Any]:
        """Other values shown of an image, by attributes of `TowerView`. Most families have none."""
        return {}

    def pieces(self, modality: str, inputs: Inputs) -> int:
        """Entries of a `get_*_features` result that form one image or video: its frames, if these come one by one."""
        return 1

    @classmethod
    def fixed_count(cls, config: Any) -> int | None:
        """Number of vision tokens in every image and video, if the config alone determines it. None if it varies."""
        return None

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        """How each image (or video) of a `get_*_features` call becomes vision tokens.

        Args:
            config: The model's config.
            modality: "image" or "video". Not reliable if `inputs` is empty.
            inputs: The call's arguments by name, those of `arguments_kept`. Empty if there are only lengths.
            lengths: Number of vision tokens in each image. 0: unknown.
        """
        return [PictureLayout()] * len(lengths)

    def arguments_kept(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of a `get_*_features` call that `pictures` reads. A trace keeps them, so without pixels."""
        names = [name for name in inputs if not name.startswith("pixel_values")]
        return {name: inputs[name] for name in names}

    @classmethod
    def block(cls, config: Any) -> int:
        """Number of patches along the side of a token. `foveate.cost` counts the tower if a family defines this."""
        raise NotImplementedError(f"{cls.__name__} must define block.")


def outside_lists(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, outer ones first, except those inside lists.

    Layers are many, and none of them is a whole model.
    """
    modules, ahead = [], [model]
    while ahead:
        module = ahead.pop()
        modules.append(module)
        ahead += [child for child in reversed([*module.children()]) if not isinstance(child, nn.ModuleList)]
    return modules


def pixels_name(inputs: Inputs) -> str:
    """The argument of a `get_*_features` call that holds the pixels."""
    return next(name for name in inputs if name.startswith("pixel_values") and inputs[name] is not None)
