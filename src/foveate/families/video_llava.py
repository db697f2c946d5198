"""Video-LLaVA: one tower for images and one for videos. A video's frames come with their CLS, which always stays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.patching import Patcher
from foveate.core.signals import TowerSignal
from foveate.core.views import TowerView
from foveate.families.llava import Llava, picture_tokens, side_of, squares
from foveate.families.newlines import Stats, read_stats
from foveate.families.placing import place_rows, replace_images, stays_whole
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, coarser_grids
from foveate.families.vision import PictureLayout


class VideoLlava(Llava):
    """The structure of `VideoLlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "video_llava"
    title: ClassVar[str] = "Video-LLaVA"
    videos: ClassVar[bool] = True
    projects_frames: ClassVar[bool] = True
    keeps_beside: ClassVar[bool] = True

    def pieces(self, modality: str, inputs: Inputs) -> int:
        if modality != "video":
            return 1
        return int(inputs["pixel_values_videos"].shape[1])

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        """As in the base class. The number of tokens shows whether it is an image or a video, in which a CLS begins
        each frame.
        """
        side, each = side_of(config), picture_tokens(config)
        pictures = squares((side, side), each, lengths)
        for index, length in enumerate(lengths):
            frames, rest = divmod(length, each + 1)
            if frames and not rest:
                pictures[index] = PictureLayout(((side, side),) * frames, range(0, length, each + 1), frames=frames)
        return pictures

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return True

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The patches of all frames of a video are reduced together, before the projector."""
        if modality != "video":
            return super().encode(run, modality, inputs, reducer)
        taps = self.tower_parts(modality, run, inputs).taps(reducer.reads)
        frames = self.pieces(modality, inputs)
        cuts: list[Cut | None] = []

        def stats(signal: TowerSignal) -> Tensor:
            of_frames = torch.stack(taps.read(signal))
            _, patches, numbers = of_frames.shape
            return of_frames.view(-1, frames * patches, numbers)  # (videos, frames · patches, numbers)

        def project(original: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            reduced, of_videos = self._reduce_films(states, frames, reducer, stats)
            cuts.extend(of_videos)
            return original(reduced)

        with Patcher() as patches:
            patches.wrap(self.core.multi_modal_projector, "forward", project)
            return taps.run(run), cuts

    def encode_projected(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        if modality != "video":
            return super().encode_projected(run, modality, inputs, reducer)
        output = run()
        frames = self.pieces(modality, inputs)
        output.pooler_output, cuts = self._reduce_films(output.pooler_output, frames, reducer)
        return output, cuts

    def _reduce_films(
        self, states: Tensor, frames: int, reducer: ImageReducer, stats: Stats | None = None
    ) -> tuple[Tensor, list[Cut | None]]:
        """Reduce the patches of each video's frames together, and keep the CLS of each frame.

        Args:
            states: (videos · frames, 1 + patches, width).
            frames: Number of frames in each video.
            reducer: Reduces the tokens.
            stats: Attention and keys in the tower. None if no method reads them.

        Returns:
            The states, with each video's remaining patches in the first places; and the cuts.
        """
        videos = _patches(states, frames)
        grids = ((self.side, self.side),) * frames
        views = []
        for index, patches in enumerate(videos):
            views.append(TowerView(patches, None, None, partial(read_stats, stats, index), grids=grids))
        cuts = reducer.reduce(views)
        if all(stays_whole(cut) for cut in cuts):
            return states, cuts
        placed = [place_rows(video, cut) for video, cut in zip(videos, cuts, strict=True)]
        return _with_cls(states[:, :1], placed), cuts

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The tower interpolates position embeddings. A frame's CLS is the smaller one's."""
        if modality != "video":
            return super().encode_smaller(run, modality, inputs, reducer)
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        coarse, cuts = coarser_grids(reducer, [((self.side, self.side),) * frames] * videos)
        if cuts[0] is None:
            return run(), cuts
        output = self.run_smaller(run, inputs, coarse[0][0])
        states = output.pooler_output
        output.pooler_output = _patches(states, frames)
        cuts = replace_images(output, cuts)
        output.pooler_output = _with_cls(states[:, :1], output.pooler_output)
        return output, cuts

    @classmethod
    def fixed_count(cls, config: Any) -> int | None:
        """None: a video has more tokens than an image."""
        return None


def _patches(states: Tensor, frames: int) -> Tensor:
    """Each video's patches without the CLS.

    (videos · frames, 1 + patches, width) -> (videos, frames · patches, width).
    """
    videos = len(states) // frames
    return states[:, 1:].reshape(videos, -1, states.shape[-1])


def _with_cls(cls: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Join the CLS of each frame with each video's patches, in order: (videos · frames, 1 + patches, width)."""
    frames, _, width = cls.shape
    patches = torch.cat(list(rows)).view(frames, -1, width)
    return torch.cat((cls, patches), dim=1)
