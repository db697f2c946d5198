"""A preset as `foveate tune` writes one, without a search."""

from foveate.contract.method import Method
from foveate.plain.stats import Estimate
from foveate.tuning.tuned import HeldOut, Tuned


def preset_of(method: Method, **changes: object) -> Tuned:
    """A preset with this method as its tuned and its grid's setting."""
    sure = Estimate(0.9, 0.8, 1.0)
    values = {
        "method": method, "chosen": "grid", "base": method.to_dict(), "model": "tiny", "task": "", "cost": 63.5,
        "budget": {"tokens": 64.0}, "tokens": 63.5, "pictures": (4, 4, 4), "questions": 12, "inputs": "0" * 64,
        "seed": 0, "tried": 2, "runs": 8, "seconds": 1.5, "notes": (), "versions": {"torch": "2"},
        "date": "",
        "rows": tuple(
            HeldOut(name=name, method=method, tokens=63.5, agreement=sure, root=sure, ahead=None)
            for name in ("grid", "tuned")
        ),
    }  # fmt: skip
    return Tuned(**values | changes)
