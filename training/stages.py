"""What is trained when: the schedule, by images seen."""

from dataclasses import dataclass, field

__all__ = ["STAGES", "Stage"]

BATCH = {84: 12, 168: 8, 336: 4}  # images a step on each of the two processes

TASK_WEIGHTS = {
    "colour": 1.0,
    "shape": 1.0,
    "count": 1.2,
    "existence": 1.5,
    "quadrant": 1.0,
    "relation": 1.2,
    "read text": 3.0,
    "character": 2.5,
    "text quadrant": 0.6,
    "list left to right": 1.2,
    "list top to bottom": 1.2,
}

ORDER_WEIGHTS = TASK_WEIGHTS | {
    "count": 1.5,
    "relation": 2.5,
    "list left to right": 2.5,
    "list top to bottom": 2.5,
}

LAST_WEIGHTS = ORDER_WEIGHTS | {"count": 2.5, "relation": 4.0, "list left to right": 3.0, "list top to bottom": 3.0}

RELATED_WEIGHTS = LAST_WEIGHTS | {"relation": 8.0}

CROWDED_WEIGHTS = LAST_WEIGHTS | {"relation": 30.0}  # nearly all that a scene allows


@dataclass(frozen=True)
class Stage:
    """One stretch of training with its own learning-rate schedule.

    Attributes:
        images: Seen by both processes together.
        first: Number of the stage's first training scene; stages never share a scene.
        mix: Share of steps by canvas side.
        rates: Peak learning rates, see `Optimiser`.
        joint: Train on questions too (otherwise the tower alone on dense labels).
        dense_weight, presence_weight: Of the auxiliary losses.
        exits: Share of steps in which all vision tokens leave before a random layer
            from `exit_from` on.
        constant: Share of the images at the constant rate before the linear decay.
        draws: Scenes drawn for each that is used: the one with the most relations to ask for.
    """

    images: int
    first: int
    mix: dict[int, float]
    rates: dict[str, float]
    batch: dict[int, int] = field(default_factory=lambda: dict(BATCH))
    joint: bool = True
    dense: bool = False
    dense_weight: float = 0.4
    presence_weight: float = 0.02
    exits: float = 0.0
    exit_from: int = 0
    questions: int = 9
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASK_WEIGHTS))
    constant: float = 0.5
    draws: int = 1


