"""Train one stage of the embedded model on two processes.

    python training/train.py STAGE RUN [--start CHECKPOINT_OR_FOLDER] [--ranks N]

Everything random is a function of the stage and of the images seen, so a run that stops goes on
from its last checkpoint exactly as if it had not stopped.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from data import ask, dense_targets, pictures, relations
from export import import_network
from foveate.embedded.films import FRAMES, SIDE, Film, film
from foveate.embedded.questions import TaskQuestion, film_questions
from foveate.embedded.scenes import Scene, rng_for, scene, sketch
from losses import answer_loss, dense_loss, presence_loss
from network import Network, Shape
from optimiser import Optimiser
from packing import pack
from stages import STAGES, Stage
from tokenizer import build

WARM_UP = 40  # steps
CLIP = 2.0
FILMS = 2  # a step
EVER = 3  # questions a film on whether something appears at all, of a dozen or so


class Trainer:
    """One process's share of a stage.

    Args:
        name: Of the stage in `STAGES`.
        stage: Its settings.
        network: Trained in place.
        rank, ranks: This process and how many there are.
        dtype: Of the activations.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        network: Network,
        rank: int = 0,
        ranks: int = 1,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.name, self.stage, self.network = name, stage, network
        self.rank, self.ranks, self.dtype = rank, ranks, dtype
        self.step, self.seen = 0, 0
        self.tokenizer = build()
        skip = () if stage.joint else ("decoder", "project")
        self.parameters = [p for n, p in network.named_parameters() if not any(map(n.startswith, skip))]
        self.optimiser = Optimiser(network, stage.rates, skip)
        self.gradient = torch.zeros(sum(p.numel() for p in self.parameters))
        for p, view in zip(self.parameters, self.gradient.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = view.view_as(p)

    def factor(self) -> float:
        """Learning-rate multiplier now: warm-up, constant, linear to 2 %."""
        done = self.seen / self.stage.images
        decay = min(1.0, max(0.0, (1 - done) / (1 - self.stage.constant)))
        return min(1.0, (self.step + 1) / WARM_UP) * (0.02 + 0.98 * decay)

    def advance(self) -> dict[str, float]:
        """One step on fresh scenes; returns what to log."""
        stage = self.stage
        rng = np.random.default_rng([stage.first, self.step, 7])
        sides = list(stage.mix)
        side = int(rng.choice(sides, p=[stage.mix[s] for s in sides]))
        frames = int(rng.integers(4, FRAMES + 1)) if stage.films and rng.random() < stage.films else 1
        count = FILMS if frames > 1 else stage.batch[side]
        first = stage.first + self.seen + self.rank * count
        if frames > 1:
            films = [film("train", first + i, frames) for i in range(count)]
            scenes = [frame for one in films for frame in one.frames]
            asked = [self.about(one, first + i) for i, one in enumerate(films)]
            side = SIDE
        else:
            scenes = [self.draw(first + i, side) for i in range(count)]
            asked = [self.ask(one, first + i) for i, one in enumerate(scenes)] if stage.joint else []
        targets = dense_targets(scenes)
        self.gradient.zero_()
        last = self.step % 2 == 0
        features, cls = self.network.tower(pictures(scenes), self.dtype, last=last)
        loss, report = dense_loss(self.network.heads(features[:, 1:]), targets)
        loss = loss * stage.dense_weight
        if cls is not None:
            loss = loss + stage.presence_weight * presence_loss(self.network.heads.present(cls), targets["present"])
        report["dense"] = loss.item()
        if stage.joint:
            depth = len(self.network.decoder.layers)
            leave = int(rng.integers(stage.exit_from, depth)) if rng.random() < stage.exits else None
            answers, right = self.answers(asked, features, frames, leave)
            loss = loss + answers
            report |= {"answer": answers.item(), **right}
        loss.backward()
        if self.ranks > 1:
            dist.all_reduce(self.gradient)
            self.gradient /= self.ranks
        norm = float(self.gradient.norm())
        if norm > CLIP:
            self.gradient *= CLIP / norm
        self.optimiser.step(self.factor())
        self.step += 1
        self.seen += count * self.ranks
        return {"side": side, "norm": norm, "loss": loss.item(), **report}

    def draw(self, index: int, side: int) -> Scene:
        """Scene number `index` of the stage: a sketch, or of several scenes drawn the one with the most relations."""
        stage, start = self.stage, self.stage.first + self.stage.draws * (index - self.stage.first)
        if rng_for("train", index, purpose=5).random() < stage.sketches:
            return sketch("train", start, side, crowded=start % 100 < 100 * stage.crowded)
        drawn = [scene("train", start + k, side, stage.dense) for k in range(stage.draws)]
        return max(drawn, key=relations) if stage.draws > 1 else drawn[0]

    def ask(self, one: Scene, index: int) -> list[TaskQuestion]:
        """The questions about scene number `index`."""
        return ask(one, rng_for("train", index, purpose=1), self.stage.questions, self.stage.tasks)

    def about(self, one: Film, index: int) -> list[TaskQuestion]:
        """The questions about film number `index`, a few on whether things appear at all."""
        asked = film_questions(one, rng_for("train", index, purpose=1))
        ever = [question for question in asked if question.task == "ever"]
        return [question for question in asked if question.task != "ever"] + ever[:EVER]

    def answers(
        self, drawn: list[list[TaskQuestion]], features: Tensor, frames: int, leave: int | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss over packed questions, and the share of each task's answers that is right throughout."""
        prefix = self.network.prefix(features, frames)
        packed = pack(drawn, self.tokenizer, prefix.shape[1])
        text = self.network.decoder.embed(packed.ids).to(self.dtype)
        hidden = self.network.decoder(prefix, text, packed.position, packed.mask, leave)
        logits = self.network.logits(hidden.flatten(0, 1)[packed.at])
        return answer_loss(logits, packed, [q.task for row in drawn for q in row])

    def state(self) -> dict[str, object]:
        """All that an exact resume needs."""
        return {
            "stage": self.name,
            "shape": asdict(self.network.shape),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seen": self.seen,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Go on where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seen = state["step"], state["seen"]


def fastest_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it; elsewhere it takes six times as long as float32."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def save(state: dict[str, object], path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def adopt(network: Network, weights: dict[str, Tensor]) -> None:
    """Begin with another stage's weights; rows that its auxiliary heads lacked stay as they are drawn."""
    own = network.state_dict()
    for name, tensor in weights.items():
        own[name][: len(tensor)] = tensor
    network.load_state_dict(own)


def work(rank: int, ranks: int, name: str, run: Path, start: Path | None) -> None:
    """One process: resume or start, train to the stage's end, save."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{run}/rendezvous", rank=rank, world_size=ranks)
    checkpoint = run / "checkpoint.pt"
    source = checkpoint if checkpoint.exists() else start
    state = torch.load(source, weights_only=True) if source and source.is_file() else None
    if source and source.is_dir():
        network = import_network(source)
    else:
        network = Network(Shape(**state["shape"]) if state else Shape())
    trainer = Trainer(name, STAGES[name], network, rank, ranks, fastest_dtype())
    if checkpoint.exists():
        trainer.restore(state)
    elif state:
        adopt(network, state["network"])
    began = saved = time.time()
    from_seen = trainer.seen
    sums: dict[tuple[int, str], list[float]] = {}
    while trainer.seen < trainer.stage.images:
        report = trainer.advance()
        for key, value in report.items():
            sums.setdefault((int(report["side"]), key), []).append(value)
        now = time.time()
        if rank == 0 and (trainer.step % 50 == 0 or trainer.seen >= trainer.stage.images):
            rate = (trainer.seen - from_seen) / (now - began)
            line: dict[str, object] = {"time": time.strftime("%H:%M:%S"), "stage": name, "step": trainer.step}
            line |= {"seen": trainer.seen, "rate": round(rate, 1), "factor": round(trainer.factor(), 3)}
            for (side, key), values in sorted(sums.items()):
                if key != "side":
                    line[f"{key}@{side}"] = round(float(np.mean(values)), 4)
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            sums.clear()
        if rank == 0 and now - saved > 120:
            save(trainer.state(), checkpoint)
            saved = now
    if rank == 0:
        save(trainer.state(), checkpoint)


def main() -> None:
    """Parse, start the processes, wait."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=Path, help="checkpoint or exported folder whose weights begin the stage")
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    (args.run / "rendezvous").unlink(missing_ok=True)
    mp.spawn(work, (args.ranks, args.stage, args.run.resolve(), args.start), nprocs=args.ranks)


if __name__ == "__main__":
    main()
