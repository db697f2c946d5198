"""The authors' side of a comparison: `python theirs.py NAME MODEL REPOSITORIES` answers the requests of `worker.py`.

Runs in the environment of `make setup-peers`. README.md lists every patch of the authors' code that is made here.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from peers import PEERS, Peer
from worker import HEADS, IMAGE, LAYERS, MLP, SYSTEM, TOWER, VISION, VOCABULARY, WIDTH, Arm, Call, Marks, answers, serve

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


class Authors:
    """A peer's code and the model that both sides load.

    Args:
        peer: The peer.
        folder: The model.
        repositories: The folder with the clones.
    """

    def __init__(self, peer: Peer, folder: Path, repositories: Path) -> None:
        self.peer = peer
        self.settings = SimpleNamespace(**peer.theirs)
        self.folder = folder
        self.repositories = repositories

    def search(self, peer: Peer, below: str = "") -> None:
        """Import from a repository from now on, before anything else."""
        sys.path.insert(0, str(self.repositories / peer.folder / below))

    def llava(self, kind: Any, config_kind: Any) -> Any:
        """A model of a class of LLaVA's package, with the weights."""
        config = config_kind(**TEXT)
        settings = {
            "mm_vision_tower": str(self._tower()),
            "mm_hidden_size": TOWER["hidden_size"],
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_patch_merge_type": "flat",
            "use_mm_proj": True,
            "tune_mm_mlp_adapter": False,
            "tokenizer_model_max_length": 2048,
            "tokenizer_padding_side": "right",
            "image_aspect_ratio": "pad",
        }
        for name, value in settings.items():
            setattr(config, name, value)
        model = kind(config)
        names = {
            "language_model.": "",
            "multi_modal_projector.linear_1": "model.mm_projector.0",
            "multi_modal_projector.linear_2": "model.mm_projector.2",
        }
        fill(model, {name: weight for name, weight in self.weights(names).items() if "vision_tower" not in name})
        model.get_vision_tower().load_model()
        return answering(model)

    def weights(self, names: dict[str, str]) -> dict[str, torch.Tensor]:
        """The weights, with beginnings of their names replaced."""
        from safetensors.torch import load_file

        weights = {}
        for name, weight in load_file(self.folder / "model.safetensors").items():
            for old, new in names.items():
                if name.startswith(old):
                    name = new + name[len(old) :]
                    break
            weights[name] = weight
        return weights

    def _tower(self) -> Path:
        """The vision tower as a folder, from which LLaVA's package loads it."""
        folder = self.folder / "tower"
        if not (folder / "preprocessor_config.json").exists():
            from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

            model = CLIPVisionModel(CLIPVisionConfig(**TOWER))
            weights = self.weights({"vision_tower.": "vision_model."})
            fill(model, {name: weight for name, weight in weights.items() if name.startswith("vision_model.")})
            model.save_pretrained(folder)
            CLIPImageProcessor(size=TOWER["image_size"], crop_size=TOWER["image_size"]).save_pretrained(folder)
        return folder


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load all weights; only a tower may be left for later."""
    wrong = model.load_state_dict(weights, strict=False)
    missing = [name for name in wrong.missing_keys if "vision_tower" not in name and "position_ids" not in name]
    if missing or wrong.unexpected_keys:
        raise SystemExit(f"The weights do not fit: missing {missing}, unexpected {wrong.unexpected_keys}.")


def answering(model: Any) -> Any:
    """The model, for answers of a fixed length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


# -- patches --------------------------------------------------------------------------------------------------


def let_names_repeat() -> None:
    """Let two classes of one name be imported: the untouched model and the authors' register the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind in (AutoConfig, AutoModelForCausalLM):
        kind.register = lambda *_, **__: None


def do_without_cuda() -> None:
    """Ignore the moves of tensors to CUDA, and the CUDA events that time a call."""

    class Event:
        def __init__(self, **_: object) -> None: ...
        def record(self) -> None: ...
        def elapsed_time(self, other: object) -> float:
            return 0.0

    torch.cuda.Event = Event
    torch.cuda.synchronize = torch.cuda.reset_peak_memory_stats = lambda *_: None
    torch.cuda.max_memory_allocated = lambda *_: 0
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor


# -- the peers ------------------------------------------------------------------------------------------------


def ask(model: Any, first: Sequence[object], context: Callable[[], AbstractContextManager[None]]) -> Arm:
    """An arm that calls LLaVA's `generate` in a context; `first` are arguments in front."""

    def generate(call: Call, marks: Marks) -> None:
        with context():
            model.generate(
                *first, call.ids(-200, 1), images=call.pixels, do_sample=False, max_new_tokens=call.tokens,
                use_cache=True, logits_processor=[marks],
            )  # fmt: skip

    return Arm(generate, model.model.mm_projector, model.model.norm)


def both(plain: Any, dropping: Any, first: Sequence[object] = ()) -> dict[str, Arm]:
    """The arms of two models."""
    return {"untouched": ask(plain, (), nullcontext), "method": ask(dropping, first, nullcontext)}


@contextmanager
def put(owner: Any, **values: Any) -> Iterator[None]:
    """Give an object other attributes inside this context."""
    before = {name: owner.__dict__[name] for name in values if name in owner.__dict__}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)


