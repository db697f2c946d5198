"""Command lines that cannot be meant end with 2, and in words that name what is wrong."""

import shlex

import pytest

from foveate.embedded import picture

REFUSED = """
comparre | compare
generate --retenton 0.5 | --retention
generate --budget 33% | --retention
generate --retention 133% | 1/3
generate --max-new-tokens 0 | 1,000,000
generate --set | --set
generate --dtype int3 | int3
generate --frames 0 | --frames
compare --pairs 1 | 1,000,000
eval --flops 0.4 --retention 0.4 | give one
eval --flops 0.4 --flops 1 | below 1
eval --flops 0.4 --method v2drop/llava-1.5-7b/192 --method divprune | v2drop/llava-1.5-7b/192
eval --flops 0.4 --method finalkv | finalkv
compare --flops 0.4 --method divprune --method 'v2drop:layers=3;keep=0.5' | keep=0.5
demo --port 65536 | 65,535
bench --bach 3 --modle x | --model
bench --seed -1 | --seed
bench --method v2drop --method v2drop | twice
bench --method all --method v2drop | 'all'
bench --model cpu-tiny --images 2 --frames 4 | exclude
bench --model llava-1.5-7b --frames 4 | pictures
bench --model cpu-tiny --budget 600 | 576
bench --model cpu-tiny --device cpu --attention flex_attention | CUDA
bench --model cpu-tiny --device nowhere | available
bench --model cpu-tiny --device cpu --cuda-graphs | CUDA
bench --ladder --method v2drop --method vidcom2 | one --method
batch FOLDER out | The question
batch FOLDER out --prompt ' ' | empty
batch FOLDER out --prompt x --batch-size 0 | --batch-size
batch FOLDER out --prompt x --id-column name | columns
batch FOLDER out --prompt x --untouched --retention 0.3 | --untouched
batch FOLDER out --prompt x --ray auto | examples/clusters/on_ray.py
batch FOLDER/in.jsonl out --number-rows --id-column name | --id-column
batch FOLDER/in.jsonl out --prompt x --question-column text | --question-column
batch FOLDER/in.jsonl out --root nowhere | --root
generate --cuda-graphs | --cuda-graphs
demo --method v2drop | is not a second look
count PICTURE --budget 9 | name it with --method
count --model a/b | The image is missing.
generate --out out.txt | must end in .json
eval --out out.xlsx | must end in .json
tune PICTURE --prompt x --retention 0.5 --out .csv | must end in .json
tune PICTURE --prompt x | --budget or --retention
tune --retention 0.5 | Give either image files
tune --samples FOLDER --retention 0.5 | file of samples
tune PICTURE --retention 0.5 | The question is missing.
tune PICTURE --prompt x --budget 9 --budget 5 | One preset
tune --samples a.jsonl --prompt x --retention 0.5 | leave out --prompt
tune PICTURE --prompt x --retention 0.5 --method mustdrop --set global_thr=low | global_thr should be a valid number
eval --tasks smell | smell
eval --tasks pope | benchmarks with lmms-eval
eval --tasks colr | Did you mean colour?
eval --logs nowhere | name the full model's
eval --logs a b --method v2drop | --method does not apply to --logs
eval --include somewhere | --include applies only to --logs
eval --budget 64 --retention 0.1 | each set the budget
eval --budget 64 --budget 64 | given twice
eval --budget 900 | 576 vision tokens
eval --seed 7 --seed 7 | different numbers
eval --questions 1 --seed 7 --seed 8 | one question per seed
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_what_cannot_be_meant_is_refused_with_what_would_have_been_right(run, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder := tmp_path / "in").mkdir()
    (folder / "in.jsonl").write_text('{"id": "a", "image": "a.png", "question": "What?"}\n')
    words, _, word = line.partition(" | ")
    words = words.replace("FOLDER", str(folder)).replace("PICTURE", str(picture()))
    code, out, err = run(*shlex.split(words))
    assert (code, out) == (2, "")
    assert word in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.glob("cache/**/part-*")]
