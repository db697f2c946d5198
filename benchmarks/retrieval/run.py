"""Measure how well drawn pages are retrieved by the vectors that are left. Writes record.json and the guide's tables.

    python benchmarks/retrieval/run.py            # about 20 minutes on one core
    python benchmarks/retrieval/run.py --table    # only the tables, from record.json

The embedded model is the retriever: a linear head projects its last hidden states at a page's image tokens. A query is
scored by MaxSim, the mean over its vectors of the best match on the page. The model itself is not trained further, and
heads are trained on all vectors of other pages, never on what dropping leaves. If a run is stopped, the next one
continues from the files in its folder.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from sentence_transformers.multi_vector_encoder.modules.token_pooling import HierarchicalTokenPooling
from torch import Tensor, nn

import foveate as fv
from foveate.bench.timing import ratio, rounds
from foveate.embedded.drawing import COLOURS, SHAPES
from foveate.embedded.scenes import Scene, scene
from foveate.naming import method_of
from foveate.plain.stats import RESAMPLES, estimate
from foveate.plain.table import Column, Table, between
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
PAGE, GUIDE = HERE / "README.md", HERE.parents[1] / "docs/guides/pages.md"
KINDS = ("sparse", "dense")
FIRST = {"sparse": {"train": 20_000, "test": 60_000}, "dense": {"train": 100_000, "test": 140_000}}
"""The number of a split's first scene. The embedded model's own training had none of them."""
WHOLE = 576
"""Vectors of a page without dropping."""
INSIDE = ("divprune", "vidcom2", "tome", "averagepool", "random", "uniform", "resize")
WIDTH, BATCH, RATE, CUTOFF = 32, 4, 1e-2, 5
SHARE_OF_TEXT = 0.5
QUERY_LAYER = 8
"""A query's vectors are the hidden states after this layer. Later ones turn to the next token."""
TASKS = ("text", "things")
THINGS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
"""The kinds of things, in the order of `Pages.has`."""


@dataclass(frozen=True)
class Way:
    """A way from a page to its vectors: dropping inside the model, Ward clustering behind it, or both.

    Attributes:
        name: As in the table.
        method: What drops inside; None for nothing.
        tokens: The method's budget.
        pool: Ward leaves one vector of so many.
    """

    name: str
    method: str | None = None
    tokens: int = WHOLE
    pool: int = 1

    @property
    def vectors(self) -> int:
        """The budget of vectors for a page."""
        return self.tokens // self.pool

    @property
    def key(self) -> str:
        """The name and the vectors, unlike those of any other way."""
        return f"{self.name}, {self.vectors}"

    @property
    def rows(self) -> str:
        """Name of the model's rows, which ways share that differ only behind the model."""
        return "all" if self.method is None else f"{self.method}-{self.tokens}"

    def dropping(self, model: Any, draw: int) -> AbstractContextManager[Any]:
        """The context around the model. Random keeps other places in every draw."""
        if self.method is None:
            return nullcontext()
        settings = {"random": f":layers=0;seed={draw}", "uniform": ":layers=0"}.get(self.method, "")
        return fv.drop(model, method_of(self.method + settings, tokens=self.tokens))

    def pool_page(self, page: Tensor) -> Tensor:
        """What Ward leaves of a page's vectors: (vectors, width) -> (fewer, width), of unit length."""
        return HierarchicalTokenPooling(self.pool, num_protected_tokens=0).pool_one(page) if self.pool > 1 else page


FULL, AGAIN = Way("all vectors"), "all vectors again"
WAYS = (
    FULL,
    *(Way(name, name, 192) for name in INSIDE),
    Way("Ward behind the full model", pool=3),
    *(Way(name, name, 64) for name in INSIDE),
    Way("Ward behind the full model", pool=9),
    Way("divprune to 192, Ward behind", "divprune", 192, pool=3),
    Way("vidcom2 to 192, Ward behind", "vidcom2", 192, pool=3),
)


