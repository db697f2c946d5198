"""Finish: how calls ran when CUDA graphs were requested."""

from dataclasses import dataclass, field


@dataclass
class GraphCounts:
    """How calls of one part of the model ran with CUDA graphs requested.

    Attributes:
        recorded: How many ran without a graph and were recorded.
        replayed: How many were replayed.
        evicted: How many recordings were dropped for others, for memory, or because the model changed.
        failed: How often recording or a replay failed.
        plain: How many ran without a graph and were not recorded, by reason.
        latest: "recorded", "replayed", or the reason why the latest call ran without a graph; empty before the first.
    """

    recorded: int = 0
    replayed: int = 0
    evicted: int = 0
    failed: int = 0
    plain: dict[str, int] = field(default_factory=dict)
    latest: str = ""

    def note_plain(self, why: str) -> None:
        """Note that a call runs without a graph."""
        self.plain[why], self.latest = self.plain.get(why, 0) + 1, why

    def note_failed(self, why: str) -> None:
        """Note that recording or a replay failed."""
        self.failed += 1
        self.note_plain(why)

    def __str__(self) -> str:
        """Format as `8 of 10 replayed, 1 recorded, 1 plain (the first of its layout)`."""
        count = self.recorded + self.replayed + sum(self.plain.values())
        reasons = [f"{times} {name}" for name, times in (("evicted", self.evicted), ("failed", self.failed)) if times]
        reasons += [f"{times} plain ({why})" for why, times in self.plain.items()]
        return ", ".join([f"{self.replayed} of {count} replayed", f"{self.recorded} recorded", *reasons])


@dataclass
class Graphs:
    """How a context's calls of the vision tower, prefills and decode steps ran with CUDA graphs."""

    tower: GraphCounts = field(default_factory=GraphCounts)
    decoder: GraphCounts = field(default_factory=GraphCounts)
    steps: GraphCounts = field(default_factory=GraphCounts)

    def __str__(self) -> str:
        return f"decoder: {self.decoder}; steps: {self.steps}; tower: {self.tower}"
