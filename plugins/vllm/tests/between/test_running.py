"""Stages between layers under what a server does: few blocks, chunks, several processes, steps that cost nothing."""

import pytest

from foveate.errors import SettingError
from tests.between.models import METHODS, NEAR, SIX, Ask, Reference, answers, asks, engine, misses, use

V2DROP, _, FASTV, *_ = METHODS
LONG = Ask(question="What comes next in this story? " + "It goes on and on, and says little. " * 12)


@pytest.fixture(scope="module")
def reference(llava_folder):
    return Reference(llava_folder)


@pytest.fixture(scope="module")
def chunks(llava_folder):
    """An engine whose steps have room for one prompt with images and a part of another."""
    with engine(llava_folder, V2DROP, max_num_batched_tokens=130, max_num_seqs=6) as llm:
        yield llm


def as_on_transformers(made, reference, questions, method, new):
    near = NEAR * max(1, new / 16)  # errors of rounding grow with the answer
    for got, ask in zip(answers(made, questions, new), questions, strict=True):
        assert misses(got, reference.answer(ask, method, new)) < near


@pytest.mark.parametrize("method", [V2DROP, FASTV])
def test_a_request_that_was_preempted_is_computed_again_with_the_same_tokens(
    llava_folder, reference, method, monkeypatch
):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    original = Scheduler._preempt_request

    def noted(self, request, *args, **options):
        preempted.append(request.request_id)
        return original(self, request, *args, **options)

    monkeypatch.setattr(Scheduler, "_preempt_request", noted)
    few = {"max_model_len": 192, "num_gpu_blocks_override": 9, "max_num_seqs": 3}
    with engine(llava_folder, method, **few) as llm:
        as_on_transformers(llm, reference, SIX[:4], method, 50)
    assert preempted


@pytest.mark.parametrize("method", [V2DROP, FASTV])
def test_prompts_without_images_are_cut_into_chunks_and_those_with_images_wait(chunks, reference, method, monkeypatch):
    from foveate_vllm.lost import Lost

    steps = []
    original = Lost.of

    def noted(self, batch, *rest):
        steps.append(batch)
        return original(self, batch, *rest)

    monkeypatch.setattr(Lost, "of", noted)
    use(chunks, method)
    questions = (SIX[0], LONG, *SIX[1:], LONG)
    as_on_transformers(chunks, reference, questions, method, 8)
    assert any(1 < count < length for batch in steps for count, length in zip(batch.counts, batch.lengths, strict=True))


def test_a_prompt_with_images_that_found_no_room_is_not_overtaken(chunks, monkeypatch):
    """Behind it vLLM 0.32 lets no other prompt begin in that step, and 0.33 does."""
    from vllm.v1.core.sched.scheduler import Scheduler

    arrived, began = [], []
    add, schedule = Scheduler.add_request, Scheduler.schedule

    def noted_arrival(self, request):
        arrived.append(request.request_id)
        add(self, request)

    def noted_step(self, *args, **options):
        step = schedule(self, *args, **options)
        began.extend(request.req_id for request in step.scheduled_new_reqs)
        return step

    monkeypatch.setattr(Scheduler, "add_request", noted_arrival)
    monkeypatch.setattr(Scheduler, "schedule", noted_step)
    use(chunks, V2DROP)
    answers(chunks, (LONG, SIX[0], LONG, SIX[1], SIX[2], LONG), 4)
    assert began == arrived


def test_plain_decode_steps_build_no_metadata_of_their_own(chunks, monkeypatch):
    """vLLM builds its own once a step; a cut adds one in the steps in which rows leave, and in no other."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    from foveate_vllm.layout import Layout

    built, laid_out = [], []
    build, lay_out = CPUAttentionMetadataBuilder.build, Layout.__init__

    def counted(self, *args, **options):
        built.append(self)
        return build(self, *args, **options)

    def counted_layout(self, *args, **options):
        laid_out.append(self)
        lay_out(self, *args, **options)

    monkeypatch.setattr(CPUAttentionMetadataBuilder, "build", counted)
    monkeypatch.setattr(Layout, "__init__", counted_layout)
    use(chunks, V2DROP)
    cuts, sizes = 2, []
    for new in (4, 24):
        built.clear()
        laid_out.clear()
        answers(chunks, [SIX[0]], new)
        assert len(built) == new + cuts
        sizes.append(len(laid_out))
    assert sizes[0] == sizes[1] == 1 + 2 * cuts  # the step with the image, and the first one behind it
    built.clear()
    laid_out.clear()
    answers(chunks, [SIX[1]], 8)
    assert len(built) == 8


def test_a_request_that_cannot_be_cut_is_refused_and_the_engine_goes_on(chunks, reference):
    floor = "v2drop:layers=3,4,5;tokens=30"
    use(chunks, V2DROP)
    (before,) = answers(chunks, SIX[:1])
    with pytest.raises(
        ValueError, match=r"prompt with images has \d+ tokens, and a step of the server computes at most"
    ):
        answers(chunks, [Ask(SIX[0].images * 3, LONG.question)])
    use(chunks, "fastv:layers=2;keep=0.5+uniform:layers=4;keep=0.5;scope=image")
    with pytest.raises(ValueError, match=r"cannot cut a prompt with 2 images.*Give both the same scope"):
        answers(chunks, [SIX[2]])
    use(chunks, floor)
    with pytest.raises(SettingError, match="floor is"):
        answers(chunks, [Ask((SIX[0].images[0], SIX[2].images[0]))])
    use(chunks, V2DROP)
    assert answers(chunks, SIX[:1]) == [before]


def test_text_is_read_from_the_prefix_cache_and_pictures_never(llava_folder, reference):
    """A text that begins as a prompt with a picture shares blocks with it, and another picture reads none of it."""
    from vllm import SamplingParams

    opening = "This is a long opening that comes in front of each question, and says nothing of any use to anybody. "
    ask = Ask((SIX[0].images[0],), "How many words?", opening)
    text = Ask((), "", opening + "So what comes next?")
    other = Ask((SIX[3].images[0],), "How many words?", opening)
    wanted = {id(one): reference.answer(one, V2DROP, 12) for one in (ask, text, other)}
    sampling = SamplingParams(temperature=0, max_tokens=12)
    with engine(llava_folder, V2DROP, enable_prefix_caching=True, max_num_seqs=4) as llm:
        for questions, cached in (([ask], [0]), ([text], [64]), ([ask, text, other, text], [0, 64, 0, 64])):
            outputs = llm.generate(asks(llm, questions), sampling, use_tqdm=False)
            assert [min(64, output.num_cached_tokens) for output in outputs] == cached
            for got, one in zip(answers(llm, questions, 12), questions, strict=True):
                assert misses(got, wanted[id(one)]) < NEAR


def test_two_processes_share_the_heads_and_cut_alike(llava_folder, reference):
    with engine(llava_folder, FASTV, tensor_parallel_size=2) as llm:
        as_on_transformers(llm, reference, SIX[:3], FASTV, 6)