# -- pages and queries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pages:
    """Drawn pages and what is on them.

    Attributes:
        scenes: The pages.
        words: The texts of each page.
        has: (pages, kinds of things) bool, whether a page has a "red star".
    """

    scenes: list[Scene]
    words: list[list[str]]
    has: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scenes)

    def take(self, numbers: Sequence[int]) -> "Pages":
        return Pages([self.scenes[i] for i in numbers], [self.words[i] for i in numbers], self.has[numbers])

    def unique_words(self, page: int) -> list[str]:
        """The texts of a page that no other page has, also not within a longer text."""
        others = [text for place, texts in enumerate(self.words) if place != page for text in texts]
        return [text for text in self.words[page] if not any(text in other for other in others)]

    def combination(self, page: int) -> list[int] | None:
        """Few kinds of things that no other page has together, by a greedy choice; None if there are none."""
        others, here = np.delete(self.has, page, 0), np.flatnonzero(self.has[page])
        chosen: list[int] = []
        while len(others):
            without = (~others[:, here]).sum(0)
            best = int(here[without.argmax()])
            if not without.max():
                return None
            chosen.append(best)
            others = others[others[:, best]]
        return chosen


def pages_of(kind: str, split: str, count: int) -> Pages:
    """Pages with a text and two things or more. Sparse ones have up to 8 things, dense ones about 55 and 5 texts."""
    scenes: list[Scene] = []
    number = FIRST[kind][split]
    while len(scenes) < count:
        page = scene("held-out", number, dense=kind == "dense")
        number += 1
        if page.texts and len(page.things) > 1:
            scenes.append(page)
    names = [{thing.name for thing in page.things} for page in scenes]
    has = np.array([[name in on_page for name in THINGS] for on_page in names])
    return Pages(scenes, [[text.characters for text in page.texts] for page in scenes], has)


# -- vectors -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rows_of(vlm: fv.VLM, scenes: Sequence[Scene], trace: Any) -> list[Tensor]:
    """The last hidden states of each page at its image tokens: (vectors left, 128). The prompt ends with the page."""
    inputs = [vlm.prepare(page.image, "?").inputs for page in scenes]
    image = inputs[0]["input_ids"][0] == vlm.model.config.image_token_id
    end = int(image.nonzero()[-1]) + 1
    columns = {name: torch.cat([page[name][:, :end] for page in inputs]) for name in ("input_ids", "attention_mask")}
    pixels = torch.cat([page["pixel_values"] for page in inputs])
    hidden = vlm.model.model(**columns, pixel_values=pixels, use_cache=False).last_hidden_state
    left = image[:end].expand(len(scenes), -1)
    if trace is not None:
        left = left & trace.pooling_mask.bool()
    return [page[mask] for page, mask in zip(hidden, left, strict=True)]


def all_rows(vlm: fv.VLM, pages: Pages, way: Way) -> list[Tensor]:
    """The rows of all pages, in half precision."""
    rows: list[Tensor] = []
    for start in range(0, len(pages), BATCH):
        with way.dropping(vlm.model.model, draw=start) as trace:
            batch = rows_of(vlm, pages.scenes[start : start + BATCH], trace)
        rows += [page.half() for page in batch]
    return rows


def from_file(path: Path, compute: Callable[[], Any]) -> Any:
    """What a file has. If it is not there, compute and save it, whole or not at all."""
    if not path.exists():
        part = path.with_suffix(".part")
        torch.save(compute(), part)
        part.replace(path)
        print(path.stem, flush=True)
    return torch.load(path)


@torch.no_grad()
def query_rows(vlm: fv.VLM, texts: Sequence[str]) -> dict[str, Tensor]:
    """The hidden states of short texts, each alone: (tokens, 128)."""
    rows: dict[str, Tensor] = {}
    for start in range(0, len(texts), 64):
        batch = list(texts[start : start + 64])
        inputs = vlm.tokenizer(batch, return_tensors="pt", padding=True, padding_side="right")
        layers = vlm.model.model.language_model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        for text, hidden, mask in zip(batch, layers[QUERY_LAYER], inputs["attention_mask"], strict=True):
            rows[text] = hidden[mask.bool()][1:].clone()  # without the token that begins every text
    return rows


# -- the head ------------------------------------------------------------------------------------------------------


class Side(nn.Module):
    """A linear projection of standardised rows to vectors of unit length."""

    mean: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("spread", rows.std(0) + 1e-4)
        self.linear = nn.Linear(rows.shape[-1], WIDTH)

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(self.linear((rows - self.mean) / self.spread), dim=-1)


