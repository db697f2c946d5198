"""Between the layers: a request is refused before it is scheduled, if stages could not cut it."""

from typing import Any

from foveate.integrations.vllm.between import guards
from foveate.integrations.vllm.setting import Rate, Setting

__all__ = ["ChecksPrompts"]


class ChecksPrompts:
    """Stands in front of a multimodal processor of vLLM. What it raises, a server answers with status 400."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a prompt, and refuse one that stages could not cut.

        Raises:
            SettingError: If the method's budget cannot be met for the prompt's images, or the prompt is too long.
        """
        made = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        setting: Setting = self.info.setting
        late = setting.stages(Rate()).late
        sizes = [place.get_num_embeds() for places in made["mm_placeholders"].values() for place in places]
        if not sizes or not late:
            return made
        guards.refuse_uncountable(late, setting.shape.depth, sizes)
        most = getattr(self.info.get_hf_config(), guards.STEP, None)
        if most is not None:
            guards.refuse_long_prompt(len(made["prompt_token_ids"]), most)
        return made
