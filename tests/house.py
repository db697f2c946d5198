"""Code lines of src, without docstrings, comments and blank lines, beside those of the last commit that landed."""

import ast
import io
import subprocess
import tokenize
from pathlib import Path

KINDS = (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING)


def code_lines(text):
    said = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    texts = {
        line for node in said if isinstance(node.value.value, str) for line in range(node.lineno, node.end_lineno + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len(
        {n for t in tokens if t.type in KINDS and t.start[0] not in texts for n in range(t.start[0], t.end[0] + 1)}
    )


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout


landed = "origin/main" if git("rev-parse", "--verify", "--quiet", "origin/main") else "HEAD"
paths = git("ls-tree", "-r", "--name-only", landed, "src").split()
there = sum(code_lines(git("show", f"{landed}:{path}")) for path in paths if path.endswith(".py"))
here = sum(code_lines(path.read_text()) for path in Path("src").rglob("*.py"))
print(f"==> src: {here:,} code lines; at {landed}: {there:,}")
