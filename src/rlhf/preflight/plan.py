"""The preflight: what a stage would do and need, resolved from its settings without torch, weights or a network."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import GB, Dataset, Stage, compose_config, needs, split_batch, to_stage
from rlhf.data import columns, contract, folders, sources, store
from rlhf.data.rows import BadRow, Row, cut
from rlhf.methods import METHODS, Method
from rlhf.output.console import rule
from rlhf.output.tables import grid
from rlhf.preflight.memory import Parts, Work, adapter_weights, argument, estimate, fewest, scorer_bytes, sequences
from rlhf.preflight.settings import check_settings
from rlhf.preflight.sizes import Shape, shape_of

COUNTED = 200e6  # bytes of local files that are read to count their rows: about a second
PREPARING = 400 * 2**20  # bytes above the libraries that tokenizing takes, whatever the number of rows
SPEED = 150_000  # tokens a second and process, half of the slowest measured


@dataclass(frozen=True)
class Plan:
    """A resolved stage and the memory of its moments, in bytes by part."""

    stage: Stage
    shape: Shape
    moments: dict[str, Parts]

    @property
    def peak(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def gigabytes(self) -> float:
        return sum(self.moments[self.peak].values()) / GB

    @property
    def fits(self) -> bool:
        return self.gigabytes <= self.stage.hardware.memory_gb


def resolve(overrides: Sequence[str]) -> Plan:
    """The plan of `python src/train.py <overrides>`; earlier stages of the recipe count as finished.

    Raises:
        ConfigError: the configuration cannot work, or the sizes of its model are not known here.
    """
    cfg = compose_config(overrides)
    stage = to_stage(cfg)
    check_settings(stage, planned=needs(cfg))
    split_batch(stage)  # a batch that does not divide is refused before anything is asked about the model
    shape = shape_of(stage)
    return Plan(stage, shape, estimate(stage, shape))


def count_rows(stage: Stage) -> int | None:
    """Rows to train on before any is dropped: pairs where a method takes them one by one, else what the dataset holds.

    None where only a download can tell. Raises DataError when a local dataset is not there or cannot be read.
    """
    if stage.dataset.splits.train is None:
        columns.read(stage.dataset, None, METHODS[stage.method.name].rows)  # refuses
    counts = [_count(stage, part) for part in sources.parts(stage.dataset, "train")]
    return None if None in counts else sum(count or 0 for count in counts)


def _count(stage: Stage, part: sources.Part) -> int | None:
    dataset, most, kind = part.dataset, stage.debug.rows, METHODS[stage.method.name].rows
    place = Path(dataset.path)
    later = not place.exists() and folders.fetched_by(place) is not None and dataset.rows is not None
    if sources.is_hub(dataset.path) or later:
        name, start, stop = sources.sliced(part.split)
        if dataset.rows is None or stage.dataset.mixture is not None:  # dataset.rows says it of one
            return None
        return len(cut(start, stop, dataset.rows)[:most])
    if sources.is_local(dataset.path):
        found = folders.files(Path(dataset.path).expanduser())
        if sum(file.stat().st_size for file in found) > COUNTED:
            return None
    dataset = columns.read(dataset, part.split, kind).dataset  # refuses columns that are not there
    rows = part.open()
    if kind in ("pairs", "thumbs") and not stage.method.kwise:
        return sum(_made(dataset, row, kind) for row in rows.read(0, most))
    return len(range(len(rows))[:most])


def _made(dataset: Dataset, row: Row, kind: str) -> int:
    try:
        return len(list((contract.pairs if kind == "pairs" else contract.thumbs)(dataset, row)))
    except BadRow:  # reading for training tells what is wrong with it
        return 0


def count_steps(stage: Stage, rows: int | None) -> int | None:
    """Optimizer steps, or updates of our own loop; None where it depends on rows that are not counted, or packed."""
    most = stage.debug.max_steps or int(argument(stage, "max_steps"))
    if most > 0:
        return most
    epochs = float(argument(stage, "num_train_epochs"))
    if METHODS[stage.method.name].own_loop:
        episodes = argument(stage, "total_episodes") or (rows and int(epochs * rows))
        return episodes and int(episodes) // stage.batch_size
    if rows is None or argument(stage, "packing"):
        return None
    micro, accumulation = split_batch(stage)
    batches = math.ceil(rows / (micro * stage.hardware.devices))
    return math.ceil(epochs * math.ceil(batches / accumulation))


def lines(plan: Plan) -> Iterator[str]:
    """The plan as text."""
    stage, shape, work = plan.stage, plan.shape, Work.of(plan.stage)
    hardware, method, lora = stage.hardware, METHODS[stage.method.name], stage.adapter.name == "lora"
    micro, passes = split_batch(stage)
    rows = count_rows(stage)
    steps = count_steps(stage, rows)
    batch = stage.batch_size * sequences(stage)
    adapter = f"adapter of {adapter_weights(stage, shape) / 1e6:,.1f}M" if lora else "no adapter"
    size = f"{shape.parameters / 1e6:,.1f}M parameters"
    told = "counted when the rows are read" if steps is None else f"{steps:,}"
    if method.own_loop:
        inner = argument(stage, "num_ppo_epochs") * argument(stage, "num_mini_batches")
        updates = "updates" if steps is None else _number(steps, "update")
        told = f"{updates} of {_number(inner, 'optimizer step')}" + (f", {told}" if steps is None else "")
    yield rule(f"{stage.run.recipe}/{stage.run.stage}")
    yield f"model    {stage.model.path}: {size}, {stage.quantization.name}, {adapter}, {hardware.precision}"
    yield f"method   {stage.method.name}: {', '.join(method.roles)}" + (" on one base" if lora else ", a model each")
    for source in stage.method.reward_models:
        if scorer_bytes(source, 0.0) is None:
            yield f"reward   {source}: its size is not known here, and not counted below"
    counted = "counted when they are read" if rows is None else f"{rows:,} before any is dropped"
    yield f"rows     {counted}   {stage.dataset.path}"
    if rows is not None:
        disk, seconds, count = preparing(stage, rows)
        took = f"{seconds / 60:,.0f} minutes" if seconds >= 120 else f"{max(seconds, 1):.0f} s"
        yield f"to read  at most {disk / GB:,.2f} GB of disk and {took} with {count} process(es), {PREPARING / GB:.1f} GB of memory"
    yield f"batch    {stage.batch_size} = {hardware.devices} device(s) x {micro} rows x {passes} passes"
    yield f"steps    {told}"
    total = "" if steps is None else f", {batch * work.length * steps:,} in all"
    yield f"tokens   at most {batch * work.length:,} a step: {batch} sequences of {work.length}{total}\n"
    moments = plan.moments.values()
    parts = dict.fromkeys(part for moment in moments for part in moment)
    table = [["GB (2^30 bytes)", *plan.moments]]
    table += [[part, *(f"{moment[part] / GB:.3f}" if part in moment else "" for moment in moments)] for part in parts]
    yield grid([*table, ["total", *(f"{sum(moment.values()) / GB:.3f}" for moment in moments)]]) + "\n"
    verdict = "fits" if plan.fits else "does not fit"
    yield f"memory   {plan.gigabytes:.2f} GB in {plan.peak}: {verdict} hardware.memory_gb={hardware.memory_gb:g}"
    yield f"         estimated for rows of full length; {_checked(stage.method.name)}"


def preparing(stage: Stage, rows: int) -> tuple[float, float, int]:
    """Bytes of disk and seconds that tokenizing rows of full length takes at most, and in how many processes.

    An id takes 4 bytes; a demonstration has labels too, a pair two replies, each with the prompt at most `dataset.max_length`; a prompt
    has its text beside it. A process makes SPEED tokens a second (docs/benchmarks.md).
    """
    length, kind, count = stage.dataset.max_length, METHODS[stage.method.name].rows, store.processes(rows)
    tokens = rows * {"pairs": 2 * length, "prompts": stage.dataset.max_prompt_length}.get(kind, length)
    return tokens * {"demonstrations": 8, "pairs": 4, "thumbs": 4, "prompts": 16}[kind], tokens / (SPEED * count), count


def _checked(name: str) -> str:
    """How far the formulas of a method's memory can be trusted."""
    if METHODS[name].measured:
        held = "within 15% of the measured peak of each method on the CPU (python src/benchmark.py parts=[plan])"
        return f"{held}, not checked on a GPU"
    return f"no peak of method={name} was measured: the formulas are those of method={borrowed(METHODS[name])}"


