"""What is trained when: the schedule, by images seen."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["STAGES", "Stage"]

SIDES = (84, 168, 336)  # of the canvases, in pixels
BATCH = (12, 8, 4)  # images a step on each of the two processes, by side
WIDE = (32, 16, 6)  # the same for the tower alone
PARTS = ("tower", "rest", "decoder", "projector")  # with a learning rate each

Shares = tuple[float, float, float]
Sizes = tuple[int, int, int]

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


SKETCH_WEIGHTS = LAST_WEIGHTS | {"relation": 8.0, "count": 4.0, "read text": 4.0}

COUNT_WEIGHTS = SKETCH_WEIGHTS | {
    "count": 7.0,
    "read text": 5.0,
    "relation": 12.0,
    "list left to right": 5.0,
    "list top to bottom": 5.0,
}

READ_WEIGHTS = COUNT_WEIGHTS | {
    "read text": 9.0,
    "character": 4.0,
    "list left to right": 9.0,
    "list top to bottom": 9.0,
}


def _by_side(values: tuple[Any, Any, Any]) -> dict[int, Any]:
    return dict(zip(SIDES, values, strict=True))


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
        sketches: Share of the pictures that are sketches.
        crowded: Share of the sketches with several texts.
        films: Share of the steps on films.
    """

    images: int
    first: int
    mix: dict[int, float]
    rates: dict[str, float]
    batch: dict[int, int] = field(default_factory=lambda: _by_side(BATCH))
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
    sketches: float = 0.0
    crowded: float = 0.0
    films: float = 0.0


def _tower(images: int, first: int, mix: Shares, rates: tuple[float, float], batch: Sizes = WIDE, **more: Any) -> Stage:
    """A stretch for the tower alone, on dense labels; rates of the tower and the rest."""
    known = {"joint": False, "dense_weight": 1.0, "presence_weight": 0.05, "batch": _by_side(batch)}
    return Stage(images, first, _by_side(mix), dict(zip(PARTS, (*rates, 0, 0), strict=True)), **known, **more)


def _joint(images: int, first: int, mix: Shares, rates: tuple[float, float, float, float], **more: Any) -> Stage:
    """A stretch on questions too; rates of the tower, the rest, the decoder and the projector."""
    return Stage(images, first, _by_side(mix), dict(zip(PARTS, rates, strict=True)), **more)


