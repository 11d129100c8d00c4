"""Who this process is among several, and what they add up."""

import os

import pytest

from rlhf.errors import ConfigError
from rlhf.parallel import ranks

NAMES = {name for launcher in ranks.LAUNCHERS for name in launcher}


@pytest.fixture
def environment(monkeypatch):
    for name in (*NAMES, "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)

    def put(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return put


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, None),
        ({"RANK": 3, "WORLD_SIZE": 8, "LOCAL_RANK": 1}, (3, 8, 1)),  # torchrun, accelerate launch
        ({"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}, (0, 1, 0)),
        ({"SLURM_PROCID": 9, "SLURM_STEP_NUM_TASKS": 16, "SLURM_LOCALID": 1}, (9, 16, 1)),
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 16, "SLURM_LOCALID": 0}, None),  # the batch script itself, without srun
        ({"SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 1, "SLURM_LOCALID": 0}, None),  # one task, which starts its own
        ({"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 1}, (1, 2, 1)),
        ({"PMI_RANK": 1, "PMI_SIZE": 2}, (1, 2, 0)),
    ],
)
def test_what_launchers_say_is_read(environment, told, found):
    environment(**told)
    assert ranks.launched() == found
    assert ranks.to_start(2) == (found is None) and not ranks.to_start(1)


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_processes_is_refused(environment, size):
    environment(RANK=0, WORLD_SIZE=size, LOCAL_RANK=0)
    with pytest.raises(ConfigError, match=rf"hardware.devices=2, but {size} w.*\n  fix: hardware.devices={size}"):
        ranks.meet(2, on_gpu=False)


@pytest.mark.parametrize(
    ("machines", "first"), [("node07", "node07"), ("node[03-05,9]", "node03"), ("a1,b2", "a1"), ("gpu[1,7]", "gpu1")]
)
def test_srun_says_where_to_meet(environment, machines, first):
    environment(SLURM_STEP_NODELIST=machines, SLURM_JOB_ID=41234)
    assert ranks._rendezvous() == f"{first}:21234"


def test_a_launcher_that_says_no_place_is_refused(environment):
    environment(OMPI_COMM_WORLD_RANK=0, OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=0)
    with pytest.raises(ConfigError, match="fix: export MASTER_ADDR="):
        ranks.meet(2, on_gpu=False)


@pytest.mark.parametrize(
    ("visible", "local", "own"),
    [(None, 1, "1"), ("4,5", 1, "5"), ("7", 1, "7"), ("", 0, "0"), ("GPU-a,GPU-b", 0, "GPU-a")],
)
def test_a_rank_sees_one_gpu(environment, monkeypatch, visible, local, own):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    environment(
        RANK=local, WORLD_SIZE=1, LOCAL_RANK=local, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    )
    ranks.meet(1, on_gpu=True)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own and not {"RANK", "WORLD_SIZE"} & set(os.environ)


def test_alone_nothing_is_asked_of_others():
    assert ranks.size() == 1 and ranks.gather(3) == [3] and ranks.share([1, 2, 3]) == [1, 2, 3]
    with pytest.raises(ConfigError, match="mine"), ranks.agreed(main_first=True):
        raise ConfigError("mine")
