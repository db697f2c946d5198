"""Trainers: transformers' own, TRL's with LoRA and its collator, two processes, and the examples for users."""

import contextlib
import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from PIL import Image
from torch import distributed

import foveate as fv
from foveate import embedded
from tests.cli.conftest import save_tiny_llava
from tests.models import batch, is_vision, tiny

trl = pytest.importorskip("trl", reason="could not import trl: see make setup")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
EXAMPLES = Path(__file__).parents[2] / "examples"
METHODS = {"none": None, "v2drop": fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5)), "divprune": fv.DivPrune(retention=1 / 3)}
QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


def script(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train():
    return script("train")


def dropping(model, method):
    return contextlib.nullcontext() if method is None else fv.drop(model, method)


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def with_labels(words, dtype=torch.float32):
    inputs = {name: one.to(dtype) if one.is_floating_point() else one for name, one in batch("llava", words).items()}
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill(is_vision(ids) | (inputs["attention_mask"] == 0), -100)}


# -- transformers' Trainer -----------------------------------------------------------------------------------------


def trained(method, folder):
    """The weights after two steps of the Trainer on one batch, and the losses."""
    both = with_labels(["ti", "it"])
    rows = [{name: values[place] for name, values in both.items()} for place in range(2)]
    model = copy.deepcopy(tiny("llava"))
    setup = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=2, **setup, **QUIET, dataloader_pin_memory=False
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    with dropping(model, method):
        trainer.train()
    return model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_trainer_with_all_tokens_is_the_plain_one(tmp_path):
    plain, losses = trained(None, tmp_path)
    kept, same = trained(fv.DivPrune(retention=1.0), tmp_path)
    assert same == losses
    assert all(torch.equal(kept[name], weight) for name, weight in plain.items())


def test_the_trainer_at_a_third_is_a_plain_loop_at_a_third(tmp_path):
    weights, losses = trained(METHODS["divprune"], tmp_path)
    model, inputs, expected = copy.deepcopy(tiny("llava")).train(), with_labels(["ti", "it"]), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with fv.drop(model, METHODS["divprune"]) as trace:
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        expected.append(loss.item())
    assert trace.tokens[0] < 25
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


# -- TRL's SFTTrainer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny LLaVA with a chat template that writes answers too."""
    template = (embedded.path() / "chat_template.jinja").read_text()
    return save_tiny_llava(tmp_path_factory.mktemp("tiny"), side=56, layers=4, template=template)