def v2drop(authors: Authors) -> dict[str, Arm]:
    """One model: V2Drop is its decoder's `forward`, with the layers and shares built in."""
    authors.search(authors.peer)
    do_without_cuda()
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from transformers.models.llama import modeling_llama

    def whole(self: Any, x: torch.Tensor, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary table as it is stored. Cut to the shortened length, it has no row for later positions."""
        if seq_len > self.max_seq_len_cached:
            self._set_cos_sin_cache(seq_len, x.device, x.dtype)
        return self.cos_cached.to(x.dtype), self.sin_cached.to(x.dtype)

    model = authors.llava(LlavaLlamaForCausalLM, LlavaConfig)
    plain = partial(put, model.model, forward=MethodType(modeling_llama.LlamaModel.forward, model.model))
    dropping = partial(put, modeling_llama.LlamaRotaryEmbedding, forward=whole)
    return {"untouched": ask(model, (), plain), "method": ask(model, (), dropping)}


def visiondrop(authors: Authors) -> dict[str, Arm]:
    """Two models. VisionZip's part changes classes of the tower, which the untouched model has too."""
    authors.search(authors.peer)
    let_names_repeat()
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.language_model.llava_llama_visiondrop import LlavaLlamaForCausalLM_VisionDrop
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.visionzip import visionzip
    from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

    changed = (CLIPEncoderLayer, CLIPAttention, CLIPVisionTower)
    plain = authors.llava(LlavaLlamaForCausalLM, LlavaConfig)
    model = authors.llava(LlavaLlamaForCausalLM_VisionDrop, LlavaConfig)
    before = [kind.forward for kind in changed]
    dominant, contextual = authors.settings.dominant, authors.settings.contextual
    visionzip(model, dominant=dominant, contextual=contextual)
    after = [kind.forward for kind in changed]
    model.model.layer_list = authors.settings.layers
    model.model.image_token_ratio_list = [[dominant + contextual, 0], *authors.settings.schedule]

    @contextmanager
    def zipped() -> Iterator[None]:
        give(after)
        try:
            yield
        finally:
            give(before)

    def give(forwards: Sequence[Any]) -> None:
        for kind, forward in zip(changed, forwards, strict=True):
            kind.forward = forward

    give(before)
    return {"untouched": ask(plain, (), nullcontext), "method": ask(model, (), zipped)}


def mustdrop(authors: Authors) -> dict[str, Arm]:
    """Two models. MustDrop's tower always merges, so the untouched LLaVA is that of PyramidDrop's repository."""
    authors.search(PEERS[authors.peer.builds_on])
    do_without_cuda()
    let_names_repeat()
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    plain = authors.llava(LlavaLlamaForCausalLM, LlavaConfig)
    for name in [name for name in sys.modules if name.split(".")[0] == "llava"]:
        del sys.modules[name]
    authors.search(authors.peer)
    from llava.model.language_model.sparse_llava_llama import LlavaConfig, LlavaLlamaDynamicForCausalLM

    model = authors.llava(LlavaLlamaDynamicForCausalLM, LlavaConfig)
    return both(plain, model, (authors.settings.global_thr, authors.settings.individual_thr))


def pyramiddrop(authors: Authors) -> dict[str, Arm]:
    """Two models."""
    authors.search(authors.peer)
    let_names_repeat()
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.language_model.llava_llama_pdrop import LlavaLlamaForCausalLM_PDrop

    plain = authors.llava(LlavaLlamaForCausalLM, LlavaConfig)
    model = authors.llava(LlavaLlamaForCausalLM_PDrop, LlavaConfig)
    model.model.layer_list = authors.settings.layers
    model.model.image_token_ratio_list = authors.settings.ratios
    return both(plain, model)


def divprune(authors: Authors) -> dict[str, Arm]:
    """One model: variables of the environment switch DivPrune on, as in the authors' scripts."""
    authors.search(authors.peer, "LLaVA")
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    os.environ["BASELINE"] = "ORIG"
    model = authors.llava(LlavaLlamaForCausalLM, LlavaConfig)

    @contextmanager
    def dropping() -> Iterator[None]:
        os.environ |= {"LAYER_INDEX": "0", "SUBSET_RATIO": str(authors.settings.ratio), "BASELINE": "OURS"}
        try:
            yield
        finally:
            del os.environ["LAYER_INDEX"], os.environ["SUBSET_RATIO"]
            os.environ["BASELINE"] = "ORIG"

    return {"untouched": ask(model, (), nullcontext), "method": ask(model, (), dropping)}


def fastv(authors: Authors) -> dict[str, Arm]:
    """Two models of the transformers that the repository brings. FastV's needs eager attention."""
    authors.search(authors.peer, "src/FastV/llava-hf/transformers/src")
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    def build(attention: str, settings: dict[str, Any] | None) -> Any:
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
            vision_feature_layer=-2, vision_feature_select_strategy="default", pad_token_id=0,
        )  # fmt: skip
        config.fastv_config = settings
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
        fill(model, authors.weights({"vision_tower.": "vision_tower.vision_model."}))
        return answering(model)

    def arm(model: Any) -> Arm:
        def generate(call: Call, marks: Marks) -> None:
            ids = call.ids(IMAGE, 1)
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=call.pixels, do_sample=False,
                use_cache=True, max_new_tokens=call.tokens, logits_processor=[marks],
            )  # fmt: skip

        return Arm(generate, model.multi_modal_projector, model.language_model.model.norm)

    where = {"use_fastv": True, "image_token_start_index": SYSTEM, "image_token_length": VISION}
    return {"untouched": arm(build("sdpa", None)), "method": arm(build("eager", where | authors.peer.theirs))}


MAKERS = {
    "V2Drop": v2drop,
    "VisionDrop": visiondrop,
    "MustDrop": mustdrop,
    "FastV": fastv,
    "DivPrune": divprune,
    "PyramidDrop": pyramiddrop,
}


if __name__ == "__main__":
    out = answers()
    name, folder, repositories = sys.argv[1:]
    arms = MAKERS[name](Authors(PEERS[name], Path(folder), Path(repositories)))
    import transformers

    serve(arms, {"torch": torch.__version__, "transformers": transformers.__version__}, out)
