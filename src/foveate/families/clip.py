"""CLIP's encoders, for a model whose tower is the same CLIP's vision tower. A resource for CDPruner and MFPruner."""

from typing import Any

import torch
from torch import Tensor

from foveate.errors import UnsupportedError


class ClipEncoder:
    """Projects patches of a CLIP tower and text into CLIP's common space.

        clip = CLIPModel.from_pretrained("openai/clip-vit-large-patch14-336")
        words = CLIPTokenizer.from_pretrained("openai/clip-vit-large-patch14-336")
        encoder = ClipEncoder(clip, words, processor.tokenizer)
        with foveate.drop(model, "cdpruner", tokens=64, resources={"clip": encoder}): ...

    Args:
        clip: The `CLIPModel` that the model's tower comes from. Checkpoints of LLaVA contain only the tower.
        words: Its tokenizer.
        tokenizer: The model's own tokenizer, which decodes the prompt.
    """

    def __init__(self, clip: Any, words: Any, tokenizer: Any) -> None:
        self._clip = clip
        self._words = words
        self._tokenizer = tokenizer

    @torch.no_grad()
    def features(self, features: Tensor) -> Tensor:
        """Project the tower's patches, (patches, width), into the common space: (patches, size) float32.

        Raises:
            UnsupportedError: If they come from another tower.
        """
        norm = self._clip.vision_model.post_layernorm
        if features.shape[-1] != norm.weight.shape[0]:
            raise UnsupportedError(
                f"This model's features have width {features.shape[-1]}, but those of the given CLIP have "
                f"width {norm.weight.shape[0]}. Give the CLIP that the model's tower comes from, or none."
            )
        place = norm.weight
        projected: Tensor = self._clip.visual_projection(norm(features.to(place.device, place.dtype)))
        return projected.float().to(features.device)

    @torch.no_grad()
    def text(self, ids: Tensor) -> Tensor:
        """Embed a text in the common space, from its ids in the model's prompt: (size,) float32.

        The text is split into parts of 75 words. The result is the mean of their normalised embeddings, or zeros if
        there is no text.
        """
        projection = self._clip.text_projection
        said = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
        if not said:
            return torch.zeros(projection.out_features)
        words = self._words(said, add_special_tokens=False).input_ids
        most = self._clip.config.text_config.max_position_embeddings - 2  # without the begin and end tokens
        pooled = []
        for start in range(0, len(words), most):
            part = [self._words.bos_token_id, *words[start : start + most], self._words.eos_token_id]
            row = torch.tensor([part], device=projection.weight.device)
            pooled.append(self._clip.text_model(row).pooler_output)
        embeds = projection(torch.cat(pooled)).float()
        return torch.nn.functional.normalize(embeds, dim=-1).mean(dim=0).cpu()
