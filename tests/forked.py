"""A process that begins as a copy of this one: what is imported here is there, which takes a new one six seconds."""

import contextlib
import faulthandler
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

OPEN = Path("/dev/fd")
ANEW = """
import sys
for name in list(sys.modules):
    if name.partition(".")[0] == "foveate":
        del sys.modules[name]
"""
"""The beginning of a program that imports foveate anew, from another place or in other circumstances."""


def forked(program, *arguments, env=None, **options):
    """As `subprocess.Popen([sys.executable, "-c", program, *arguments], env=env, **options)`.

    For programs that need no interpreter of their own; what is called at an interpreter's end is not called.
    """
    ours = {*os.listdir(OPEN), "0", "1", "2"}

    def run():
        # Popen waits until its own pipe is closed, as a new program would close it.
        for number in map(int, set(os.listdir(OPEN)) - ours):
            with contextlib.suppress(OSError):  # one was open to list them
                os.close(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        for handler in logging.getLogger("transformers").handlers:
            handler.setStream(sys.stderr)
        mend_threads()
        sys.argv = ["-c", *map(str, arguments)]
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
            tempfile.tempdir = None
        if "accelerate" in sys.modules:  # which remembers that one process runs, where a Trainer was made before
            sys.modules["accelerate"].PartialState._reset_state()
        os._exit(_code_of(program))

    with warnings.catch_warnings():
        # Tests have one thread of torch; pytest-xdist has threads that the child never meets.
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        return subprocess.Popen([sys.executable, "-c", "raise"], preexec_fn=run, text=True, **options)


def mend_threads():
    """In a copy of a process: torch's pool is made anew by the first who asks for it, and no two of them at once.

    Loading a model asks from several threads, of which all but the first would find none ("Invalid thread pool!").
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def is_killed(work, seconds):
    """Whether a copy of this process is still at this work after so many seconds, and dies by `kill -9`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.disable()  # that of the tests
            mend_threads()
            work()
            code = 0
        finally:
            os._exit(code)
    end, ended = time.monotonic() + seconds, 0
    while not ended and time.monotonic() < end:
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def kills_of(work, usual, most=4):
    """How often work of `usual` seconds is killed at random moments, till it is done or that was often enough."""
    moments = [random.uniform(0.1, 0.6) * usual for _ in range(most)]
    return next((kills for kills, moment in enumerate(moments) if not is_killed(work, moment)), most)


def said_by(program, *arguments, **options):
    """What a program prints that ends well."""
    child = forked(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    out, err = child.communicate(timeout=600)
    assert child.returncode == 0, err[-2000:]
    return out


def _code_of(program):
    """Run it; the exit code."""
    try:
        exec(program, {"__name__": "__main__"})
        return 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def alive(session):
    """Whether any process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond some bytes, which ends as a full disk does: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