# Images, first scene, mix by side and rates of each; then where it differs from its kind.
STAGES: dict[str, Stage] = {
    "tower": _tower(120_000, 0, (0.9, 0.06, 0.04), (3e-3, 2e-3), batch=(32, 8, 4), dense=True),
    "tower-large": _tower(36_000, 1_000_000, (0.3, 0.5, 0.2), (2e-3, 1e-3), dense=True, constant=0.4),
    "small": _joint(24_000, 10_000_000, (0.75, 0.15, 0.1), (1e-3, 2e-3, 3e-3, 1e-3), constant=0.95),
    "middle": _joint(12_000, 20_000_000, (0.3, 0.55, 0.15), (1e-3, 2e-3, 3e-3, 1e-3), constant=0.95),
    "large": _joint(21_000, 30_000_000, (0.15, 0.35, 0.5), (1e-3, 2e-3, 3e-3, 1e-3), constant=0.3),
    "places": _tower(64_000, 50_000_000, (0.2, 0.35, 0.45), (2e-3, 1e-3), constant=0.6),
    "order": _joint(
        21_000, 60_000_000, (0.15, 0.4, 0.45), (1e-3, 2e-3, 3e-3, 1e-3), tasks=ORDER_WEIGHTS, constant=0.95
    ),
    "beside": _joint(
        14_000, 80_000_000, (0.12, 0.36, 0.52), (1e-3, 2e-3, 3e-3, 1e-3), tasks=ORDER_WEIGHTS, constant=0.7
    ),
    "neighbours": _tower(60_000, 90_000_000, (0.2, 0.4, 0.4), (2e-3, 2e-3), constant=0.65),
    "large-again": _joint(
        36_000, 100_000_000, (0.12, 0.36, 0.52), (1e-3, 2e-3, 3e-3, 1e-3), tasks=ORDER_WEIGHTS, constant=0.3
    ),
    "even": _tower(20_000, 110_000_000, (0.2, 0.4, 0.4), (1.5e-3, 1.5e-3), constant=0.4),
    "large-even": _joint(
        14_000, 120_000_000, (0.1, 0.35, 0.55), (7e-4, 1.4e-3, 2e-3, 7e-4), tasks=LAST_WEIGHTS, constant=0.4
    ),
    "neighbours-large": _tower(74_000, 130_000_000, (0.1, 0.3, 0.6), (2e-3, 2e-3), constant=0.6),
    "large-beside": _joint(
        32_000, 140_000_000, (0.08, 0.3, 0.62), (7e-4, 2e-3, 2.5e-3, 1e-3), tasks=LAST_WEIGHTS, constant=0.35
    ),
    "large-related": _joint(
        13_000,
        160_000_000,
        (0.05, 0.22, 0.73),
        (5e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=RELATED_WEIGHTS,
        draws=3,
        constant=0.4,
    ),
    "large-related-again": _joint(
        36_000, 180_000_000, (0.04, 0.2, 0.76), (5e-4, 1.5e-3, 2e-3, 7e-4), tasks=RELATED_WEIGHTS, draws=4, constant=0.4
    ),
    "crowded": _joint(
        34_000,
        200_000_000,
        (0.04, 0.56, 0.4),
        (5e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=CROWDED_WEIGHTS,
        questions=14,
        draws=4,
        constant=0.4,
    ),
    "deep": _joint(
        9_500,
        190_000_000,
        (0.04, 0.36, 0.6),
        (4e-4, 6e-4, 1e-3, 4e-4),
        tasks=CROWDED_WEIGHTS,
        questions=14,
        draws=4,
        constant=0.3,
        exits=0.35,
        exit_from=18,
    ),
    "tower-sketches": _tower(26_000, 210_000_000, (0.1, 0.3, 0.6), (2e-3, 2e-3), constant=0.5, sketches=0.75),
    "tower-crowded": _tower(
        48_000, 230_000_000, (0.1, 0.45, 0.45), (2e-3, 2e-3), constant=0.5, sketches=0.85, crowded=0.7
    ),
    "sketches": _joint(
        24_000,
        220_000_000,
        (0.02, 0.38, 0.6),
        (7e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=SKETCH_WEIGHTS,
        questions=12,
        draws=2,
        constant=0.35,
        sketches=0.7,
        films=0.12,
    ),
    "sketches-again": _joint(
        16_000,
        240_000_000,
        (0.02, 0.4, 0.58),
        (5e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=SKETCH_WEIGHTS,
        questions=12,
        draws=2,
        constant=0.3,
        sketches=0.7,
        films=0.1,
    ),
    "counting": _joint(
        11_500,
        250_000_000,
        (0.02, 0.33, 0.65),
        (7e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=COUNT_WEIGHTS,
        questions=12,
        draws=3,
        constant=0.35,
        sketches=0.55,
        films=0.08,
    ),
    "tower-counting": _tower(
        66_000, 280_000_000, (0.05, 0.35, 0.6), (2e-3, 2e-3), constant=0.55, sketches=0.75, crowded=0.25
    ),
    "counting-again": _joint(
        12_000,
        290_000_000,
        (0.02, 0.33, 0.65),
        (5e-4, 1.5e-3, 2e-3, 7e-4),
        tasks=COUNT_WEIGHTS,
        questions=12,
        draws=3,
        constant=0.5,
        sketches=0.55,
        films=0.2,
    ),
    "deep-sketches": _joint(
        6_000,
        270_000_000,
        (0.02, 0.33, 0.65),
        (4e-4, 6e-4, 1e-3, 4e-4),
        tasks=COUNT_WEIGHTS,
        questions=14,
        draws=3,
        constant=0.3,
        exits=0.35,
        exit_from=18,
        sketches=0.55,
        films=0.15,
    ),
    "deep-read": _joint(
        8_000,
        300_000_000,
        (0.02, 0.4, 0.58),
        (4e-4, 6e-4, 1e-3, 4e-4),
        tasks=READ_WEIGHTS,
        dense_weight=0.1,  # the heads begin anew
        questions=14,
        draws=2,
        constant=0.35,
        exits=0.25,
        exit_from=18,
        sketches=0.4,
        crowded=0.3,
        films=0.3,
    ),
}
