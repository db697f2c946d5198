"""Ask one question about every row of a Parquet file with vLLM and its plug-in, inside Ray Data LLM.

    python on_ray_llm.py rows.parquet answers/ "What is this?" llava-hf/llava-1.5-7b-hf

The file has the columns `id` and `image`, a path. On a CPU: --engine '{"dtype": "float32", "enforce_eager": true}'.
"""

import argparse
import json
from pathlib import Path

import ray
from PIL import Image
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoConfig, AutoProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "answers", "prompt", "model"):
        parser.add_argument(name)
    parser.add_argument("--engine", type=json.loads, default={}, help="further arguments of vLLM's engine, as JSON")
    asked = parser.parse_args()
    ray.init(log_to_driver=False)
    device = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    (architecture,) = AutoConfig.from_pretrained(asked.model).architectures
    setting = {"method": "visionzip", "retention": 1 / 3}
    config = vLLMEngineProcessorConfig(
        model_source=asked.model,
        engine_kwargs={
            "hf_overrides": {"architectures": [f"Foveate{architecture}"], "foveate": setting},
            **asked.engine,
        },
        placement_group_config={"bundles": [{device: 1}]},
        # Ray 2.60 prepares messages by a module that vLLM 0.32 has moved: the prompt and the picture come from below.
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    content = [{"type": "image"}, {"type": "text", "text": asked.prompt}]
    processor = AutoProcessor.from_pretrained(asked.model)
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    answer = build_processor(
        config,
        preprocess=lambda row: {
            "id": row["id"],
            "prompt": prompt,
            "multimodal_data": {"image": Image.open(row["image"])},
            "sampling_params": {"temperature": 0, "max_tokens": 16},
        },
        postprocess=lambda row: {
            "id": row["id"],
            "answer": row["generated_text"],
            "prompt_tokens": row["num_input_tokens"],
        },
    )
    rows, answers = (path if "://" in path else str(Path(path).absolute()) for path in (asked.rows, asked.answers))
    answer(ray.data.read_parquet(rows)).write_parquet(answers)


main()