STAGES: dict[str, Stage] = {
    "tower": Stage(
        images=120_000,
        first=0,
        mix={84: 0.9, 168: 0.06, 336: 0.04},
        rates={"tower": 3e-3, "rest": 2e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 8, 336: 4},
        joint=False,
        dense=True,
        dense_weight=1.0,
        presence_weight=0.05,
    ),
    "tower-large": Stage(
        images=36_000,
        first=1_000_000,
        mix={84: 0.3, 168: 0.5, 336: 0.2},
        rates={"tower": 2e-3, "rest": 1e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 16, 336: 6},
        joint=False,
        dense=True,
        dense_weight=1.0,
        presence_weight=0.05,
        constant=0.4,
    ),
    "small": Stage(
        images=24_000,
        first=10_000_000,
        mix={84: 0.75, 168: 0.15, 336: 0.10},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        constant=0.95,
    ),
    "middle": Stage(
        images=12_000,
        first=20_000_000,
        mix={84: 0.30, 168: 0.55, 336: 0.15},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        constant=0.95,
    ),
    "large": Stage(
        images=21_000,
        first=30_000_000,
        mix={84: 0.15, 168: 0.35, 336: 0.50},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        constant=0.3,
    ),
    "places": Stage(
        images=64_000,
        first=50_000_000,
        mix={84: 0.2, 168: 0.35, 336: 0.45},
        rates={"tower": 2e-3, "rest": 1e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 16, 336: 6},
        joint=False,
        dense_weight=1.0,
        presence_weight=0.05,
        constant=0.6,
    ),
    "order": Stage(
        images=21_000,
        first=60_000_000,
        mix={84: 0.15, 168: 0.40, 336: 0.45},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        tasks=ORDER_WEIGHTS,
        constant=0.95,
    ),
    "beside": Stage(
        images=14_000,
        first=80_000_000,
        mix={84: 0.12, 168: 0.36, 336: 0.52},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        tasks=ORDER_WEIGHTS,
        constant=0.7,
    ),
    "neighbours": Stage(
        images=60_000,
        first=90_000_000,
        mix={84: 0.2, 168: 0.4, 336: 0.4},
        rates={"tower": 2e-3, "rest": 2e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 16, 336: 6},
        joint=False,
        dense_weight=1.0,
        presence_weight=0.05,
        constant=0.65,
    ),
    "large-again": Stage(
        images=36_000,
        first=100_000_000,
        mix={84: 0.12, 168: 0.36, 336: 0.52},
        rates={"tower": 1e-3, "rest": 2e-3, "decoder": 3e-3, "projector": 1e-3},
        tasks=ORDER_WEIGHTS,
        constant=0.3,
    ),
    "even": Stage(
        images=20_000,
        first=110_000_000,
        mix={84: 0.2, 168: 0.4, 336: 0.4},
        rates={"tower": 1.5e-3, "rest": 1.5e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 16, 336: 6},
        joint=False,
        dense_weight=1.0,
        presence_weight=0.05,
        constant=0.4,
    ),
    "large-even": Stage(
        images=14_000,
        first=120_000_000,
        mix={84: 0.10, 168: 0.35, 336: 0.55},
        rates={"tower": 7e-4, "rest": 1.4e-3, "decoder": 2e-3, "projector": 7e-4},
        tasks=LAST_WEIGHTS,
        constant=0.4,
    ),
    "neighbours-large": Stage(
        images=74_000,
        first=130_000_000,
        mix={84: 0.1, 168: 0.3, 336: 0.6},
        rates={"tower": 2e-3, "rest": 2e-3, "decoder": 0, "projector": 0},
        batch={84: 32, 168: 16, 336: 6},
        joint=False,
        dense_weight=1.0,
        presence_weight=0.05,
        constant=0.6,
    ),
    "large-beside": Stage(
        images=32_000,
        first=140_000_000,
        mix={84: 0.08, 168: 0.30, 336: 0.62},
        rates={"tower": 7e-4, "rest": 2e-3, "decoder": 2.5e-3, "projector": 1e-3},
        tasks=LAST_WEIGHTS,
        constant=0.35,
    ),
    "large-related": Stage(
        images=13_000,
        first=160_000_000,
        mix={84: 0.05, 168: 0.22, 336: 0.73},
        rates={"tower": 5e-4, "rest": 1.5e-3, "decoder": 2e-3, "projector": 7e-4},
        tasks=RELATED_WEIGHTS,
        constant=0.4,
        draws=3,
    ),
    "large-related-again": Stage(
        images=36_000,
        first=180_000_000,
        mix={84: 0.04, 168: 0.20, 336: 0.76},
        rates={"tower": 5e-4, "rest": 1.5e-3, "decoder": 2e-3, "projector": 7e-4},
        tasks=RELATED_WEIGHTS,
        constant=0.4,
        draws=4,
    ),
    "crowded": Stage(
        images=34_000,
        first=200_000_000,
        mix={84: 0.04, 168: 0.56, 336: 0.40},
        rates={"tower": 5e-4, "rest": 1.5e-3, "decoder": 2e-3, "projector": 7e-4},
        questions=14,
        tasks=CROWDED_WEIGHTS,
        constant=0.4,
        draws=4,
    ),
    "deep": Stage(
        images=9_500,
        first=190_000_000,
        mix={84: 0.04, 168: 0.36, 336: 0.60},
        rates={"tower": 4e-4, "rest": 6e-4, "decoder": 1e-3, "projector": 4e-4},
        questions=14,
        tasks=CROWDED_WEIGHTS,
        draws=4,
        constant=0.3,
        exits=0.35,
        exit_from=18,
    ),
}
