"""Which process of a run this is, its share of the work, what all of them add up, and what they agree on.

Every rank holds the same weights and lays out the same batch, as one process would; it computes its `share` of the micro-batches, and
what was computed is added up (`total`, `add_gradients`). So the number of ranks changes the order of sums and nothing else: there is
no DistributedDataParallel, which wants one backward pass a step, equal counts on all ranks, and parameters that stay the same. The
libraries are never told: to each trainer its process is alone. A process without others pays nothing for any of this.
"""

import atexit
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from rlhf.errors import ConfigError, Elsewhere, StageError

T = TypeVar("T")

STARTED = (
    "RLHF_STARTED"  # set where we started the ranks ourselves (rlhf.parallel.start), which then tells of their ends
)
# how launchers say rank, number of ranks, and rank on this machine: torchrun and accelerate; srun; Open MPI; other MPIs
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
WAIT = timedelta(hours=2)  # for the slowest rank; a rank that ends is noticed at once
BUCKET = 2**23  # elements of gradients that are added up in one piece


def launched() -> tuple[int, int, int] | None:
    """Rank, number of ranks and rank on this machine, as a launcher has set them; None where nobody has."""
    for names in LAUNCHERS:
        rank, size, local = (os.environ.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit() and (names[0] == "RANK" or int(size) > 1):
            return int(rank), int(size), int(local) if local.isdigit() else 0
    return None


def to_start(devices: int) -> bool:
    """Whether a run on so many devices has to start its ranks itself: there are several, and no launcher has."""
    return devices > 1 and launched() is None


class _Here:
    """This process: its rank, how many there are once they have met, and the units of work it has done."""

    def __init__(self) -> None:
        self.rank, self.size, self.done = (launched() or (0,))[0], 1, 0


_here = _Here()


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _here.rank == 0


def rank() -> int:
    return _here.rank if _here.size > 1 else 0


def size() -> int:
    """How many ranks this run has: 1 until they have met."""
    return _here.size


def refused_beside() -> bool:
    """Whether a launcher has started another process on this machine that is refused as this one is and tells it: until the ranks meet,
    they have nothing but one command line."""
    found = launched()
    return size() == 1 and found is not None and found[2] > 0 and STARTED not in os.environ


def meet(devices: int, on_gpu: bool) -> None:
    """Meet the other ranks, where a launcher has started this one; raises a ConfigError where `devices` is another number.

    A rank sees one GPU, its own. What launchers have set is taken away, so that the libraries take each process for one alone.
    """
    found = launched()
    number, count, local = found or (0, 1, 0)
    if on_gpu:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        place = seen[local] if local < len(seen) and seen[0] else seen[0] if len(seen) == 1 and seen[0] else str(local)
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    if count != devices:
        fix = f"hardware.devices={count}, or python src/train.py without a launcher, which starts {devices} itself"
        what = f"{count} {'was' if count == 1 else 'were'} started by the launcher"
        raise ConfigError(f"hardware.devices={devices}, but {what}\n  fix: {fix}")
    if count > 1:
        import torch.distributed as dist

        place = _rendezvous()
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank=number, world_size=count, timeout=WAIT
            )
        except (RuntimeError, ValueError) as error:  # torch.distributed's own are RuntimeErrors
            why = str(error).partition("\n")[0]
            fix = "MASTER_PORT= another, and MASTER_ADDR= the machine of rank 0, the same for every rank"
            raise ConfigError(
                f"rank {number} of {count} can't meet the others at {place}: {why}\n  fix: {fix}"
            ) from error
        atexit.register(dist.destroy_process_group)  # while its threads can still be ended
        _here.rank, _here.size = number, count
    names = {name for launcher in (LAUNCHERS[0], *LAUNCHERS[2:]) for name in launcher}
    for name in [*names, *(name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_")))]:
        os.environ.pop(name, None)


def _rendezvous() -> str:
    """Where ranks meet, as `address:port`; srun says neither, so it is the first machine of its step and a port by the job's number."""
    if "MASTER_ADDR" not in os.environ and (machines := os.environ.get("SLURM_STEP_NODELIST")):
        prefix, bracket, numbers = machines.split(",")[0].partition("[")
        os.environ["MASTER_ADDR"] = prefix + (numbers.split("-")[0].rstrip("]") if bracket else "")
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000))
    if not os.environ.get("MASTER_ADDR", "") or not os.environ.get("MASTER_PORT", "").isdigit():
        why = "this launcher does not say where ranks meet"
        raise ConfigError(
            f"MASTER_ADDR or MASTER_PORT has no value: {why}\n  fix: export MASTER_ADDR=localhost MASTER_PORT=29500"
        )
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


