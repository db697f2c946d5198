"""The Gemmas: PaliGemma, Gemma 3, and Gemma 4 without shared keys (26B-A4B, 31B).

Pictures, or all of a PaliGemma's prompt, are seen both ways. The masks of each kind of layer say what a row sees:
images both ways, and windows in columns of the whole prompt. They stay right for the rows that are left. Local and
global layers have a RoPE of their own, and in Gemma 4 a head size of their own.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.core.attention import received_attention
from foveate.core.cut import Cut
from foveate.core.flops import linear
from foveate.core.gather import take_along
from foveate.core.grid import Grid, into_cells, join
from foveate.core.patching import Patcher
from foveate.core.tower import TowerView
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.costs import Counts, Flops, gemma_cost, picture_tokens, pictures_in, tower_picture
from foveate.families.llava import Llava
from foveate.families.placing import first_rows, place_rows, replace_images
from foveate.families.tap import Tapped, tap, tapped_all
from foveate.families.tower import Encoded, Inputs, Reducer, Run, always, encoder_layers
from foveate.families.vision import grid_boxes, smaller

__all__ = ["FAMILIES", "Gemma3", "Gemma4", "PaliGemma"]


class PaliGemma(Llava):
    """Where things are inside `PaliGemmaForConditionalGeneration`, with a Gemma or a Gemma 2: one square per image,
    SigLIP patches in raster order."""

    model_type: ClassVar[str] = "paligemma"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    fit: ClassVar[Literal["whole", "crop"]] = "whole"
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma", "gemma2"})
    shares_prefix: ClassVar[bool] = False  # what stands before the question sees it

    @classmethod
    def pictures_cost(cls, config: Any, pictures: int, grid: Grid | None = None) -> Flops:
        vision = config.vision_config
        projector = linear(picture_tokens(config, grid), vision.hidden_size, vision.projection_dim)
        return pictures * tower_picture(vision, grid), pictures * projector


class Gemma3(Family):
    """Where things are inside `Gemma3ForConditionalGeneration`: SigLIP patches averaged to 16 x 16 tokens."""

    model_type: ClassVar[str] = "gemma3"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma3_text"})
    shares_prefix: ClassVar[bool] = False  # images are seen both ways, where token types say so

    @property
    def _grid(self) -> Grid:
        return _grid(self.model.config)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector: a token's score and key are the means of the patches averaged into it."""
        attention: Any = encoder_layers(self.core.vision_tower)[-1].self_attn
        with tapped_all([attention]) as taps:
            output = run()
        images = output.pooler_output
        cuts = reducer.reduce([self._view(image, *taps.sample(index)) for index, image in enumerate(images)])
        placed = [place_rows(image, cut) for image, cut in zip(images, cuts, strict=True)]
        output.pooler_output = torch.stack(placed)
        return output, cuts

    def _view(self, image: Tensor, heads: Tapped) -> TowerView:
        scores = self._token_means(received_attention(*heads)[:, None])[:, 0]
        keys = self._token_means(heads.keys.float().mean(dim=0))
        return TowerView(image, self._grid, None, always(scores), always(keys))

    def _token_means(self, patches: Tensor) -> Tensor:
        """Means over the patches of each token, (patches, numbers) -> (tokens, numbers)."""
        projector = self.core.multi_modal_projector
        side: int = projector.patches_per_image
        means: Tensor = projector.avg_pool(patches.T.reshape(1, -1, side, side))
        return means.flatten(2)[0].T

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """The tower interpolates its position embeddings; the projector, made for one grid, gets the patches in the
        corner of an empty one.
        """
        grid, projector, pixels = self._grid, self.core.multi_modal_projector, inputs["pixel_values"]
        (cells,) = reducer.coarsen((grid,), grid[0] * grid[1], 0)
        if cells == grid:
            return run(), [None] * len(pixels)
        rows, columns = (side * projector.kernel_size for side in cells)  # of patches

        def project(original: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            side = projector.patches_per_image
            # (pictures, patches, width) into the corner of the usual grid, and its tokens out of their corner
            canvas = states.new_zeros(len(states), side, side, states.shape[-1])
            canvas[:, :rows, :columns] = states.view(len(states), rows, columns, -1)
            tokens = original(canvas.flatten(1, 2)).view(len(states), *grid, -1)
            return tokens[:, : cells[0], : cells[1]].flatten(1, 2)

        patch = self.model.config.vision_config.patch_size
        small = smaller(pixels, rows * patch, columns * patch)
        with Patcher() as patches:
            patches.wrap(projector, "forward", project)
            output = run(pixel_values=small, interpolate_pos_encoding=True)
        images = output.pooler_output
        features, cuts = replace_images(images, [into_cells(grid, cells)] * len(images))
        output.pooler_output = torch.stack(features)
        return output, cuts

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        rows, columns = _grid(config)
        if any(size != rows * columns for size in sizes):
            return None
        return [((rows, columns),)] * len(sizes)

    def boxes(self, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        """Of the picture the processor made of each image: with pan and scan that may be a part of it."""
        return [grid_boxes(*self._grid)] * len(lengths)

    @classmethod
    def tower_cost(cls, config: Any, sizes: Counts, pictures: Counts | None) -> Flops:
        return gemma_cost(config, [None] * pictures_in(sizes, config.mm_tokens_per_image))

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> Flops | None:
        kernel = config.vision_config.image_size // config.vision_config.patch_size // _grid(config)[0]
        return gemma_cost(config, [(rows * kernel, columns * kernel) for image in cells for rows, columns in image])


def _grid(config: Any) -> Grid:
    """Rows and columns of a picture's tokens in Gemma 3."""
    side = int(config.mm_tokens_per_image**0.5)
    return side, side


INPUTS = {"image": ("pixel_values", "image_position_ids"), "video": ("pixel_values_videos", "video_position_ids")}
"""Gemma 4's patches of all pictures or frames, (pictures, patches, numbers), and their x and y, (pictures, patches, 2),
or −1 for padding."""


class Gemma4(Family):
    """Where things are inside `Gemma4ForConditionalGeneration`: any shape of picture, 3 x 3 patches a token.

    Local layers see an image both ways, global ones do not.

    Raises:
        UnsupportedError: If layers share keys, or get inputs of their own (E2B, E4B).
    """

    model_type: ClassVar[str] = "gemma4"
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # frames of videos come in another form before
    decoders: ClassVar[frozenset[str]] = frozenset()
    shares_prefix: ClassVar[bool] = False  # images are seen both ways, where token types say so

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        text = self.text.config
        if text.num_kv_shared_layers or text.hidden_size_per_layer_input:
            raise UnsupportedError(
                f"In this Gemma 4 {text.num_kv_shared_layers} layers reuse the keys of earlier ones, where tokens that "
                f"left would stay, and every layer gets {text.hidden_size_per_layer_input} more inputs for each token. "
                "Gemma 4 is served where it does neither: 26B-A4B and 31B."
            )

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """The core asks where everything would be, at every call: of that, what is there."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        masks = []
        for (modality, (name, _)), mask in zip(INPUTS.items(), placeholders, strict=False):
            if inputs.get(name) is not None or encoded.get(modality) is not None:
                masks.append((modality, mask))
        return masks

    def queries_and_keys(
        self, layer: Any, hidden: Tensor, queries: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        attention = layer.self_attn
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        normed = layer.input_layernorm(hidden)

        def heads(rows: Tensor, projection: Any, norm: Any, cos: Tensor, sin: Tensor) -> Tensor:
            states = norm(projection(rows).unflatten(-1, (-1, attention.head_dim)))
            turned: Tensor = rotate(states, cos, sin, unsqueeze_dim=2)
            return turned.transpose(1, 2)

        places = queries[..., None]
        tables = (take_along(table, places, dim=-2) for table in rotary)
        asking = heads(take_along(normed, places, dim=1), attention.q_proj, attention.q_norm, *tables)
        keys = heads(normed, attention.k_proj, attention.k_norm, *rotary)
        return asking, keys, float(attention.scaling)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector: a token's score and key are the means of the patches pooled into it."""
        grids_of = self._grids(modality, inputs)  # while nothing is under way to wait for
        reader = _Reader(self.core.vision_tower.encoder.layers[-1].self_attn, self._kernel)
        with Patcher() as patches:
            reader.attach(patches)
            output = run()
        # The tower sees pictures and frames alike; an image is one of them, a video several.
        flat = [grid for grids in grids_of for grid in grids]
        pictures = iter(reader.pictures(inputs[INPUTS[modality][1]], flat))
        images, views = output.pooler_output, []
        for image, grids in zip(images, grids_of, strict=True):
            stats = torch.cat([next(pictures) for _ in grids])
            plain = grids[0] if len(grids) == 1 else None
            views.append(TowerView(image, plain, None, always(stats[:, 0]), always(stats[:, 1:])))
        cuts = reducer.reduce(views)
        output.pooler_output = [place_rows(image, cut) for image, cut in zip(images, cuts, strict=True)]
        return output, cuts

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """The patches are put together again, resized to whole tokens and cut anew."""
        names = INPUTS[modality]
        patches, positions = (inputs[name].clone() for name in names)
        merged: list[Cut | None] = []
        picture = 0
        for grids in self._grids(modality, inputs):
            cells = reducer.coarsen(grids, sum(rows * columns for rows, columns in grids), 0)
            if cells == grids:
                merged.append(None)
                picture += len(grids)
                continue
            pairs = list(zip(grids, cells, strict=True))
            merged.append(join([into_cells(*pair) for pair in pairs]))
            for grid, coarse in pairs:  # each picture, or each frame of a video
                if coarse != grid:
                    patches[picture], positions[picture] = self._resized(patches[picture], grid, coarse)
                picture += 1
        output = run(**dict(zip(names, (patches, positions), strict=True)))
        output.pooler_output, cuts = replace_images(output.pooler_output, merged)
        return output, cuts

    def _resized(self, patches: Tensor, grid: Grid, cells: Grid) -> tuple[Tensor, Tensor]:
        """A picture's patches, (patches, size · size · channels), and their places, as of one of `cells` tokens."""
        size, kernel = self.model.config.vision_config.patch_size, self._kernel
        rows, columns = grid[0] * kernel, grid[1] * kernel  # in patches, before and after
        tall, wide = cells[0] * kernel, cells[1] * kernel
        # (patches, …) -> (channels, rows, size, columns, size) -> one picture
        blocks = patches[: rows * columns].view(rows, columns, size, size, -1)
        picture = blocks.permute(4, 0, 2, 1, 3)
        small = smaller(picture.reshape(1, -1, rows * size, columns * size), tall * size, wide * size)[0]
        # and back: (channels, rows, size, columns, size) -> (patches, …)
        blocks = small.view(-1, tall, size, wide, size)
        cut = blocks.permute(1, 3, 2, 4, 0).reshape(tall * wide, -1)
        y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
        # −1 marks the patches that are left over as padding
        places = torch.full((len(patches), 2), -1, device=patches.device)
        real = torch.stack((x, y), dim=-1).view(-1, 2)  # column and row of each patch, in raster order
        places[: tall * wide] = real.to(places.device)
        return first_rows(cut, len(patches)), places

    @property
    def _kernel(self) -> int:
        """Patches of a token's side."""
        kernel: int = self.model.config.vision_config.pooling_kernel_size
        return kernel

    def _grids(self, modality: str, inputs: Inputs) -> list[tuple[Grid, ...]]:
        """Rows and columns of the tokens of each image, or of each video's frames."""
        sides = (inputs[INPUTS[modality][1]].amax(dim=1) + 1) // self._kernel
        grids = [(rows, columns) for columns, rows in sides.tolist()]
        if modality == "image":
            return [(grid,) for grid in grids]
        frames = iter(grids)
        counts = inputs["num_frames_per_video"].tolist()
        return [tuple(next(frames) for _ in range(count)) for count in counts]

    def boxes(self, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        return [torch.cat([grid_boxes(*grid) for grid in grids]) for grids in self._grids(modality, inputs)]


class _Reader:
    """Queries and keys of the patches of all of a call's pictures, from Gemma 4's last layer."""

    def __init__(self, attention: Any, kernel: int) -> None:
        self._attention = attention
        self._kernel = kernel
        self._heads: list[Tapped] = []
        self._keys: list[Tensor] = []

    def attach(self, patches: Patcher) -> None:
        """Read until the patcher restores the layer."""
        patches.hook(self._attention.k_norm, "after", self._note_keys)
        tap(patches, self._attention, self._note_heads)

    def _note_keys(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._keys.append(output)  # before RoPE: (pictures, patches, heads, head size)

    def _note_heads(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        self._heads.append(Tapped(queries, keys, scaling))

    def pictures(self, positions: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Scores and keys of each picture's tokens, (tokens, 1 + head size), from where its patches are."""
        (heads,) = self._heads
        pictures = zip(heads.queries, heads.keys, self._keys[0], positions, grids, strict=True)
        return [self._picture(*picture, heads.scaling) for picture in pictures]

    def _picture(
        self, queries: Tensor, turned: Tensor, keys: Tensor, positions: Tensor, grid: Grid, scaling: float
    ) -> Tensor:
        # Padding comes last, and as many are real as the grid says.
        order = torch.sort((positions < 0).any(dim=-1).long(), stable=True).indices
        real = order[: grid[0] * grid[1] * self._kernel**2]
        scores = received_attention(queries[:, real], turned[:, real], scaling)
        patches = torch.cat((scores[:, None], keys[real].float().mean(dim=1)), dim=1)
        return _token_means(patches, positions[real], grid, self._kernel)


def _token_means(patches: Tensor, positions: Tensor, grid: Grid, kernel: int) -> Tensor:
    """Means over the patches of each token of a picture, (patches, numbers) -> (tokens, numbers)."""
    x, y = positions[:, 0] // kernel, positions[:, 1] // kernel
    totals = patches.new_zeros(grid[0] * grid[1], patches.shape[1])
    return totals.index_add(0, x + grid[1] * y, patches) / kernel**2


FAMILIES = (PaliGemma, Gemma3, Gemma4)
