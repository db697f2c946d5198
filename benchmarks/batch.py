"""Measure the overhead of a batch job of a million rows without a model. Writes benchmarks/batch.json and prints it.

    python benchmarks/batch.py                  # two minutes on one idle core
    python benchmarks/batch.py --rows 20000     # a trial run

The input is generated. One recorded answer is returned for every row, so all time and memory measured here goes into
reading, checking and writing rows and recording progress. The job is stopped after half of its rows and resumed. For
comparison, the embedded model answers a few rows about its own picture.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from foveate import embedded
from foveate.batch.job import Job, Summary, run
from foveate.batch.rows import RowAsking, bad_row, beside
from foveate.naming import parse
from foveate.runs.crew import Done
from foveate.runs.listener import Listener
from foveate.runs.samples import Bad
from foveate.runs.versions import versions

OUT = Path(__file__).with_suffix(".json")
LOOKS = 20
MODEL_ROWS = 40


class Recorded:
    """Return one recorded answer for every row, and sample the memory of this process on the way.

    Args:
        answer: The recorded answer.
        every: Rows between two samples.
    """

    def __init__(self, answer: dict[str, Any], every: int) -> None:
        self.answer, self.every = answer, every
        self.memory: list[tuple[int, float]] = []

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def about(self) -> dict[str, Any]:
        """Return the conditions of the job. There is no model."""
        return {"recorded": self.answer["answer"]}

    def work(self, items: Any, stopped: Any) -> Iterator[Done]:
        """Yield the recorded answer for every row."""
        for chunk in items:
            yield (
                chunk,
                [
                    bad_row(one, one.reason)
                    if isinstance(one, Bad)
                    else beside(one.record, {**self.answer, "row": one.number, "id": one.id})
                    for one in chunk
                ],
            )
            if chunk[0].number // self.every != (chunk[-1].number + 1) // self.every:
                self.memory.append((chunk[-1].number + 1, resident()))
            if stopped():
                return


class StopAfter(Listener):
    """Stop a run after a number of rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def stage(self, doing: str, total: int | None, done: int = 0) -> Any:
        """Count the finished rows."""
        return nullcontext(self._add)

    def _add(self, count: int) -> None:
        self.left -= count

    def stopped(self) -> bool:
        """True once the rows are done."""
        return self.left <= 0


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def write_input(path: Path, count: int) -> None:
    """Write rows with three questions about each picture; one row in a thousand has no question."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"How many squares are in picture {number}?" if number % 1000 else ""
            row = {"id": f"picture-{number:08}", "image": f"pictures/{number // 3}.jpg", "question": question}
            file.write(json.dumps(row) + "\n")


def write_parquet(path: Path, lines: Path) -> None:
    """Write the rows of a JSONL file as Parquet."""
    import pyarrow.json
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.json.read_json(lines), path, row_group_size=50_000)


def timed(job: Job, crew: Any, listener: Listener | None = None) -> tuple[Summary, dict[str, float]]:
    """Run a job. Return its summary, wall seconds and processor seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    summary = run(job, crew, listener)
    took = {"seconds": time.perf_counter() - clock, "processor_seconds": time.process_time() - processor}
    return summary, {name: round(value, 3) for name, value in took.items()}


def measure(path: Path, out: Path, answer: dict[str, Any], rows: int) -> dict[str, Any]:
    """Measure a job stopped after half of its rows, the resumed rest, and a run with nothing left to do."""
    job = Job(input=path, out=out, asking=RowAsking(model="recorded"), part_rows=1000)
    crew = Recorded(answer, max(1, rows // LOOKS))
    start = resident()
    first, first_took = timed(job, crew, StopAfter(rows // 2))
    second, second_took = timed(job, crew)
    third, third_took = timed(job, crew)
    assert (second.left, third.asked, first.asked + second.asked) == (0, 0, rows)
    processor = first_took["processor_seconds"] + second_took["processor_seconds"]
    return {
        "input": path.suffix,
        "rows": rows,
        "answered": second.answered,
        "bad": second.bad,
        "parts": second.parts,
        "input_mib": round(path.stat().st_size / 2**20, 1),
        "first_half": first_took,
        "second_half": second_took,
        "nothing_left": third_took,
        "processor_microseconds_a_row": round(1e6 * processor / rows, 1),
        "resident_mib_at_start": start,
        "resident_mib_after_rows": {str(count): mib for count, mib in crew.memory},
    }


def ask_embedded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an answer of the embedded model, and the time per row with it."""
    path = folder / "few.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(MODEL_ROWS):
            row = {"id": number, "image": str(embedded.picture()), "question": f"How many {number} are there?"}
            file.write(json.dumps(row) + "\n")
    asking = RowAsking(model=embedded.NAME, device="cpu", method=parse("v2drop"), max_new_tokens=8)
    job = Job(input=path, out=folder / "few", asking=asking)
    summary = run(job)
    lines = [line for part in sorted(job.out.glob("part-*")) for line in part.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    recorded = {name: value for name, value in rows[0].items() if name not in ("image", "question")}
    in_model = sum(row["prepare_seconds"] + row["answer_seconds"] for row in rows)
    return recorded, {
        "rows": summary.asked,
        "milliseconds_a_row": round(1e3 * summary.seconds / summary.asked, 2),
        "of_them_outside_of_preparing_and_answering": round(1e3 * (summary.seconds - in_model) / summary.asked, 3),
    }


def page(result: dict[str, Any]) -> str:
    """The guide's section on a result."""
    model = result["embedded_model"]
    lines = [
        "On one core, with a recorded answer instead of a model (`benchmarks/batch.py`):",
        "",
        "| input | rows | processor time per row | memory after 5 % of the rows, and after all |",
        "|---|---|---|---|",
    ]
    for job in result["jobs"]:
        memory = list(job["resident_mib_after_rows"].values())
        time_a_row = f"{job['processor_microseconds_a_row']:.0f} µs"
        lines.append(
            f"| `{job['input']}` | {job['rows']:,} | {time_a_row} | {memory[0]:.0f} MiB, {memory[-1]:.0f} MiB |"
        )
    lines += [
        "",
        "This includes reading, checking and writing the rows, and a stop and restart after half of them. "
        f"The embedded model takes {model['milliseconds_a_row']:.0f} ms per row on the same core.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer, model = ask_embedded(folder)
        write_input(folder / "in.jsonl", options.rows)
        write_parquet(folder / "in.parquet", folder / "in.jsonl")
        jobs = [
            measure(folder / f"in.{kind}", folder / f"out-{kind}", answer, options.rows)
            for kind in ("jsonl", "parquet")
        ]
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "versions": versions(),
        "embedded_model": model,
        "jobs": jobs,
    }
    text = json.dumps(result, indent=2) + "\n"
    options.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return result


if __name__ == "__main__":
    main()