class Head(nn.Module):
    """The projections of pages and of queries, and the loss's log scale."""

    def __init__(self, pages: Tensor, queries: Tensor) -> None:
        super().__init__()
        self.page, self.query = Side(pages), Side(queries)
        self.scale = nn.Parameter(torch.tensor(2.5))


def scores(queries: Sequence[Tensor], pages: Sequence[Tensor]) -> Tensor:
    """MaxSim of every query with every page: (queries, pages)."""
    rows = torch.cat(list(queries))
    best = torch.stack([(rows @ page.T).amax(-1) for page in pages], dim=1)  # (rows of all queries, pages)
    return torch.stack([part.mean(0) for part in best.split([len(query) for query in queries])])


def query(rows: dict[str, Tensor], pages: Pages, page: int, rng: Generator) -> Tensor | None:
    """A query for which this page alone is right, by a text or by things; None if it has none."""
    if rng.random() < SHARE_OF_TEXT:
        words = pages.unique_words(page)
        return rows[words[rng.integers(len(words))]] if words else None
    chosen = pages.combination(page)
    return None if chosen is None else torch.cat([rows[THINGS[number]] for number in chosen])


def fit(sets: Sequence[tuple[Pages, Tensor]], rows: dict[str, Tensor], seed: int, steps: int) -> dict[str, Tensor]:
    """Train a head to tell a query's page from the others in its batch, by all vectors of each. Returns its weights.

    Args:
        sets: The pages and their rows, (pages, 576, 128). Steps take them in turn.
        rows: The rows of all texts and names.
        seed: Of the weights and the batches.
        steps: How many batches of 32 pages.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = Head(torch.cat([of_pages[:16].flatten(0, 1) for _, of_pages in sets]), torch.cat(list(rows.values())))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        pages, of_pages = sets[step % len(sets)]
        numbers = rng.choice(len(pages), min(32, len(pages)), replace=False)
        batch = pages.take(numbers)
        queries = {page: query(rows, batch, page, rng) for page in range(len(batch))}
        asked = {page: head.query(of_query) for page, of_query in queries.items() if of_query is not None}
        logits = scores(list(asked.values()), head.page(of_pages[numbers])) * head.scale.exp()
        loss = F.cross_entropy(logits, torch.tensor(list(asked)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.state_dict()


# -- figures -------------------------------------------------------------------------------------------------------

Query = tuple[int, int, Tensor]
"""The task, by its place in `TASKS`, the right page, and the rows."""


def queries(pages: Pages, rows: dict[str, Tensor]) -> list[Query]:
    """Every text that one page alone has, and for each page the fewest things that no other has together."""
    asked: list[Query] = []
    for page in range(len(pages)):
        asked += [(0, page, rows[text]) for text in pages.unique_words(page)]
        chosen = pages.combination(page)
        if chosen is not None:
            asked.append((1, page, torch.cat([rows[THINGS[number]] for number in chosen])))
    return asked


@torch.no_grad()
def by_page(head: Head, asked: Sequence[Query], vectors: Sequence[Tensor]) -> NDArray[np.float64]:
    """Mean recall@1 and nDCG@5 of each task's queries on each page: (tasks, 2, pages), NaN where there is no query."""
    tasks, right, rows = zip(*asked, strict=True)
    tasks, right = np.array(tasks), np.array(right)
    maxsim = scores([head.query(of_query) for of_query in rows], vectors).numpy()
    rank = (maxsim >= maxsim[np.arange(len(right)), right][:, None]).sum(
        1
    )  # 1 is best; equal pages come before the right
    figures = np.stack((rank == 1, np.where(rank <= CUTOFF, 1 / np.log2(rank + 1), 0)))
    result = np.full((len(TASKS), 2, len(vectors)), np.nan)
    for task, page in sorted(set(zip(tasks, right, strict=True))):
        result[task, :, page] = figures[:, (tasks == task) & (right == page)].mean(1)
    return result


