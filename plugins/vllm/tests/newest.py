"""Try the plug-in with another release of vLLM on a CPU, although that has no build for one: `make test-newest`.

    python -m tests.newest [VERSION [TESTS…]]

The release's wheel is downloaded (340 MB). Its Python files stand before those of the installed vLLM, beside the
kernels of the latter. All names of `foveate_vllm.host` are looked up there, and all modules of the plug-in are
imported. With arguments for pytest, such as `tests`, these tests run there too. The release's own kernels are not run.
"""

import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import vllm

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


def main(version: str = "", *tests: str) -> int:
    """Return 0 if all names and signatures are those that are stored and the tests pass, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = unpack(version, Path(folder))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([folder, *sys.path]),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_TARGET_DEVICE": "cpu",
            host.CHECKING: "1",
        }
        modules = [f"foveate_vllm.{path.stem}" for path in SOURCES if path.stem != "__init__"]
        command = [sys.executable, "-c", LISTING, folder, *modules]
        listing = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        stored = STORED.read_text().splitlines()
        differences = list(difflib.unified_diff(stored, listing.splitlines(), "stored", wheel, lineterm="", n=0))
        print("\n".join(differences) or f"{wheel}: all {len(stored)} names have the signatures that are stored")
        pytest = [sys.executable, "-m", "pytest", "-q", *tests]
        failed = subprocess.run(pytest, env=environment).returncode if tests else 0
    return int(bool(differences or failed))


def unpack(version: str, folder: Path) -> str:
    """Put a release's Python files and the installed kernels into a folder, and return the name of its wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, f"vllm=={version}" if version else "vllm"], check=True)
    (wheel,) = folder.glob("vllm-*.whl")
    with ZipFile(wheel) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if not name.endswith(".so")])
    for kernels in Path(vllm.__file__).parent.glob("*.so"):
        (folder / "vllm" / kernels.name).symlink_to(kernels)
    return wheel.name


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
