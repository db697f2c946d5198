"""Video-LLaVA: a tower for images and one for videos; a video's frames come with their CLS, which always stays."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.grid import Grid, into_cells, join
from foveate.core.tower import TowerView
from foveate.errors import SettingError
from foveate.families._encode import (
    Reducer,
    TowerReader,
    cells_cut,
    encoder_layers,
    feature_layers,
    first_rows,
    place_rows,
    replaced,
    scoring_layers,
    smaller,
    stays_whole,
)
from foveate.families._tap import tapped
from foveate.families._towers import llava_cost, picture_tokens
from foveate.families.base import grid_boxes
from foveate.families.llava import Llava

__all__ = ["FAMILY", "VideoLlava"]

CLS = torch.full((1, 4), float("nan"))


class VideoLlava(Llava):
    """Where things are inside `VideoLlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "video_llava"
    videos: ClassVar[bool] = True

    @property
    def tower(self) -> Any:
        return self.core.image_tower

    def pixels(self, given: Mapping[str, Any]) -> str:
        """Also by the name they had, which transformers' processor still gives them."""
        return "pixel_values" if given.get("pixel_values") is not None else "pixel_values_images"

    def pieces(self, modality: str, given: Mapping[str, Any]) -> int:
        return int(given["pixel_values_videos"].shape[1]) if modality == "video" else 1

    @classmethod
    def always_kept(cls, config: Any, size: int) -> Sequence[int]:
        """The CLS of each frame of a video."""
        return range(0, size, picture_tokens(config) + 1) if _frames(config, size) else ()

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        if modality != "video":
            return super().boxes(modality, given, lengths)
        frame = torch.cat((CLS, grid_boxes(self.side, self.side)))
        return [frame.repeat(count, 1) if (count := _frames(self.model.config, size)) else None for size in lengths]

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return True

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """A video's patches of all frames are reduced together, before the projector."""
        if modality != "video":
            return super().encode(run, modality, given, reducer)
        frames, layers = self.pieces(modality, given), encoder_layers(self.core.video_tower)
        wanted = scoring_layers(feature_layers(self.model.config, len(layers)), len(layers))
        seen: dict[int, tuple[Tensor, Tensor, float]] = {}
        cuts: list[Any] = []

        def project(states: Tensor) -> Tensor:
            readers = [
                TowerReader(True, [(q[frame], k[frame], s) for q, k, s in (seen[at] for at in wanted)])
                for frame in range(len(states))
            ]
            projected: Tensor = original(self._reduced(states, frames, reducer, readers, cuts))
            return projected

        with ExitStack() as stack:
            for at in dict.fromkeys(wanted):
                attention: Any = layers[at].self_attn
                stack.enter_context(tapped(attention, lambda q, k, s, at=at: seen.update({at: (q, k, s)})))  # type: ignore[misc]
            original = stack.enter_context(replaced(self.core.multi_modal_projector, "forward", project))
            return run(), cuts

    def encode_projected(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        if modality != "video":
            return super().encode_projected(run, modality, given, reducer)
        output = run()
        cuts: list[Any] = []
        output.pooler_output = self._reduced(output.pooler_output, self.pieces(modality, given), reducer, (), cuts)
        return output, cuts

    def _reduced(
        self, states: Tensor, frames: int, reducer: Reducer, readers: Sequence[TowerReader], cuts: list[Any]
    ) -> Tensor:
        """Frames, (videos · frames, 1 + patches, width), with each video's patches reduced; appends to `cuts`."""
        videos = states[:, 1:].reshape(len(states) // frames, -1, states.shape[-1])
        views = []
        for index, patches in enumerate(videos):
            mine = readers[index * frames : (index + 1) * frames]
            view = TowerView(
                patches,
                grid=None,
                cls=None,
                scores_of=lambda layer, mine=mine: torch.cat([one.scores(layer) for one in mine]),  # type: ignore[misc]
                keys_of=lambda layer, mine=mine: torch.cat([one.keys(layer) for one in mine]),  # type: ignore[misc]
                grids=((self.side, self.side),) * frames,
            )
            views.append(view)
        cuts.extend(reducer.reduce(views))
        pairs = list(zip(videos, cuts, strict=True))
        if all(stays_whole(cut) for patches, cut in pairs):
            return states
        return _put(states[:, :1], [place_rows(patches, cut) for patches, cut in pairs])

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The tower interpolates its position embeddings; the CLS of each frame is the smaller frame's."""
        if modality != "video":
            return super().encode_smaller(run, modality, given, reducer)
        pixels, patch = given["pixel_values_videos"], self.model.config.vision_config.patch_size
        videos, frames = pixels.shape[:2]
        grids = ((self.side, self.side),) * frames
        coarse = reducer.coarsen(grids, frames * self.side**2, 0)
        if coarse == grids:
            return run(), [None] * videos
        small = smaller(pixels.flatten(0, 1), coarse[0][0] * patch, coarse[0][1] * patch)
        small = small.view(videos, frames, *small.shape[1:])
        output = run(pixel_values_videos=small, interpolate_pos_encoding=True)
        states = output.pooler_output
        merge = join([into_cells(grids[0], coarse[0])] * frames)
        rows = states[:, 1:].reshape(videos, -1, states.shape[-1])
        output.pooler_output = _put(states[:, :1], [first_rows(one, merge.arriving) for one in rows])
        return output, [cells_cut(one, merge) for one in rows]

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        counts = [_frames(config, size) or int(size == side * side) for size in sizes]
        return [((side, side),) * count for count in counts] if all(counts) else None

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        if modality != "video":
            return None
        videos, frames = given["pixel_values_videos"].shape[:2]
        return (int(frames),) * int(videos)

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        each = picture_tokens(config)
        if pictures is None:
            if odd := [size for size in sizes if size % each and not _frames(config, size)]:
                raise SettingError(
                    f"This model makes {each} vision tokens of a picture and {each + 1} of a frame; {odd[0]} is no "
                    "multiple of either. Say with tower_images=… how many pictures or frames the tower encodes."
                )
            pictures = tuple(_frames(config, size) or size // each for size in sizes)
        tower, projector = llava_cost(config, sum(pictures))
        return tower, projector // max(1, each * sum(pictures)) * sum(sizes)  # it gets the CLS of frames too

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        """Not known: pictures and frames have a tower each."""
        return None


def _frames(config: Any, size: int) -> int:
    """Frames of a video of `size` vision tokens; 0 if it is none."""
    frames, rest = divmod(size, picture_tokens(config) + 1)
    return frames if rest == 0 else 0


def _put(cls: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Frames, (videos · frames, 1 + patches, width), from their CLS and each video's patches in order."""
    return torch.cat((cls, torch.cat(list(rows)).view(len(cls), -1, cls.shape[-1])), dim=1)


FAMILY = VideoLlava