@pytest.fixture
def data(tmp_path):
    """Eight rows about four pictures."""
    rows = []
    for number in range(8):
        name = f"{number // 2}.png"
        Image.new("RGB", (56, 56), (60 * number, 99, 20)).save(tmp_path / name)
        rows.append({"image": name, "question": "What is this ?", "answer": f"w{number}"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def sft(train, folder, data, tmp_path):
    """Makes a trainer of the tiny model with LoRA and TRL's own collator and defaults, checkpointing among them."""

    def make(kind=trl.SFTTrainer, messages=False, **settings):
        vlm = fv.load(folder, device="cpu", dtype="float32")
        rows = train.for_trl(train.read(data))
        if messages:
            rows = rows.map(lambda row: {"messages": row["prompt"] + row["completion"]})
            rows = rows.remove_columns(["prompt", "completion"])
        return kind(
            model=vlm.model,
            processing_class=vlm.processor,
            train_dataset=rows,
            peft_config=peft.LoraConfig(r=2, target_modules=".*language_model.*(q_proj|v_proj)"),
            args=trl.SFTConfig(
                str(tmp_path / "out"), **QUIET, per_device_train_batch_size=2, max_length=None, **settings
            ),
        )

    return make


def test_sft_with_all_tokens_is_the_plain_one(sft):
    results = []
    for retention in (None, 1.0, 0.5):
        trainer = sft(max_steps=2)
        with dropping(trainer.model, retention and fv.DivPrune(retention=retention)):
            trainer.train()
        assert trainer.model.is_gradient_checkpointing
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append((losses, peft.get_peft_model_state_dict(trainer.model)))
    (losses, weights), (same, kept), (other, _) = results
    assert same == losses != other
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())


def test_sft_on_messages_is_refused_with_the_line_that_masks(sft):
    trainer = sft(messages=True, max_steps=1)
    with fv.drop(trainer.model, "divprune", retention=0.5), pytest.raises(fv.UnsupportedError, match="Mask them"):
        trainer.train()


def test_the_budget_of_a_step_is_drawn_by_its_number(train, sft, monkeypatch):
    real, drawn = fv.drop, []

    def drop(model, method, *, retention):
        drawn.append(retention)
        return real(model, method, retention=retention)

    monkeypatch.setattr(fv, "drop", drop)
    for _ in range(2):
        trainer = sft(train.FewTokens, max_steps=4, gradient_accumulation_steps=2, seed=len(drawn))
        trainer.budgets = (1.0, 0.5)
        trainer.train()
    first, second = drawn[:8], drawn[8:]
    assert first == second
    assert first[::2] == first[1::2]  # of one step, whose gradients are summed
    assert set(first) == {1.0, 0.5}


# -- two processes -------------------------------------------------------------------------------------------------

WORDS = (["ti", "tit"], ["it", "ti"])
"""What each of two processes trains on."""


def half(rank, folder):
    """Save the gradients of one process of two."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(
        copy.deepcopy(tiny("llava")).double().train(), find_unused_parameters=True
    )
    for name, method in METHODS.items():
        model.zero_grad()
        with dropping(model.module, method):
            model(**with_labels(WORDS[rank], torch.float64), use_cache=False).loss.backward()
        torch.save(gradients(model.module), folder / f"{name}-{rank}.pt")
    distributed.destroy_process_group()


def test_gradients_of_two_processes_are_the_mean_of_both(tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.setups.test_trainers import half; "
        "half(int(sys.argv[1]), Path(sys.argv[2]))"
    )
    # New processes: autograd does not run in a fork of one that has trained.
    command = [sys.executable, "-c", program]
    children = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors
    model = copy.deepcopy(tiny("llava")).double().train()
    for name, method in METHODS.items():
        model.zero_grad(set_to_none=True)
        for words in WORDS:
            with dropping(model, method):
                loss = model(**with_labels(words, torch.float64), use_cache=False).loss
            (loss / 2).backward()
        expected = gradients(model)
        for rank in range(2):
            of_rank = torch.load(tmp_path / f"{name}-{rank}.pt")
            assert expected.keys() <= of_rank.keys()
            for weight, gradient in expected.items():
                torch.testing.assert_close(of_rank[weight], gradient, rtol=1e-9, atol=1e-12)


# -- a picture once, and its questions behind its cache ------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "smolvlm", "gemma3"])
def test_questions_behind_one_picture_have_the_gradients_of_separate_samples(family):
    example, model = script("train_shared"), copy.deepcopy(tiny(family)).double().train()
    prefix = {name: one.double() if one.is_floating_point() else one for name, one in batch(family, ["i", "i"]).items()}
    ids = torch.tensor([[7, 8, 9, 11, 12], [8, 9, 13, 14, 15], [9, 10, 16, 0, 0]])
    labels = ids.masked_fill((torch.arange(5) < 2) | (ids == 0), -100)
    for method in METHODS.values():
        results = []
        for logits_of in (example.shared, example.separate):
            model.zero_grad(set_to_none=True)
            with dropping(model, method):
                loss, _ = example.step(logits_of, model, labels, prefix, ids, torch.tensor([0, 1, 1]))
            results.append((loss, gradients(model)))
        (loss, shared), (other, separate) = results
        assert loss == pytest.approx(other, rel=1e-6)
        assert shared.keys() == separate.keys()
        for name, gradient in separate.items():
            torch.testing.assert_close(shared[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_picture_that_sees_the_question_is_refused():
    inputs, ids = batch("paligemma", ["i"]), torch.tensor([[7, 8]])
    with pytest.raises(fv.UnsupportedError, match="question"):
        script("train_shared").shared(tiny("paligemma"), inputs, ids, torch.tensor([0]))


# -- the example ---------------------------------------------------------------------------------------------------


def test_the_example_trains_on_ones_own_rows_and_saves_the_adapter(train, folder, data, tmp_path, capsys):
    out = tmp_path / "adapter"
    words = ["--model", folder, "--data", data, "--output", out, "--steps", 2, "--batch", 2, "--retention", "1/2"]
    train.main([*map(str, words)])
    table = capsys.readouterr().out
    assert "2 questions about pictures that were not trained on" in table
    assert table.count("%") == 4
    vlm = fv.load(out)
    adapted = {name.partition(".lora_")[0] for name, _ in vlm.model.named_parameters() if ".lora_" in name}
    assert len(adapted) == 7 * 4  # every product of the decoder's four layers, and nothing of the tower
    assert all("language_model" in name for name in adapted)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit, match="exists"):
        train.main([*map(str, words)])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_example_trains_on_the_prompts_that_are_asked(train):
    vlm = fv.load()
    row = train.Row([Image.open(embedded.picture())], "What does the text say?", ("36KUM",))
    asked = vlm.prepare(row.pictures, row.question).inputs["input_ids"]
    train.begin_as_asked(vlm, int(asked[0, 0]))
    collator = trl.trainer.sft_trainer.DataCollatorForVisionLanguageModeling(vlm.processor, completion_only_loss=True)
    inputs = collator(list(train.for_trl([row])))
    answer = inputs["labels"][0, asked.shape[1] :]
    assert torch.equal(inputs["input_ids"][:, : asked.shape[1]], asked)
    assert vlm.tokenizer.decode(answer) == "36KUM</s>"
    assert (inputs["labels"][0, : asked.shape[1]] == -100).all()
    assert torch.equal(vlm.prepare(row.pictures, row.question).inputs["input_ids"], asked)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"image": "0.png", "question": "What ?"}, "row 2 has no answer"),
        ({"image": "0.png", "question": "What ?", "answer": ""}, "row 2 has no answer"),
        ({"image": "0.png", "answer": "w1"}, "row 2: .*question"),
        ({"image": "no.png", "question": "What ?", "answer": "w1"}, "row 2 has no picture"),
        ({"image": "rows.jsonl", "question": "What ?", "answer": "w1"}, "row 2 has no picture"),
        ("no JSON", "row 2: "),
    ],
)
def test_the_example_names_the_row_that_cannot_be_trained_on(train, data, second, words):
    lines = data.read_text().splitlines()
    lines[1] = second if isinstance(second, str) else json.dumps(second)
    data.write_text("\n".join(lines))
    with pytest.raises(SystemExit, match=words):
        train.main(["--data", str(data), "--output", str(data.parent / "new")])


def test_the_example_says_what_is_missing(train, data, tmp_path):
    with pytest.raises(SystemExit, match="--data"):
        train.main(["--model", "someones/model", "--output", str(tmp_path / "new")])
    data.write_text(data.read_text().splitlines()[0])
    with pytest.raises(SystemExit, match="two pictures"):
        train.main(["--data", str(data), "--output", str(tmp_path / "new")])


def test_the_example_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(SystemExit, match=f"trl=={trl.__version__}"):
        script("train")
