"""The embedded model for films: its weights in a LLaVA-NeXT-Video, and a processor for frames."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, LlavaProcessor

from foveate.embedded.films import FRAMES


class FilmProcessor(LlavaProcessor):  # type: ignore[misc]
    """Writes a film as one `<image>` line per frame, as in training. A picture is a film of one frame."""

    video_processor = "the frames are pictures"
    most_frames = FRAMES
    """Default number of frames of a film: as in training, and as many as fit into 2,048 tokens."""

    video_token = "<video>"

    def __call__(
        self,
        images: Sequence[Any] | None = None,
        text: str | Sequence[str] = "",
        videos: Sequence[Any] | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool = False,
        **options: Any,
    ) -> Any:
        """Return token ids, and pixels of shape (films, frames, 3, height, width).

        Args:
            images: Pictures, in the order of `<image>` in the text.
            text: The prompt, with an `<image>` or `<video>` for each medium.
            videos: The frames of each film, in the order of `<video>`.
            video_metadata: Ignored: the model does not read times.
            do_sample_frames: Ignored.
            options: Options of transformers' processor.

        Raises:
            ValueError: If the films differ in their number of frames.
        """
        text = text if isinstance(text, str) else text[0]
        pictures, clips = ([each] for each in images or ()), (list(each) for each in videos or ())
        films = [next(clips if place == "<video>" else pictures) for place in re.findall("<image>|<video>", text)]
        if len({len(frames) for frames in films}) > 1:
            raise ValueError("films differ in their number of frames; give all the same number")
        if films:
            text = text.replace("<video>", "\n".join(["<image>"] * len(films[0])))
        encoded = super().__call__([frame for frames in films for frame in frames] or None, text, **options)
        if films:
            # (films * frames, 3, height, width) -> (films, frames, 3, height, width)
            encoded["pixel_values_videos"] = encoded.pop("pixel_values").unflatten(0, (len(films), -1))
        return encoded


def for_films(model: Any, processor: Any) -> tuple[Any, FilmProcessor]:
    """Turn the model into one for films, whose frames have half the width and height: 144 tokens each.

    The tower was also trained at that size, with the mean of each 2 x 2 position embeddings.

    Args:
        model: The embedded model. Its weights are reused; do not use it afterwards.
        processor: The processor of the embedded model.

    Returns:
        The model in eval mode, and its processor.
    """
    config, vision = model.config, model.config.vision_config
    side = vision.image_size // 2
    tower = model.model.vision_tower.embeddings
    tower.position_embedding = _halve(tower.position_embedding.weight.detach(), vision.image_size // vision.patch_size)
    places = tower.position_embedding.num_embeddings
    tower.position_ids = torch.arange(places, device=tower.position_embedding.weight.device)[None]
    tower.num_positions, tower.num_patches = places, places - 1
    tower.image_size = vision.image_size = side
    settings = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=config.text_config,
        image_token_index=config.text_config.vocab_size - 2,  # an id that no text has: the model takes only films
        video_token_index=config.image_token_index,
        vision_feature_layer=config.vision_feature_layer,
        projector_hidden_act=config.projector_hidden_act,
        spatial_pool_stride=1,  # no pooling
        image_grid_pinpoints=[[side, side]],
        video_seq_length=places - 1,
        tie_word_embeddings=True,
        dtype=config.dtype,
    )
    with torch.device("meta"):
        films = LlavaNextVideoForConditionalGeneration(settings)
    for name in ("vision_tower", "multi_modal_projector", "language_model"):
        setattr(films.model, name, getattr(model.model, name))
    films.model.image_newline = torch.nn.Parameter(torch.zeros(config.text_config.hidden_size, dtype=model.dtype))
    films.lm_head, films.generation_config = model.lm_head, model.generation_config
    films.requires_grad_(False)

    # The chat template for pictures, extended by `<video>` for films.
    loop = "if part['type'] == 'image' %}<image>\n{% endfor %}"
    kinds = "if part['type'] != 'text' %}{% if part['type'] == 'image' %}<image>\n{% else %}<video>\n{% endif %}"
    pictures = processor.image_processor
    pictures.size, pictures.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    shown = FilmProcessor(
        image_processor=pictures,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        num_additional_image_tokens=processor.num_additional_image_tokens,
        chat_template=processor.chat_template.replace(loop, kinds + "{% endfor %}"),
    )
    return films.eval(), shown


def _halve(places: torch.Tensor, grid: int) -> torch.nn.Embedding:
    """Average position embeddings to half the grid: (1 + grid², width), CLS first -> (1 + (grid / 2)², width)."""
    # (grid * grid, width) -> (grid / 2, 2, grid / 2, 2, width) -> (patches, width)
    patches = places[1:].view(grid // 2, 2, grid // 2, 2, -1).mean((1, 3)).flatten(0, 1)
    halved = torch.cat([places[:1], patches])
    embedding: torch.nn.Embedding = torch.nn.Embedding.from_pretrained(halved)  # type: ignore[no-untyped-call]
    return embedding
