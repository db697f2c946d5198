"""The Qwen-VLs (2, 2.5, 3, 3.5, and with experts): any image size, 2 x 2 patches merged into one token, M-RoPE.

Also GLM-4.1V, 4.5V and 4.6V, which have the same structure; a video is many images with time stamps in between.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate._transformers import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)
from foveate.core.grid import Grid
from foveate.core.patching import Patcher
from foveate.core.signals import TowerSignal
from foveate.core.tensors import send
from foveate.core.thin import ends_of_left
from foveate.core.views import PixelView
from foveate.errors import UnsupportedError
from foveate.families.base import Family, pixels_name
from foveate.families.placing import first_rows, replace_images
from foveate.families.tap import attend_at_once, segments_of
from foveate.families.thinning import is_compiled, units_left
from foveate.families.tower import Encoded, ImageReducer, Inputs, KeysOf, Run, Taps, TowerLayout, coarser_grids
from foveate.families.vision import CLIP, PictureLayout, smaller

PRECOMPUTED = {
    "cu_seqlens", "cu_window_seqlens", "interp_indices", "interp_weights", "max_seqlen", "max_window_seqlen",
    "position_ids", "window_index",
}  # fmt: skip
"""Arguments of the tower that depend only on the grids. Users may pass them, under these names prefixed by `image_`."""


def _keys_of(attention: Any, output: Tensor) -> list[Tensor]:
    """Keys before RoPE of all patches, as one sample: (heads, patches, head size).

    Made from (patches, 3 · width): queries, keys and values side by side, each (heads, head size).
    """
    heads = output.reshape(len(output), 3, attention.num_heads, -1)[:, 1]
    return [heads.transpose(0, 1)]


class Qwen2VL(Family):
    """The structure of `Qwen2VLForConditionalGeneration`.

    The layers get one (cos, sin) pair in which M-RoPE's three axes are already combined, so positions need nothing
    special. `rope_deltas` remain those of the unpruned prompt.
    """

    model_type: ClassVar[str] = "qwen2_vl"
    title: ClassVar[str] = "Qwen2-VL"
    videos: ClassVar[bool] = True
    renumbers: bool = False
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_vl_text"})
    shares_prefix: ClassVar[bool] = True
    tower_blocks: ClassVar[str] = "blocks"
    tower_attention: ClassVar[str] = "attn"
    keys_of: ClassVar[KeysOf | None] = ("qkv", _keys_of)
    needs_all_rows: ClassVar[str | None] = None
    pixel_mean, pixel_std = CLIP
    _replay: Callable[..., Any] | None = None

    @classmethod
    def block(cls, config: Any) -> int:
        return int(config.vision_config.spatial_merge_size)

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        """As in the base class. An image to the tower is a temporal patch, whose patches attend to one another."""
        grids, side = inputs.get(f"{modality}_grid_thw"), cls.block(config)
        if grids is None:
            return [PictureLayout(images=1)] * len(lengths)
        return [PictureLayout(((height // side, width // side),) * times) for times, height, width in grids.tolist()]

    # -- the tower ---------------------------------------------------------------------------------------------

    def token_order(self, grids: Tensor) -> Any:
        """Index that sorts the blocks' tokens into the order of the features. `grids` is (images, 3)."""
        return slice(None)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        name = f"{modality}_grid_thw"
        grids = {name: inputs[name].cpu()}  # copy before work is queued, so that the host does not wait
        if "forward" in vars(self.core.visual):  # `_run_tower` wraps it, and takes grids on the host
            run = partial(run, **grids)
        return super().encode(run, modality, {**inputs, **grids}, reducer)

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Tensor:
        """As in the base class. A token's patches are adjacent. The attention runs once for each sequence."""
        patches = torch.cat(taps.read(signal))
        group: int = self.core.visual.spatial_merge_size**2
        means = patches.view(len(patches) // group, group, -1).mean(dim=1)
        ordered: Tensor = means[self.token_order(inputs[f"{modality}_grid_thw"])]
        return ordered

    encode_projected = encode  # the tower can be read there too

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The patches are joined to images, resized to whole tokens and split again."""
        config, name, grid_name = self.model.config, pixels_name(inputs), f"{modality}_grid_thw"
        vision, grids = config.vision_config, inputs[grid_name].cpu()
        usual = self.pictures(config, modality, {grid_name: grids}, ())
        coarse, cuts = coarser_grids(reducer, [picture.grids or () for picture in usual])
        pictures = list(inputs[name].split(grids.prod(-1).tolist()))
        small_grids = grids.clone()
        for index, (cells, cut) in enumerate(zip(coarse, cuts, strict=True)):
            if cut is not None:  # every temporal patch is a grid of tokens, and all get the same size
                pictures[index] = _resize(pictures[index], grids[index].tolist(), cells[0], vision)
                small_grids[index, 1:] = torch.tensor(cells[0]) * vision.spatial_merge_size
        output = run(**{name: torch.cat(pictures), grid_name: send(small_grids, inputs[grid_name].device)})
        return output, replace_images(output, cuts)

    # -- the tower on some of the patches ----------------------------------------------------------------------

    def encode_subset(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. Which patches leave depends on the call's pixels before transformers casts them."""
        for name in inputs:
            if name.removeprefix(f"{modality}_") in PRECOMPUTED:
                raise UnsupportedError(
                    f"{name} describes all patches, but some are dropped before the vision tower. Leave it out: the "
                    "model makes it itself."
                )
        grids = inputs[f"{modality}_grid_thw"].cpu()
        views = self.pixel_views(inputs[pixels_name(inputs)], grids)
        cuts = reducer.leave(views)
        if all(cut is None for cut in cuts):
            return run(), cuts
        units = [stays.flatten() for stays in units_left(views, cuts)]
        del views  # frees the float32 pixels before the tower runs
        with Patcher() as patches:
            patches.wrap(self.core.visual, "forward", partial(self._run_subset, units))
            return run(), cuts

    def pixel_views(self, patches: Tensor, grids: Tensor) -> list[PixelView]:
        """The pixels of each image or video.

        Args:
            patches: (patches, pixels), token by token.
            grids: (images, 3): temporal patches, rows and columns of patches.
        """
        side: int = self.core.visual.spatial_merge_size
        # A patch is (channels, frames, rows, columns), and a token is side x side patches. `each`: numbers a channel.
        each = patches.shape[1] // len(self.pixel_mean)
        mean, std = (
            patches.new_tensor(of_channels, dtype=torch.float32).repeat_interleave(each).repeat(side**2)
            for of_channels in (self.pixel_mean, self.pixel_std)
        )
        views = []
        for image, grid in zip(torch.split(patches, grids.prod(-1).tolist()), grids.tolist(), strict=True):
            times, height, width = grid
            units = image.float().reshape(times, height // side, width // side, -1)
            views.append(PixelView(units, mean, std))
        return views

    def _run_subset(
        self, units: Sequence[Tensor], forward: Callable[..., Any], hidden: Tensor, grid_thw: Tensor, **options: Any
    ) -> Any:
        """Run the tower's forward on the patches of some tokens, and append zeros to the rows of each image.

        Args:
            units: Which tokens of each image or video stay, (tokens,) bool on the host.
            forward: The tower's forward.
            hidden: (patches, pixels) of all patches.
            grid_thw: (images, 3), or (frames, 3) if the family gives the tower a video's frames one by one.
            options: Its other arguments.
        """
        grids, stays = grid_thw.cpu(), torch.cat(list(units))
        side: int = self.core.visual.spatial_merge_size
        patches = stays.repeat_interleave(side**2)
        arguments = self._place(self.subset_arguments(grids, patches), hidden.device)
        rows = patches.nonzero()[:, 0].to(hidden.device)
        output = forward(hidden[rows], **arguments, **options)
        left = [int(image.sum()) for image in units]

        def lengthen(features: Tensor) -> Tensor:
            images = zip(torch.split(features, left), units, strict=True)
            return torch.cat([first_rows(of_image, len(image)) for of_image, image in images])

        output.pooler_output = lengthen(output.pooler_output)
        if getattr(output, "deepstack_features", None):
            output.deepstack_features = [lengthen(features) for features in output.deepstack_features]
        return output

    def subset_arguments(self, grids: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """The arguments that the tower would make from the grids, for the patches that stay, by name.

        Args:
            grids: (images, 3), on the host.
            patches: Which patches stay, (patches,) bool.
        """
        of_all = self.tower_arguments(grids)
        ends = of_all["cu_seqlens"]
        frames = grids.repeat_interleave(grids[:, 0], dim=0)  # (segments, 3): one grid for each segment
        some_left = torch.stack([of_frame.any() for of_frame in torch.split(patches, ends.diff().tolist())])
        left = {name: value[patches] for name, value in of_all.items() if len(value) == len(patches)}
        return {"grid_thw": frames[some_left], **left, "cu_seqlens": ends_of_left(ends, patches)}

    # -- the tower without waits -------------------------------------------------------------------------------

    def patch_tower(self, patches: Patcher) -> None:
        if not is_compiled(self.core.visual):
            patches.wrap(self.core.visual, "forward", self._run_tower)

    def replay_tower(self, patches: Patcher, replay: Callable[..., Any]) -> None:
        patches.put(self, "_replay", partial(replay, self.tower))

    def _run_tower(self, forward: Callable[..., Any], hidden_states: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        """Read the grids once, and pass the tower the arguments it would make from them, on the right devices.

        transformers reads where images end in every block. That is 64 host syncs in Qwen2.5-VL's tower; here it is one.
        """
        device = hidden_states.device
        if PRECOMPUTED & options.keys():  # passed by the user: the tower makes the others on the device of its pixels
            grid_thw = send(grid_thw, device)
        else:
            options |= self._place(self.tower_arguments(grid_thw.cpu()), device)
        placed = {"grid_thw": grid_thw, **options}  # each argument on the device where it is read
        ends = []
        if not torch.is_grad_enabled():  # backward may run blocks again after this context has ended
            ends = [value for name, value in options.items() if name.startswith("cu_")]
        segments, embedding_arguments = segments_of(ends, device), self.embedding_arguments(placed, device)
        if not segments and not embedding_arguments and self._replay is None:
            return forward(hidden_states, **placed)

        def embed(original: Callable[..., Tensor], patches: Tensor, _: Tensor, __: Tensor, *others: Any) -> Tensor:
            return original(patches, *embedding_arguments, *others)

        def run(*args: Any, **kwargs: Any) -> Any:
            with Patcher() as patches:
                attend_at_once(patches, [block.attn for block in self.core.visual.blocks], segments)
                if embedding_arguments:
                    patches.wrap(self.core.visual.embeddings, "forward", embed)
                return forward(*args, **kwargs)

        if self._replay is None:
            return run(hidden_states, **placed)
        read = [name for name in placed if name == "grid_thw" or name.startswith("cu_")]
        on_host = {name: placed[name] for name in read if placed[name].device.type == "cpu"}
        others = {name: value for name, value in placed.items() if name not in on_host}
        return self._replay(run, hidden_states, on_host=on_host, held=(segments, embedding_arguments), **others)

    def embedding_arguments(self, placed: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
        """Lengths and grids of images on the device, for the tower's embeddings. Most towers take none."""
        return ()

    def tower_arguments(self, grids: Tensor) -> dict[str, Tensor]:
        """The arguments that the tower makes from the grids, (images, 3), by name, all on the host."""
        visual = self.core.visual
        arguments = {
            "cu_seqlens": get_vision_cu_seqlens(grids),
            "position_ids": get_vision_position_ids(grids, visual.spatial_merge_size),
        }
        if hasattr(visual, "num_grid_per_side"):  # patches also have learned positions
            arguments["interp_indices"], arguments["interp_weights"] = get_vision_interpolation_indices_and_weights(
                grids,
                num_grid_per_side=visual.num_grid_per_side,
                mode=visual.interpolation_mode,
                align_corners=visual.interpolation_align_corners,
                spatial_merge_size=visual.spatial_merge_size,
            )
        return arguments

    def _place(self, arguments: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
        """Arguments of the tower where they are read: indices on the device, ends of segments on the host.

        For a flash kernel the ends are on the device too, and the longest segment's length is added as a number.
        """
        is_flash = "flash" in str(self.core.visual.config._attn_implementation)
        placed: dict[str, Any] = {}
        for name, value in arguments.items():
            is_ends = name.startswith("cu_")
            if is_ends and is_flash:
                placed[name.replace("cu", "max").removesuffix("s")] = int(value.diff().max())
            placed[name] = value if is_ends and not is_flash else send(value, device)
        return placed

    # -- blocks of the tower on some of the rows ---------------------------------------------------------------

    def tower_layout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerLayout:
        """As in the base class. Frames follow one another, and in each the rows are ordered token by token."""
        grids = (args[1] if len(args) > 1 else kwargs["grid_thw"]).cpu()
        pixels = args[0] if args else kwargs["hidden_states"]
        if len(pixels) != int(grids.prod(-1).sum()):  # some patches have left already, in `_run_subset`
            lengths = kwargs["cu_seqlens"].diff().tolist()
            return TowerLayout(lengths, [None] * len(lengths))
        side: int = self.core.visual.spatial_merge_size
        frames: list[Grid] = [(height, width) for times, height, width in grids.tolist() for _ in range(times)]
        raster, start = [], 0
        for height, width in frames:
            places = start + torch.arange(height * width).view(height // side, width // side, side, side)
            # (down, across, side, side) -> (down, side, across, side): patches in raster order
            raster.append(places.transpose(1, 2).flatten())
            start += height * width
        lengths = [height * width for height, width in frames]
        return TowerLayout(lengths, frames, self._rows_of(grids, torch.cat(raster)))

    def _rows_of(self, grids: Tensor, patches: Tensor) -> Tensor:
        """The places in the blocks of patches, given their places in the tower's input."""
        return patches


def _resize(patches: Tensor, grid: tuple[int, int, int], tokens: Grid, vision: Any) -> Tensor:
    """The patches of an image or video, (t · h · w, pixels), after resizing it to `tokens` (rows, columns) a frame.

    Patches are ordered token by token, each a block of `side` x `side` patches of (channels, frames, rows, columns).
    """
    side, patch, frames = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    times, height, width = grid
    # (times, down, across, side, side, channels, frames, patch, patch)
    blocks = patches.view(times, height // side, width // side, side, side, -1, frames, patch, patch)
    # (times, frames, channels, down, side, patch, across, side, patch) -> (times · frames, channels, rows, columns)
    pictures = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    pictures = pictures.reshape(times * frames, -1, height * patch, width * patch)
    # The reverse, with fewer tokens down and across.
    down, across = tokens
    pictures = smaller(pictures, down * side * patch, across * side * patch)
    blocks = pictures.view(times, frames, -1, down, side, patch, across, side, patch)
    blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(-1, patches.shape[1])


class Qwen25VL(Qwen2VL):
    """The structure of `Qwen2_5_VLForConditionalGeneration`, whose tower has window attention in most blocks.

    Inside the tower tokens are ordered window by window. The features are in raster order.
    """

    model_type: ClassVar[str] = "qwen2_5_vl"
    title: ClassVar[str] = "Qwen2.5-VL"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_5_vl_text"})

    @property
    def seeing_blocks(self) -> Sequence[int]:
        """As in the base class. The other blocks have window attention, so a token's attention there is local."""
        visual = self.core.visual
        return [index for index in range(len(visual.blocks)) if index in visual.fullatt_block_indexes]

    def token_order(self, grids: Tensor) -> Tensor:
        visual = self.core.visual
        # index[i] is the token, in raster order, at place i of the windows. Its inverse restores raster order.
        index, _ = get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
        order: Tensor = index.argsort()
        return order

    def _rows_of(self, grids: Tensor, patches: Tensor) -> Tensor:
        """As in the base class. Tokens are ordered window by window."""
        group: int = self.core.visual.spatial_merge_size**2
        tokens: Tensor = self.token_order(grids)[patches // group]
        return tokens * group + patches % group

    def tower_arguments(self, grids: Tensor) -> dict[str, Tensor]:
        visual = self.core.visual
        index, ends = get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
        return super().tower_arguments(grids) | {"window_index": index, "cu_window_seqlens": ends}

    def subset_arguments(self, grids: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """As in the base class. Windows have fewer tokens, and some have none."""
        of_all, group = self.tower_arguments(grids), self.core.visual.spatial_merge_size**2
        index, ends = of_all["window_index"], of_all["cu_window_seqlens"]
        stays = patches[::group]  # (tokens,)
        by_window = stays[index]
        # Number the tokens that stay by rank: of 0 2 1 3 (window by window) 0 2 3 stay, and become 0 1 2.
        ranks = stays.cumsum(0) - 1
        return super().subset_arguments(grids, patches) | {
            "window_index": ranks[index[by_window]],
            "cu_window_seqlens": ends_of_left(ends, by_window.repeat_interleave(group)),
        }


class Qwen3VL(Qwen2VL):
    """The structure of `Qwen3VLForConditionalGeneration`: Qwen2-VL with deepstack.

    Deepstack adds tower features of three depths after the first layers. The model adds them to the full-length stream
    between layers, which the engine keeps at full length. A dropped token gets its addition too, but it is never read.
    """

    model_type: ClassVar[str] = "qwen3_vl"
    title: ClassVar[str] = "Qwen3-VL"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_vl_text"})
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std

    def later_additions(self, inputs: Inputs) -> list[Tensor] | None:
        return inputs.get("deepstack_visual_embeds")

    def view_extras(self, output: Any, index: int) -> dict[str, Any]:
        depths = [features[index] for features in output.deepstack_features]
        return {"deepstack": partial(torch.cat, depths, dim=1)}


class Qwen3VLMoe(Qwen3VL):
    """The structure of `Qwen3VLMoeForConditionalGeneration`. Experts see only the rows that are left."""

    model_type: ClassVar[str] = "qwen3_vl_moe"
    title: ClassVar[str] = "Qwen3-VL with experts"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_vl_moe_text"})


class Qwen35(Qwen2VL):
    """The structure of `Qwen3_5ForConditionalGeneration`: Qwen3-VL without deepstack.

    Most decoder layers carry a state instead of attention. Such a layer (a gated delta net) reads its rows in order. A
    row dropped before it never enters its state, as if the prompt had been shorter there.
    """

    model_type: ClassVar[str] = "qwen3_5"
    title: ClassVar[str] = "Qwen3.5"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_5_text"})
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std

    @property
    def recurrent(self) -> frozenset[int]:
        kinds = self.text.config.layer_types
        return frozenset(layer for layer, kind in enumerate(kinds) if kind == "linear_attention")

    def query_projection(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """As in the base class. Each head's query has a gate beside it."""

        def project(rows: Tensor) -> Tensor:
            heads = attention.q_proj(rows).unflatten(-1, (-1, 2, attention.head_dim))  # (…, heads, query or gate, size)
            queries: Tensor = heads[..., 0, :].flatten(-2)
            return queries

        return project


class Qwen35Moe(Qwen35):
    """The structure of `Qwen3_5MoeForConditionalGeneration`. Experts see only the rows that are left."""

    model_type: ClassVar[str] = "qwen3_5_moe"
    title: ClassVar[str] = "Qwen3.5 with experts"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_5_moe_text"})


class Glm4v(Qwen2VL):
    """The structure of `Glm4vForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v"
    title: ClassVar[str] = "GLM-4.1V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text"})

    def embedding_arguments(self, placed: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
        return send(placed["cu_seqlens"].diff(), device), send(placed["grid_thw"], device)


class Glm4vMoe(Glm4v):
    """The structure of `Glm4vMoeForConditionalGeneration`. Experts see only the rows that are left."""

    model_type: ClassVar[str] = "glm4v_moe"
    title: ClassVar[str] = "GLM-4.5V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_moe_text"})


class Glm46V(Glm4v):
    """The structure of `Glm46VForConditionalGeneration`: the tower and decoders of GLM-4.1V and 4.5V.

    Its processor samples videos differently.
    """

    model_type: ClassVar[str] = "glm46v"
    title: ClassVar[str] = "GLM-4.6V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text", "glm4v_moe_text"})
