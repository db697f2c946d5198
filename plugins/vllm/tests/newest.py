"""Compare what the plug-in touches of vLLM with another release of it, read and not run: `make test-newest`.

    python -m tests.newest [VERSION]

The release's wheel is downloaded (340 MB), and its Python files stand before the installed vLLM while all names of
`foveate_vllm.host` are looked up and all modules of the plug-in are imported. So builds for GPUs can be read on a CPU.
Names of the CPU build are left out.
"""

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from foveate_vllm import host
from tests.test_host import SOURCES, STORED

LISTING = """
import importlib, sys, vllm
from tests.test_host import signatures
assert vllm.__file__.startswith(sys.argv[1]), vllm.__file__
for module in sys.argv[2:]:
    importlib.import_module(module)
print("\\n".join(signatures()))
"""


def main(version: str = "") -> int:
    """Return 0 if all names and signatures are those that are stored, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, f"vllm=={version}" if version else "vllm"], check=True)
        (wheel,) = Path(folder).glob("vllm-*.whl")
        with ZipFile(wheel) as packed:
            packed.extractall(folder, [name for name in packed.namelist() if name.endswith(".py")])
        modules = [f"foveate_vllm.{path.stem}" for path in SOURCES if path.stem != "__init__"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path]), "VLLM_LOGGING_LEVEL": "ERROR"}
        command = [sys.executable, "-c", LISTING, folder, *modules]
        listing = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    cpu = tuple(host.ON_A_CPU)
    stored = [line for line in STORED.read_text().splitlines() if not line.startswith(cpu)]
    releases = [line for line in listing.splitlines() if not line.startswith(cpu)]
    differences = list(difflib.unified_diff(stored, releases, "stored", wheel.name, lineterm="", n=0))
    print("\n".join(differences) or f"{wheel.name}: all {len(stored)} names have the signatures that are stored")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
