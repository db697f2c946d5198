"""What the engine asks of a model family. A family knows where things are; it knows no method."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import getattr_static
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate._transformers import OLDEST, numbers_rows, require, rotation, turns
from foveate.core.cut import Cut
from foveate.core.patching import Patcher
from foveate.core.signals import Cells, Signal, TowerAttention, TowerSignal
from foveate.core.tensors import take_along
from foveate.errors import UnsupportedError
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import images_of, lengths_of, move_additions, place_rows, put_images, stays_whole
from foveate.families.tap import attention_of, queries_and_keys_of
from foveate.families.thinning import encode_leaving
from foveate.families.tower import (
    Encoded,
    Grids,
    Inputs,
    KeysOf,
    Reducer,
    Run,
    Taps,
    Tower,
    TowerLayout,
    encoder_layers,
    feature_layers,
)
from foveate.families.vision import boxes_on


class Family:
    """Where things are inside a vision-language model of transformers.

    The defaults fit a model whose core module has a `language_model` with `layers`, a
    `get_placeholder_mask` and `get_image_features` / `get_video_features`; a family overrides what differs.

    Attributes:
        model_type: The `config.model_type` this family serves.
        title: What people call its models; empty until a family says so.
        oldest: The first version of transformers whose model it knows.
        fit: How the usual processor brings a picture to the model: "whole" (resized), or "crop" (the
            centre square is cut out).
        renumbers: Whether positions are one running number, so that rows may be numbered anew (not with M-RoPE).
        shares_prefix: Whether what stands before a question is computed without seeing the question, so that many
            questions about one picture may share its prefill. False where the whole prompt is seen both ways, and until
            a family says that it is not.
        grows: Whether a picture has the same rows over a cache as in a whole prompt, where `shares_prefix` is true.
        closing_tokens: Tokens behind a picture from which it is known where it ends, so that they belong to it.
        decoder: The core's name for the decoder.
        mergers: Names of the core's function that is asked where the vision tokens are (see `vision_masks`), the first
            that it has; without any, ids tell (see `masks_by_ids`).
        videos: Whether the model knows videos.
        projects_frames: Whether the projector runs otherwise on a video's frames than on pictures (see `frames_of`).
        tiled: Whether features come in other pieces than images, tiles for example; then the prompt tells which are
            whose (see `image_lengths`).
        runs_grids: Whether the tower runs on the token grids of images, so that these tell what it costs.
        tower_blocks: Where the tower keeps its blocks.
        tower_attention: What these call their attention.
        keys_of: In a tower with RoPE, what makes keys in an attention.
        needs_all_rows: Why blocks of the tower cannot run on some of its rows, as the end of a sentence; None: they can
            (see `tower_parts`).
        pixel_mean, pixel_std: What the processor subtracts from each channel of pixels in [0, 1], and divides them by
            then.
        gathers: Whether layers may get more than the usual arguments, which are known by their shapes.
        core: The module that merges vision features into the text.
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
    decoder: ClassVar[str] = "language_model"
    mergers: ClassVar[tuple[str, ...]] = ("get_placeholder_mask",)
    videos: ClassVar[bool] = False
    projects_frames: ClassVar[bool] = False
    tiled: ClassVar[bool] = False
    runs_grids: ClassVar[bool] = True
    gathers: bool = False
    tower_blocks: ClassVar[str] = "encoder.layers"
    tower_attention: ClassVar[str] = "self_attn"
    keys_of: ClassVar[KeysOf | None] = None
    needs_all_rows: ClassVar[str | None] = "nobody has said how its blocks would run on some of them"
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)

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
        """Name of the core's function that is asked where the vision tokens are; None where ids alone tell."""
        return next((name for name in self.mergers if hasattr(self.core, name)), None)

    @property
    def text(self) -> Any:
        """The decoder: takes `inputs_embeds`, runs `layers`."""
        return getattr(self.core, self.decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers in order; each takes hidden states and one `position_embeddings` pair (cos, sin)."""
        layers: nn.ModuleList = self.text.layers
        return layers

    def final_norm(self, rows: Tensor) -> Tensor:
        """Rows of the residual stream, (…, rows, width), through the norm behind the decoder's last layer."""
        normed: Tensor = self.text.norm(rows)
        return normed.to(rows.device)

    def rotary_type(self, layer: int) -> str | None:
        """Which of the decoder's RoPEs a layer uses, as `text.rotary_emb` names it; None where all use the same."""
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
        """The radians by which one position turns each pair of numbers in a decoder layer, (pairs,), 0 for pairs that
        are left alone; in a layer without RoPE those of the next with it, None where there is none."""
        rotary = getattr(self.text, "rotary_emb", None)
        for index in range(layer, 0 if rotary is None else len(self.layers)):
            kind = self.rotary_type(index)
            radians: Tensor | None = getattr(rotary, "inv_freq" if kind is None else f"{kind}_inv_freq", None)
            if radians is not None and index not in self.recurrent and turns(attention_of(self.layers[index])):
                return radians
        return None

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        """Whether the vision tower has a CLS, whose row of the tower's attention can be read.

        Args:
            config: The model's config. Without one the answer is None where models of the family differ.
        """
        return False

    @property
    def tower_cls(self) -> bool:
        """Whether this model's vision tower has a CLS."""
        return bool(self.cls_in_tower(self.model.config))

    @classmethod
    def defines(cls, name: str) -> bool:
        """Whether this family has something of its own under a name, or one that it descends from."""
        return getattr_static(cls, name) is not getattr_static(Family, name)

    @classmethod
    def lacking(cls, signal: Signal, tower_cls: bool) -> str | None:
        """Why a stage cannot read this signal of a model whose tower has a CLS or has none; None if it can."""
        if isinstance(signal, Cells) and not (cls.defines("boxes") or cls.defines("token_grids")):
            return f"the places of the vision tokens of {cls.model_type!r} are not known"
        if not isinstance(signal, TowerAttention) or signal.by == "patches" or tower_cls:
            return None
        return f"the vision tower of {cls.model_type!r} has no CLS"

    def lacks(self, signal: Signal) -> str | None:
        """Why a stage cannot read this signal of this model; None if it can."""
        return self.lacking(signal, self.tower_cls)

    @property
    def recurrent(self) -> frozenset[int]:
        """Decoder layers that carry a state from token to token, and cache it in the place of keys and values.

        They get a mask of padding, (samples, columns), and no attention can be read there.
        """
        return frozenset()

    @functools.cached_property
    def attentions(self) -> list[Any]:
        """What attends in each decoder layer; None where nothing does."""
        return [attention_of(layer) for layer in self.layers]

    @functools.cached_property
    def lenders(self) -> dict[int, int]:
        """Decoder layers that attend to keys and values of an earlier layer, and which (Gemma 3n, Gemma 4 E2B)."""
        lenders: dict[int, int] = {}
        own: dict[Any, int] = {}  # the last layer of each type that makes its own
        for index, attention in enumerate(self.attentions):
            kind = getattr(attention, "layer_type", None)
            if getattr(attention, "is_kv_shared_layer", False):
                lenders[index] = own[kind]
            else:
                own[kind] = index
        return lenders

    @functools.cached_property
    def indexed(self) -> dict[int, int]:
        """Decoder layers whose rows pick keys by an index beside these (DSA), and how many: up to there they pick all,
        so that no index is needed. Others are not served."""
        return {}

    @functools.cached_property
    def longest(self) -> float:
        """Columns of the longest prompt that may be dropped from: from there on layers scale rows by how many come
        before them, which dropping changes."""
        scaling = [part for part in self.attentions if part is not None and numbers_rows(part)]
        return min([getattr(part, "floor_scale", 1) - 1 for part in scaling], default=math.inf)

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """What the merger answered, as (modality, mask) pairs; masks are (samples, tokens, …) bool.

        Args:
            placeholders: Its return value: one mask, or one for images and one for videos.
            inputs: The arguments of its call and of the core's. A modality without features is left out.
        """
        masks = placeholders if isinstance(placeholders, tuple) else (placeholders,)
        pairs = []
        for modality, mask in zip(("image", "video"), masks, strict=False):
            if inputs.get(f"{modality}_features") is not None:
                pairs.append((modality, mask))
        return pairs

    def has_pixels(self, modality: str, inputs: Inputs) -> bool:
        """Whether the core's call has pixels of a modality, or what was made of them."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        pixels = [name for name in inputs if "pixel_values" in name and ("video" in name) == (modality == "video")]
        return encoded.get(modality) is not None or any(inputs[name] is not None for name in pixels)

    def placeholder(self, modality: str) -> int | None:
        """The id of the prompt's placeholders of a modality."""
        return getattr(self.model.config, f"{modality}_token_id", None)

    def masks_by_ids(self, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """As `vision_masks`, of a core without a merger, from the ids among the arguments of its call."""
        raise NotImplementedError

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """Vision tokens of each image of each sample, in order, read off the prompt: for `tiled` families.

        Args:
            mask: Where the vision tokens are, (samples, columns) bool.
            ids: The prompt's ids, (samples, columns); None where it came as embeddings.
            pieces: Tokens of each piece in which the features came; none before there are any.
        """
        raise NotImplementedError

    def later_additions(self, inputs: Inputs) -> list[Tensor] | None:
        """What the decoder adds to vision tokens behind its first layers, from its forward's arguments.

        A list, an entry a layer, (all vision tokens of the batch in order, width), which the engine may write into:
        where rows stand for other tokens than their places did, they get those tokens' additions. None if there is
        none.
        """
        return None

    def add_at(self, patches: Patcher, columns: Tensor) -> None:
        """Let the decoder add to vision tokens at these places, (tokens,) int64, and not look for them.

        Places count the columns of all samples, one sample behind the other.
        """

        def add(original: Callable[..., Tensor], hidden: Tensor, mask: Tensor, features: Tensor) -> Tensor:
            rows = hidden.flatten(0, 1)
            added = rows.index_select(0, columns) + features.to(rows.dtype)
            return rows.index_copy(0, columns, added).view_as(hidden)

        if hasattr(self.text, "_deepstack_process"):
            patches.wrap(self.text, "_deepstack_process", add)

    @property
    def is_usual(self) -> bool:
        """Whether the decoder's layers make queries and keys in the usual way."""
        return self.text.config.model_type in self.decoders

    def queries_and_keys(
        self, layer: Any, hidden: Tensor, queries: Tensor, rotary: Any, others: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor, float]:
        """What a decoder layer's attention would compute for some rows of its input, without running the layer.

        Args:
            layer: The decoder layer.
            hidden: Its input, (samples, rows, width), before the input norm.
            queries: Rows whose queries are wanted, (samples, …) int64.
            rotary: (cos, sin) of all rows, (samples, rows, head size) each; with M-RoPE's axes first where layers
                combine them.
            others: What else the layer gets, at these rows; None: nothing.

        Returns:
            Queries (samples, heads, …, head size), keys of all rows (samples, key heads, rows, head size), both after
            norms and RoPE, and the scaling of their product.

        Raises:
            UnsupportedError: If the layer's attention is built in a way this does not know.
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
        return asking, keys, float(attention.scaling)

    def rotate(self, layer: Any, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """RoPE as a decoder layer applies it to queries and to keys.

        Args:
            layer: The decoder layer.
            states: (samples, heads, rows, head size).
            rotary: (cos, sin) of these rows, as in `queries_and_keys`.

        Raises:
            UnsupportedError: If the layer's attention is built in a way this does not know: it may leave RoPE out.
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
        """What makes queries before norm and RoPE.

        (samples, rows, width) -> (samples, rows, heads · head size).
        """
        projection: nn.Module = attention.q_proj
        return projection

    def softcap(self, layer: Any) -> float | None:
        """What a decoder layer keeps its attention logits below, as Gemma 2 does; None where it does not."""
        return getattr(attention_of(layer), "attn_logit_softcapping", None)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Run a `get_*_features` call with every image's tokens reduced; placeholders stay whole.

        The default works behind the projector where `token_means` says what the tower shows of a token.

        Args:
            run: Calls the original, with the arguments passed to it in the place of its own.
            modality: "image" or "video".
            inputs: The call's arguments by name.
            reducer: What reduces.

        Returns:
            What the original returns, each image's rows in the first places of its features; and a cut (or None) an
            image.

        Raises:
            UnsupportedError: If the family has no such stage.
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
        """Means of what a signal is of the patches of each token, (tokens, numbers) float32, in the order of the
        features; all together, or of one picture after the other.

        Args:
            taps: What the tower attended with.
            signal: What is read.
            modality: "image" or "video".
            inputs: The arguments of the `get_*_features` call.
        """
        raise NotImplementedError

    def encode_projected(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """As `encode`, behind the projector in every family; the tower's attention and keys are not read."""
        output = run()
        return output, self.reduce_features(output, modality, inputs, reducer)

    def reduce_features(
        self, output: Any, modality: str, inputs: Inputs, reducer: Reducer, stats: Stats | None = None
    ) -> list[Cut | None]:
        """Reduce every image's tokens in what a `get_*_features` call answered: a cut (or None) an image.

        Args:
            output: Its features are replaced.
            modality: "image" or "video".
            inputs: The call's arguments by name.
            reducer: What reduces.
            stats: Scores and keys of each image's tokens; None if no method reads them.
        """
        features = images_of(output, reducer.lengths if self.tiled else None)
        sizes = [len(image) for image in features]
        places: Sequence[Tensor | None] = [None] * len(sizes)
        grids = self.token_grids(self.model.config, modality, inputs, sizes)
        # Where the grids hold all tokens, there are no newlines, and no boxes are needed to find them.
        if grids is None or [sum(map(math.prod, frames)) for frames in grids] != sizes:
            places = self.boxes(self.model.config, modality, self.arguments_kept(inputs), sizes)
        cuts = reduce_apart(features, places, reducer, stats, grids, partial(self.view_extras, output))
        self.place(output, features, cuts)
        return cuts

    def place(self, output: Any, images: Sequence[Tensor], cuts: Sequence[Cut | None]) -> None:
        """Put what cuts leave of images' features, (tokens, width) each, into what a `get_*_features` call answered."""
        put_images(output, [place_rows(image, cut) for image, cut in zip(images, cuts, strict=True)])
        later = getattr(output, "deepstack_features", None)
        if later and not all(map(stays_whole, cuts)):
            lengths = [len(image) for image in images]
            output.deepstack_features = [move_additions(pieces, lengths, cuts) for pieces in later]

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """As `encode`, with smaller images given to the tower: as large as the token grids `reducer.coarsen` wants."""
        raise UnsupportedError(
            f"foveate cannot give smaller images to the tower of {self.model_type!r} ({modality}). "
            "Use AveragePool, which averages the tower's tokens instead."
        )

    def encode_subset(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """As `encode`, of a tower that runs on the patches of the tokens alone that `reducer.leave` lets stay.

        The default: behind its last block all rows are there again, so that what follows finds whole pictures.
        """
        return encode_leaving(self, run, modality, inputs, reducer)

    def pictures(self, modality: str, inputs: Inputs, reducer: Reducer) -> Sequence[Tensor]:
        """What the tower is given of each image or video, (pictures, channels, height, width) without padding."""
        pixels: Tensor = inputs[pixels_name(inputs)]
        return list(pixels if pixels.dim() == 5 else pixels[:, None])

    def tokens_left(self, modality: str, stays: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """Which tokens of all images are left, newlines and the like apart, (tokens,) bool, where these units of their
        pictures stay, (pictures, rows, columns) bool each."""
        return torch.cat([of_image.flatten() for of_image in stays])

    def patch_tower(self, patches: Patcher) -> None:
        """Put on the tower, while a context is open, what makes it wait less for the device with the same bits."""

    @property
    def tower(self) -> Any:
        """The vision tower; None where the core has none of the usual names."""
        names = ("visual", "vision_tower", "vision_model")
        return next((getattr(self.core, name) for name in names if hasattr(self.core, name)), None)

    def replay_tower(self, patches: Patcher, run: Callable[..., Any]) -> None:
        """Let the tower's forward go through `run(original, *args, **kwargs)`; one that reads arguments on the host
        hands these over as `on_host=`, and what it makes of them as `held=`."""
        if self.tower is not None:
            patches.wrap(self.tower, "forward", run)

    @property
    def seeing_blocks(self) -> Sequence[int] | None:
        """Blocks of the tower that look at the whole picture; None: all."""
        return None

    def tower_parts(self, modality: str, run: Run, inputs: Inputs) -> Tower:
        """The tower that a `get_*_features` call runs, in parts; arguments as in `encode`.

        Raises:
            UnsupportedError: If it is not known how it is built.
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
        return Tower(tower, blocks, attentions, read, self.tower_layout, self.seeing_blocks, cls, self.keys_of)

    def tower_layout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerLayout:
        """How rows stand in the tower, from the arguments of its call. The default: pictures in a batch of pixels,
        (pictures, channels, rows, columns)."""
        pixels, patch = args[0] if args else kwargs["pixel_values"], self.model.config.vision_config.patch_size
        tall, wide = (patch, patch) if isinstance(patch, int) else patch
        return TowerLayout(None, [(pixels.shape[-2] // tall, pixels.shape[-1] // wide)])

    def view_extras(self, output: Any, index: int) -> dict[str, Any]:
        """What else is shown of an image, by attributes of `TowerView`; most families have nothing."""
        return {}

    def pieces(self, modality: str, inputs: Inputs) -> int:
        """How many entries of a `get_*_features` call's answer are one image or video: as many as it has frames, where
        these come one by one."""
        return 1

    @classmethod
    def always_kept(cls, config: Any, size: int) -> Sequence[int]:
        """Ordinals of the tokens that always stay, as they are no patches, in an image or video of `size` tokens.

        They are not ranked, and a method's counts are without them.
        """
        return ()

    @classmethod
    def fixed_tokens(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Sequence[int]]:
        """What `always_kept` says of each image of a `get_*_features` call; arguments as in `boxes`."""
        return [cls.always_kept(config, length) for length in lengths]

    @classmethod
    def fixed_count(cls, config: Any) -> int | None:
        """Vision tokens of every image and video, where the config alone says them; None where they differ."""
        return None

    @classmethod
    def token_grids(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> Grids | None:
        """The grids that tokens stand in, of every image (or video); arguments as in `boxes`, of which `inputs` may be
        empty. None where neither the config nor the arguments tell."""
        return None

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        """Where each vision token looks, for every image (or video) of a `get_*_features` call.

        Args:
            config: The model's config.
            modality: "image" or "video".
            inputs: The call's arguments by name, as far as `arguments_kept`.
            lengths: Vision tokens of each image.

        Returns:
            For each image (tokens, 4) float32: x0, y0, x1, y1 in [0, 1] of the picture as the processor cut
            it, NaN for a token without a place; None where the family cannot tell. The default: the cells of
            `token_grids`.
        """
        grids = cls.token_grids(config, modality, inputs, lengths)
        if grids is None:
            return [None] * len(lengths)
        return [boxes_on(frames) for frames in grids]

    def arguments_kept(self, inputs: Inputs) -> dict[str, Any]:
        """The arguments of a `get_*_features` call that `boxes` reads. A trace keeps them, so pixels are left out."""
        names = [name for name in inputs if not name.startswith("pixel_values")]
        return {name: inputs[name] for name in names}

    @classmethod
    def tower_images(cls, config: Any, modality: str, inputs: Inputs) -> tuple[int, ...] | None:
        """What `foveate.cost` asks for under this name, read off a processor's output.

        Args:
            config: The model's config.
            modality: "image" or "video".
            inputs: What goes into the model, by name.

        Returns:
            Pictures the tower encodes for each image (or video); None where the token counts say it.
        """
        return None

    @classmethod
    def block(cls, config: Any) -> int:
        """Patches along the side of a token, in a tower of pictures of one size."""
        raise NotImplementedError(f"{cls.__name__} must define block.")

    @classmethod
    def pictures_of(cls, config: Any, size: int) -> int:
        """How many pictures the tower encodes to make `size` vision tokens, where `tower_images` is not given.

        A family that defines it has its tower counted by `foveate.cost`.

        Raises:
            SettingError: If that cannot be told from the size, or no pictures make so many.
        """
        return 1

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        """Frames of a video of `size` vision tokens, where `projects_frames`; 0 if none has so many."""
        return 0


def outside_lists(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, outer ones first, without those in lists: layers are many, and none is a whole model."""
    modules, ahead = [], [model]
    while ahead:
        module = ahead.pop()
        modules.append(module)
        ahead += [child for child in reversed([*module.children()]) if not isinstance(child, nn.ModuleList)]
    return modules


def pixels_name(inputs: Inputs) -> str:
    """The argument of a `get_*_features` call that pictures are given in."""
    return next(name for name in inputs if name.startswith("pixel_values") and inputs[name] is not None)
