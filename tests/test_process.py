"""What a process measures of itself, and that a GB is one thing wherever it is compared or printed."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlhf import process
from rlhf.output import console
from rlhf.preflight import plan
from rlhf.runs import launcher
from rlhf.runs.record import Record, read_run


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_peak_memory_is_in_mb_on_either_system(monkeypatch, system, unit):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=300 * 2**20 // unit))
    assert process.peak_memory_mb()["cpu"] == 300.0


def test_a_run_keeps_the_peaks_of_host_and_gpu_apart(compose_stage, monkeypatch):
    peaks = {"cpu": 300.0, "gpu": 0.0}  # a run on the CPU of a machine that has a GPU
    monkeypatch.setattr("rlhf.runs.record.peak_memory_mb", lambda: peaks)
    stage = compose_stage("recipes=support/base")
    run = Record(stage, None, False, [])
    run.status("trained")
    assert read_run(stage.path)["peak_memory_mb"] == 300.0 and "peak_gpu_memory_mb" not in read_run(stage.path)
    peaks.update(cpu=200.0, gpu=2000.0)  # one that goes on in another process, on the GPU
    run.status("finished")
    assert read_run(stage.path)["peak_memory_mb"] == 300.0 and read_run(stage.path)["peak_gpu_memory_mb"] == 2000.0


def test_a_gb_of_hardware_memory_is_the_same_everywhere(compose_stage, monkeypatch, tmp_path):
    """Planned, counted as free and printed: 4 GB are 4 * 2^30 bytes."""
    stage = compose_stage("recipes=support/base", "hardware.memory_gb=4")
    for bytes_, fits in ((4 * 2**30, True), (4 * 2**30 + 1, False)):
        assert plan.Plan.fits.fget(SimpleNamespace(stage=stage, gigabytes=bytes_ / plan.GB)) is fits
    monkeypatch.setattr(launcher.os, "cpu_count", lambda: 8)
    for bytes_, jobs in ((8 * 2**30, 2), (8 * 2**30 - 1, 1)):
        monkeypatch.setattr(launcher.os, "sysconf", lambda name, free=bytes_: 1 if name == "SC_PAGE_SIZE" else free)
        assert launcher.parallel(stage) == jobs
    assert console.memory({"peak_memory_mb": 4096.0}) == "4.00 GB"
    assert console.memory({"peak_memory_mb": 512.0, "peak_gpu_memory_mb": 4096.0}) == "0.50 GB, of the GPU 4.00 GB"


def test_a_second_sigterm_does_not_disturb_the_end_that_the_first_began():
    """A cluster sends it to each process of a job, and the parent of a stage hands it on."""
    code = (
        "import os, signal, sys; from rlhf.errors import Preempted; from rlhf.process import end_on_sigterm\n"
        "end_on_sigterm()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "except Preempted as end: os.kill(os.getpid(), signal.SIGTERM); sys.exit(end.code)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 75