def borrowed(method: Method) -> str:
    """The measured method whose memory a new one is most like, by rows, roles, and what its loss holds of the logits."""

    def facts(row: Method) -> tuple[Any, ...]:
        return row.own_loop, "policy" in row.roles, row.rows, row.roles, row.chunked

    known = {name: facts(row) for name, row in METHODS.items() if row.measured}
    return max(known, key=lambda name: [a == b for a, b in zip(known[name], facts(method), strict=True)])


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def remedy(overrides: Sequence[str], plan: Plan) -> tuple[list[str], Plan]:
    """Settings with which a plan that does not fit does, and the plan with them; or those with which it needs least."""
    settings: dict[str, object] = {}
    while not plan.fits and (change := _less(plan)):
        settings |= change
        plan = resolve([*overrides, *(f"{key}={value}" for key, value in settings.items())])
    return [f"{key}={value}" for key, value in settings.items()], plan


def _less(plan: Plan) -> Mapping[str, object]:
    """The next thing to give up at the moment of the peak: first what changes no result, then digits, then the longest rows."""
    stage, hardware, (micro, _) = plan.stage, plan.stage.hardware, split_batch(plan.stage)
    lora, sampled = stage.adapter.name == "lora", METHODS[stage.method.name].reply_length
    if plan.peak == "evaluation" and stage.evaluation.batch_size > 1:
        return {"evaluation.batch_size": stage.evaluation.batch_size // 2}
    batch, least = stage.batch_size // hardware.devices // int(argument(stage, "num_mini_batches")), fewest(stage)
    smaller = next((n for n in range(micro - 1, least - 1, -1) if batch % n == 0), None)
    if plan.peak in ("update", "rollout") and smaller:
        return {"hardware.micro_batch_size": smaller}
    if plan.peak == "update" and not hardware.gradient_checkpointing:
        return {"hardware.gradient_checkpointing": "true"}
    if hardware.device == "cuda" and hardware.precision == "fp32":
        return {"hardware.precision": "bf16"}
    # whole models that an earlier stage left take no adapter
    if stage.quantization.name != "nf4" and stage.model.init is None and (lora or stage.method.start_from is None):
        return ({} if lora else {"adapter": "lora"}) | {"quantization": "nf4"}
    most = stage.dataset.max_length
    return {"dataset.max_length": most // 2} if most >= 256 and not sampled else {}
