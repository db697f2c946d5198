"""Install foveate as README says, in an empty environment and without constraints, and use it there.

    python -m tests.installed

The wheel stands in the place of the checkout, and a torch for the CPU is there beforehand, which README's first line
must not replace. Before that line, a worker drops tokens with the hard dependencies alone. README's Python runs with
the embedded model, its commands and `foveate check` by name, and a choice of the invariants, all in out/installed.
README's second line, for films, comes last.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "out" / "installed"
PYTHON = FOLDER / "venv" / "bin" / "python"
TORCH = os.environ.get("TORCH", "torch==2.13.0")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INVARIANTS = ("keep_all", "closed", "restore")
FAMILIES = "llava or qwen2_vl or gemma3"
COMMANDS = ("foveate --version", "foveate compare --method v2drop --retention 1/3", "foveate methods", "foveate check")


def main() -> None:
    """Do it all; the first step that fails ends it."""
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER / "venv", with_pip=True)
    wheel = wheel_of(ROOT)
    for plugin in (ROOT / "plugins" / "vllm", ROOT / "plugins" / "mlx"):
        version = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]["version"]
        for built in (wheel, wheel_of(plugin)):
            assert f"-{version}-" in built.name, (built, version)
    first, *others = installing(wheel)
    pip("install", "--quiet", *shlex.split(TORCH))
    torch = release("torch")
    pip("install", "--quiet", str(wheel))
    work_without_extras(FOLDER / "worker")
    pip(first[0], "--quiet", *first[1:])
    assert release("torch") == torch, f"README's first line replaces torch {torch}"
    pip("install", "--quiet", "pytest", "hypothesis", "accelerate")
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", "list")
    use(FOLDER / "use")
    for line in others:
        # TORCH names an index where its torch came from one.
        pip(line[0], "--quiet", *line[1:], *shlex.split(TORCH)[1:])
        if f"torch=={torch.partition('+')[0]}" in line:
            assert release("torch") == torch, f"{line} replaces torch {torch} by another build"
    if subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        print("==> NOT RUN: README's lines beside torchvision: pip has it for another build of torch alone", flush=True)
    else:
        run(PYTHON, "readme.py", cwd=FOLDER / "use")
    print(f"==> installed as README says, and used, in {time.monotonic() - began:.0f} s", flush=True)


WORKER = """
from importlib.metadata import requires
from importlib.util import find_spec
import foveate as fv
from foveate.batch import Predictor

hard = [line for line in requires("foveate") if "extra ==" not in line]
assert len(hard) == 7, hard
assert not any(map(find_spec, ("matplotlib", "tyro"))), "another dependency brings them"
told = Predictor(prompt="What does the text say?", method="divprune", retention=1 / 3)({"image": [PICTURE]})
assert told["answer"] == [fv.embedded.ANSWER], told
vlm = fv.load()
inputs = vlm.prepare(PICTURE, "What does the text say?").inputs
with fv.drop(vlm.model, "v2drop", retention=1 / 3) as trace:
    vlm.model.generate(**inputs, max_new_tokens=8)
print(trace)
"""
"""What a worker of another engine does."""


def work_without_extras(folder: Path) -> None:
    """Drop tokens with the hard dependencies alone, and be told by a command which extra it needs."""
    folder.mkdir()
    picture = ROOT / "src/foveate/embedded/demo.png"
    (folder / "worker.py").write_text(f"PICTURE = {str(picture)!r}\n{WORKER}")
    run(PYTHON, "worker.py", cwd=folder)
    command = subprocess.run([PYTHON.parent / "foveate", "methods"], capture_output=True, text=True, check=False)
    assert (command.returncode, "[cli]" in command.stderr) == (1, True), command.stderr


def wheel_of(project: Path) -> Path:
    """The wheel of a project, built here."""
    folder = FOLDER / "wheels" / project.name
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(project))
    (wheel,) = folder.glob("*.whl")
    return wheel


def installing(wheel: Path) -> list[list[str]]:
    """The words of README's lines that install, with the wheel in the place of the checkout."""
    lines = [line for line in "\n".join(blocks("bash")).splitlines() if line.startswith("pip install")]
    assert lines, "README says nowhere how to install"
    words = [shlex.split(line, comments=True)[1:] for line in lines]
    words = [[re.sub(r"^\.(?=\[|$)", str(wheel), word) for word in line] for line in words]
    assert all(str(wheel) in " ".join(line) for line in words), lines
    return words


def release(package: str) -> str:
    """The version of a package that is installed there."""
    source = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([PYTHON, "-c", source], capture_output=True, check=True, text=True).stdout.strip()


def use(folder: Path) -> None:
    """README's Python, its commands, the check, and invariants, far from the checkout's source."""
    folder.mkdir()
    shutil.copy(ROOT / "src/foveate/embedded/demo.png", folder / "cat.jpg")  # Pillow goes by what is in it
    source = "\n".join(blocks("python")).replace('fv.load("Qwen/Qwen3-VL-8B-Instruct")', "fv.load()")
    assert "fv.load()" in source, "README loads another model: name it here"
    (folder / "readme.py").write_text(source)
    run(PYTHON, "-W", "error::FutureWarning", "readme.py", cwd=folder)
    assert (folder / "kept.png").stat().st_size > 1000
    for command in COMMANDS:
        run(*shlex.split(f"{PYTHON.parent}/{command}"), cwd=folder)
    chosen = [f"tests/invariants/test_{name}.py" for name in INVARIANTS]
    run(PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", FAMILIES, *chosen, cwd=ROOT)
    where = "import foveate, sys; sys.exit('site-packages' not in foveate.__file__)"
    run(PYTHON, "-c", where, cwd=ROOT)


def blocks(language: str) -> list[str]:
    """README's code in a language."""
    return [body for kind, body in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


def pip(*arguments: str) -> None:
    """Run the environment's own pip."""
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Say a command and run it.

    Raises:
        SystemExit: If it fails.
    """
    words = [str(word).replace(f"{ROOT}/", "") for word in command]
    print("==>", shlex.join(words), flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, check=False)
    if done.returncode:
        sys.exit(f"==> {shlex.join(words)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
