"""The authors' repositories, and the same setting on both sides. Plain Python: both environments import this file."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Peer:
    """A method as its authors released it.

    Attributes:
        repository: Owner and name on GitHub. The clone's folder has the name.
        commit: The commit that must be checked out.
        method: The name of foveate's method.
        settings: foveate's settings.
        theirs: The authors' settings; see `theirs.py`.
        reads_text: True if the text decides what is dropped. A cache then differs from a recomputation by design.
        builds_on: Another peer whose repository has an untouched LLaVA, if the authors' own has none.
    """

    repository: str
    commit: str
    method: str
    settings: dict[str, Any]
    theirs: dict[str, Any] = field(default_factory=dict)
    reads_text: bool = False
    builds_on: str = ""

    @property
    def folder(self) -> str:
        """The name of the clone's folder."""
        return self.repository.partition("/")[2]

    @property
    def clones(self) -> tuple["Peer", ...]:
        """The peers whose repositories this one runs on."""
        return (self, PEERS[self.builds_on]) if self.builds_on else (self,)


SCHEDULE = [[179, 32], [132, 23], [97, 17]]
"""VisionDrop's rows, unmerged and merged, before layers 8, 16 and 24: foveate's preset of 192 tokens."""

PEERS = {
    "V2Drop": Peer(
        "xuyang-liu16/V2Drop",
        "219e03ede8cf6a70d1534903fa238b13dd900bbb",
        "v2drop",
        {"layers": [3, 17, 22], "keep": [0.5, 0.5, 0.0]},
    ),
    "VisionDrop": Peer(
        "Ruixxxx/VisionDrop",
        "f7a944497d581aa79570f8f79e8ca91b5347a52f",
        "visiondrop",
        {"dominant": 245, "contextual": 43, "image_token_list": SCHEDULE},
        {"dominant": 245, "contextual": 43, "layers": [8, 16, 24], "schedule": SCHEDULE},
    ),
    "MustDrop": Peer(
        "liuting20/MustDrop",
        "909afa538bff22e10c02db2da101aa1870e21912",
        "mustdrop",
        {"global_thr": 0.00185, "individual_thr": 0.01},
        {"global_thr": 0.00185, "individual_thr": 0.01},
        reads_text=True,
        builds_on="PyramidDrop",
    ),
    "FastV": Peer(
        "pkunlp-icler/FastV",
        "d1659729b5bf1be225e99ee15783deeea80f63b1",
        "fastv",
        {"layers": [3], "keep": [0.25]},
        {"fastv_k": 3, "fastv_r": 0.75},
        reads_text=True,
    ),
    "DivPrune": Peer(
        "vbdi/divprune",
        "799e2d950aa01ba7860907f5a6d86061f885dca6",
        "divprune",
        {"tokens": 192},
        {"ratio": 1 / 3},
    ),
    "PyramidDrop": Peer(
        "Cooperx521/PyramidDrop",
        "6444f304aee4b7edcb022839fb9e8cd07859704a",
        "pyramiddrop",
        {},
        {"layers": [8, 16, 24], "ratios": [1.0, 0.5, 0.25, 0.125]},
        reads_text=True,
    ),
}