@contextmanager
def _with_all() -> Iterator[Any]:
    """torch.distributed; a rank that has ended meanwhile is told as that."""
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        raise Elsewhere(
            "another process of this run has ended; the same command goes on from the last checkpoint"
        ) from error


def owner(place: int) -> int:
    """The rank whose unit of work this is: there and back again, so that lists sorted by length are shared out evenly."""
    turn, at = divmod(place, size())
    return size() - 1 - at if turn % 2 else at


def share(work: Sequence[T]) -> list[T]:
    """What of a list is this rank's to do."""
    mine = [one for place, one in enumerate(work) if owner(place) == rank()]
    _here.done += len(mine)
    return mine


def is_mine(place: int) -> bool:
    """Whether the unit of work at this place is this rank's, and counts it if so."""
    mine = owner(place) == rank()
    _here.done += mine
    return mine


def done() -> int:
    """Units of work (micro-batches, chunks of prompts) that this rank has done so far."""
    return _here.done


def total(tensor: Any) -> Any:
    """The sum of a tensor over all ranks, in place; each fills in its own part, the rest is 0."""
    if size() > 1:
        with _with_all() as dist:
            dist.all_reduce(tensor)
    return tensor


def same(tensor: Any) -> Any:
    """A tensor as the main rank has it, in place: what decides about a step is not left to the last bit of another machine."""
    if size() > 1:
        with _with_all() as dist:
            dist.broadcast(tensor, 0)
    return tensor


def gather(value: T) -> list[T]:
    """What each rank has, by rank: anything that JSON holds."""
    if size() == 1:
        return [value]
    import torch

    data = torch.frombuffer(bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8)
    with _with_all() as dist:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(size())]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(length) for length in sizes)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size())]
        dist.all_gather(parts, torch.nn.functional.pad(data, (0, longest - len(data))))
    return [json.loads(bytes(part[: int(length)].tolist())) for part, length in zip(parts, sizes, strict=True)]


def from_main(value: T) -> T:
    """The main rank's value, once every rank is here."""
    return gather(None if rank() else value)[0]  # pyright: ignore[reportReturnType]


def anywhere(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return flag if size() == 1 else any(gather(flag))


@contextmanager
def agreed(main_first: bool = False) -> Iterator[None]:
    """What fails on one rank fails on all: the lowest that has an error raises it, the others leave with its exit code. With
    `main_first` the others begin when the main rank is done, and find what it made."""
    if main_first and rank():
        _hear(None)
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    if main_first and not rank():
        _hear(error)
    _hear(error)


def _hear(error: Exception | None) -> None:
    """Raise the own error, or say that another rank has one."""
    if size() == 1:
        if error is not None:
            raise error
        return
    codes = gather(
        None if error is None or isinstance(error, Elsewhere) else error.code if isinstance(error, StageError) else 1
    )
    failed = [(number, code) for number, code in enumerate(codes) if code is not None]
    if error is not None and (not failed or failed[0][0] == rank()):
        raise error
    if failed:
        raise Elsewhere("", failed[0][1]) from error


def add_gradients(parameters: Sequence[Any]) -> None:
    """Each parameter's gradient becomes its sum over the ranks. A gradient that only some have is 0 on the others; one that none has
    stays None, since an optimizer would decay its weights."""
    if size() == 1:
        return
    import torch

    here = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
    bucket: list[Any] = []
    for parameter, ranks_with in zip(parameters, total(here).tolist(), strict=True):
        if ranks_with and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if ranks_with:
            bucket.append(parameter.grad)
        if bucket and sum(map(torch.numel, bucket)) >= BUCKET:
            _add(bucket)
            bucket = []
    if bucket:
        _add(bucket)


def _add(gradients: Sequence[Any]) -> None:
    import torch

    if len(gradients) == 1 and gradients[0].is_contiguous() and gradients[0].dtype == torch.float32:
        total(gradients[0])
        return
    flat = total(torch.cat([gradient.float().flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def check_same(facts: dict[str, Any]) -> None:
    """Raise a ConfigError on every rank where one has other settings or other code than the main rank."""
    every = gather(facts)
    for number, theirs in enumerate(every):
        for key, value in every[0].items():
            if theirs.get(key) != value:
                fix = "one checkout and one command line for all ranks"
                raise ConfigError(f"rank {number} has {key}={theirs.get(key)}, and rank 0 has {value}\n  fix: {fix}")
