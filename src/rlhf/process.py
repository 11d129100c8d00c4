"""What this process is told and asked: quiet libraries, memory given back and measured, its end with its parent's."""

import contextlib
import ctypes
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, Self

from rlhf.errors import Preempted

LARGE = 10_000_000  # parameters, as stored: two to an element in 4 bit


def quiet() -> None:
    """Leave the terminal to our own lines: libraries warn about what is decided here on purpose."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    for name in ("bitsandbytes", "transformers", "trl", "peft", "datasets", "accelerate", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.disable_caching()  # what a trainer maps goes to a temporary folder, not beside the rows that others read


def return_freed_memory() -> None:
    """Have glibc hand freed tensors back to the system at once.

    By default it keeps freed blocks of up to 32 MiB, in holes among what is in use: SFT of 41M parameters in NF4 on the CPU then
    takes 919 MB above its libraries instead of 477 MB. Smaller blocks are left to it, since getting each anew costs time: so much
    for a model of two million parameters (DPO of `support`: a third of its processor time, in page faults) that only models
    from LARGE parameters on are treated so. And torch asks for pages
    of 2 MiB (THP_MEM_ALLOC_ENABLE in `rlhf/__init__.py`): five steps of SmolLM2-135M's SFT then spend 18 s in the system, not 23 s.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(-3, 2**20)  # M_MMAP_THRESHOLD, in bytes (mallopt(3))


def peak_memory_mb() -> dict[str, float]:
    """Peak memory so far in MB of 2^20 bytes: resident on the host (`cpu`), and allocated by torch on its GPU (`gpu`)."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, units of 1024 bytes elsewhere
    peak = {"cpu": round(resident / (2**20 if sys.platform == "darwin" else 2**10), 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def end_on_sigterm() -> None:
    """Outside training a SIGTERM ends this process at once with exit code 75: what it writes is whole or not there."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a cluster sends it to each process, and a parent once more
        raise Preempted("stopped by SIGTERM; the same command goes on from here")

    signal.signal(signal.SIGTERM, end)


def die_with_parent() -> None:
    """A killed comparison leaves no process behind that writes where the next one does; its checkpoints are complete or absent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Children:
    """The processes that this one has started and waits for: a SIGTERM to it goes to each, and no other is started after it.

    They stop as they would alone, which for a stage is a checkpoint and exit code 75. Enter it in the main thread; `run` may be
    called from any.
    """

    def __init__(self) -> None:
        self.asked, self.running, self.guard = False, set[subprocess.Popen[Any]](), threading.Lock()

    def __enter__(self) -> Self:
        self.before = signal.signal(signal.SIGTERM, self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def stop(self, *_: Any) -> None:
        self.asked = True
        for child in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                child.terminate()

    def run(self, command: Sequence[str], **options: Any) -> int:
        """The exit code of a command; 75 where it was asked to stop, although the command had just ended well."""
        with self.guard:
            if self.asked:
                return Preempted.code
            child = subprocess.Popen(command, preexec_fn=die_with_parent, **options)
            self.running.add(child)
        if self.asked:  # between the look and the start
            self.stop()
        try:
            code = child.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a terminal sends it to both
                child.wait(timeout=1)
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            child.wait()
            code = 130
        finally:
            self.running.discard(child)
        return Preempted.code if self.asked and not code else code
