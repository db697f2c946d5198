import os

import torch
from hypothesis import HealthCheck, settings

# Tests run side by side on few cores; one thread each is faster than several that wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

settings.register_profile(
    "foveate", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("foveate")