def resamples(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds and pages, then that of each resample of both: (seeds, tasks, 2, pages) -> (1 + n, tasks, 2)."""
    seeds, pages = values.shape[0], values.shape[-1]
    rng = np.random.default_rng(0)
    means = [np.nanmean(values, axis=(0, 3))]
    for _ in range(RESAMPLES):
        of_seeds, of_pages = rng.integers(0, seeds, seeds), rng.integers(0, pages, pages)
        means.append(np.nanmean(values[of_seeds][..., of_pages], axis=(0, 3)))
    return np.stack(means)


def figures_of(values: dict[Way, NDArray[np.float64]], sizes: dict[Way, float]) -> list[dict[str, Any]]:
    """A row for each way: recall@1 by task, nDCG@5 over both, and its paired differences.

    They are to all vectors, and to Ward behind the full model at as many vectors.
    """
    means = {way: resamples(of_way) for way, of_way in values.items()}
    ndcg = {way: of_way[:, :, 1].mean(1) for way, of_way in means.items()}
    behind = {way.vectors: ndcg[way] for way in values if way.method is None}
    rows = []
    for way, of_way in means.items():
        recalls = {task: estimate(of_way[:, number, 0]).to_dict() for number, task in enumerate(TASKS)}
        row = {"key": way.key, "name": way.name, "vectors": round(sizes[way], 1), "recall@1": recalls}
        row |= {"nDCG@5": estimate(ndcg[way]).to_dict(), "minus all": estimate(ndcg[way] - ndcg[FULL]).to_dict()}
        row["minus Ward"] = estimate(ndcg[way] - behind[way.vectors]).to_dict()
        rows.append(row)
    return rows


def seconds(vlm: fv.VLM, head: Head, way: Way, scenes: Sequence[Scene]) -> float:
    """Processor seconds from pictures to vectors, in an open context."""
    with way.dropping(vlm.model.model, draw=0) as trace, torch.no_grad():
        start = process_time()
        for page in rows_of(vlm, scenes, trace):
            way.pool_page(head.page(page))
        return process_time() - start


def times(vlm: fv.VLM, head: Head, scenes: Sequence[Scene], count: int) -> dict[str, Any]:
    """The time of each way as a ratio to that of all vectors, by paired rounds."""
    runs = {way.key: partial(seconds, vlm, head, way, scenes) for way in WAYS}
    runs[AGAIN] = partial(seconds, vlm, head, FULL, scenes)
    each = list(rounds(runs, count))
    series = {name: [one[name] for one in each] for name in runs}
    base = series[FULL.key]
    return {name: ratio(of_run, base).to_dict() for name, of_run in series.items() if name != FULL.key}


# -- the table -----------------------------------------------------------------------------------------------------


def change(figure: dict[str, float]) -> str:
    """A difference with its interval."""
    return f"{figure['value']:+z.3f} [{figure['low']:+z.3f}, {figure['high']:+z.3f}]"


def faster(time: dict[str, float]) -> str:
    """How many times the pages a second, from a ratio of times, with its interval."""
    return f"{1 / time['median']:.2f} [{1 / time['high']:.2f}, {1 / time['low']:.2f}]"


def line(row: dict[str, Any], times: dict[str, Any]) -> list[str]:
    """A row of the full table."""
    key, task = row["key"], row["recall@1"]
    figures = [f"{task['text']['value']:.2f}", f"{task['things']['value']:.2f}", f"{row['nDCG@5']['value']:.3f}"]
    if key == FULL.key:
        return [row["name"], f"{row['vectors']:.0f}", "1", *figures, "", ""]
    ward = "" if row["minus Ward"]["low"] == row["minus Ward"]["high"] else change(row["minus Ward"])
    return [row["name"], f"{row['vectors']:.0f}", faster(times[key]), *figures, change(row["minus all"]), ward]


HEADS = ("vectors", "pages a second, times", "recall@1 text", "things", "nDCG@5", "minus all", "minus Ward behind")
RECALL = slice(3, 5)
"""The columns of the recall, which the guide leaves out."""
FEW = (
    "all vectors",
    "divprune",
    "vidcom2",
    "random",
    "Ward behind the full model",
    "divprune to 192, Ward behind",
    "chance",
)
"""The rows of the guide."""


def table(record: dict[str, Any], few: bool = False) -> str:
    """A table for each kind of page, each after a sentence on its pages and queries, and the control of the times.

    With `few`, the rows and columns of the guide.
    """
    columns = [Column(head, right=True) for head in HEADS]
    at_1, ndcg = (f"{record['chance'][name]:.3f}" for name in ("recall@1", "nDCG@5"))
    lines = []
    for kind, measured in record["kinds"].items():
        queries = measured["queries"]
        asked = f"{record['test']} pages, {queries['text']} queries for a text and {queries['things']} for things"
        lines += [f"**{kind.capitalize()}**: {asked}.", ""]
        cells = [line(row, record["times"]) for row in measured["rows"]]
        cells.append(["chance", "", "", at_1, at_1, ndcg, "", ""])
        heads = ["kept", *columns]
        if few:
            cells = [row for row in cells if row[0] in FEW]
            for row in (heads, *cells):
                del row[RECALL]
        lines += [Table("", heads, cells).to_markdown(escape=False)]
    control = faster(record["times"][AGAIN])
    return "\n".join([*lines, f"Control: all vectors, timed again, {control} times the pages a second.", ""])


def guide(page: str, record: dict[str, Any]) -> str:
    """The guide with the table of a record."""
    return between(page, "retrieval", table(record, few=True))


def filled(page: str, record: dict[str, Any]) -> str:
    """README.md with the full table of a record."""
    return between(page, "retrieval", table(record))


# -- the run -------------------------------------------------------------------------------------------------------


def resumable(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or refuse one whose files other settings made."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings)
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{path} has other settings: {path.read_text()}. Give another --folder, or delete this one.")
    path.write_text(text)


def measure(vlm: fv.VLM, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of each kind of page, and the times."""
    splits = {
        kind: {split: pages_of(kind, split, getattr(arguments, split)) for split in FIRST[kind]} for kind in KINDS
    }
    texts = {text for of in splits.values() for pages in of.values() for words in pages.words for text in words}
    rows = query_rows(vlm, [*THINGS, *sorted(texts)])
    sets = []
    for kind in KINDS:
        pages = splits[kind]["train"]
        of_pages = from_file(folder / f"{kind}-train-all.pt", partial(all_rows, vlm, pages, FULL))
        sets.append((pages, torch.stack(of_pages).float()))
    heads = []
    for seed in range(arguments.seeds):
        weights = from_file(folder / f"head-{seed}.pt", partial(fit, sets, rows, seed, arguments.steps))
        heads.append(Head(*torch.zeros(2, 2, weights["page.mean"].numel())))
        heads[-1].load_state_dict(weights)
    kinds = {}
    for kind in KINDS:
        pages = splits[kind]["test"]
        asked = queries(pages, rows)
        values, sizes = {}, {}
        for way in WAYS:
            of_pages = from_file(folder / f"{kind}-test-{way.rows}.pt", partial(all_rows, vlm, pages, way))
            with torch.no_grad():
                vectors = [[way.pool_page(head.page(page.float())) for page in of_pages] for head in heads]
            sizes[way] = float(np.mean([len(page) for page in vectors[0]]))
            values[way] = np.stack([by_page(head, asked, of) for head, of in zip(heads, vectors, strict=True)])
            print(kind, way.key, flush=True)
        counts = {name: sum(task == number for task, _, _ in asked) for number, name in enumerate(TASKS)}
        kinds[kind] = {"queries": counts, "rows": figures_of(values, sizes)}
    return {"kinds": kinds, "times": times(vlm, heads[0], splits["sparse"]["test"].scenes[:2], arguments.rounds)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write the record, and fill in the guide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/retrieval"), help="files to go on from")
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    for name, count in {"train": 400, "test": 96, "steps": 1500, "seeds": 3, "rounds": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args(words)
    if not arguments.table:
        torch.set_num_threads(1)  # processor time is then that of one core, even on a busy machine
        settings = {name: getattr(arguments, name) for name in ("train", "test", "steps", "seeds", "rounds")}
        settings = {"commit": commit(), "versions": versions(), **settings}
        resumable(arguments.folder, settings)
        places = sum(1 / np.log2(place + 1) for place in range(1, CUTOFF + 1))
        chance = {"recall@1": 1 / arguments.test, "nDCG@5": places / arguments.test}
        record = {"command": "python benchmarks/retrieval/run.py", **settings, "chance": chance}
        record |= measure(fv.load(), arguments.folder, arguments)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.out == HERE / "record.json":
        record = json.loads(arguments.out.read_text(encoding="utf-8"))
        for path, fill in ((PAGE, filled), (GUIDE, guide)):
            path.write_text(fill(path.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
