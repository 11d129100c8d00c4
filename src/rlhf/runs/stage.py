"""One stage from its composed configuration to a finished run folder: refuse, prepare, build, train, save, evaluate."""

import gc
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf import files
from rlhf.config import Stage, to_stage
from rlhf.errors import ConfigError, DataError, Preempted
from rlhf.methods import METHODS
from rlhf.output import console
from rlhf.parallel import ranks
from rlhf.preflight.hub import check_repositories
from rlhf.preflight.settings import check_machine, check_settings
from rlhf.process import LARGE, quiet, return_freed_memory
from rlhf.runs import record
from rlhf.runs.card import card


def run_stage(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Run what `cfg` says and return its results.

    Everything that can be refused is refused before the run folder is touched, and before any weight is loaded if it shows in
    the configuration or the data: with `run.overwrite=true` the old run goes only when a trainer for the new one stands.
    """
    stage = to_stage(cfg)
    ranks.meet(stage.hardware.devices, stage.hardware.device == "cuda")
    if ranks.size() > 1:
        ranks.check_same(record.identity(stage))
    with ranks.agreed(main_first=True):
        resume = refuse(stage)
    with ranks.agreed():
        record.check_shared(stage)
    with ranks.agreed(main_first=True):  # the others find the rows that it prepared
        tokenizer, data = prepare(stage)
        trained = resume and record.trained(stage)
    with ranks.agreed():
        trainer = None if trained else build(stage, tokenizer, data)

    with ranks.agreed():
        if not resume:
            record.set_aside(stage)
        run = record.Record(stage, cfg, resume, overrides)
    run.write("data.json", {"source": stage.dataset.path, "licence": stage.dataset.licence, "splits": data.ledger})
    if stage.model.init is not None and ranks.is_main():
        tokenizer.save_pretrained(str(stage.path / "tokenizer"))
    if trainer is not None:
        began = time.time()
        train(stage, tokenizer, data, trainer, run)
        save(stage, tokenizer, trainer)
        if ranks.is_main():
            run.run["train_seconds"] = round(time.time() - began, 1)
        run.status("trained")
        trainer = None  # what it held is free for the evaluation
        gc.collect()
    results = evaluate(stage, tokenizer, data)
    run.write(files.RESULTS_FILE, results)
    run.shares(ranks.gather(ranks.done()))
    if ranks.is_main():
        files.write_text(stage.path / files.FINAL / files.CARD, card(stage, overrides, results, run.run))
        (stage.path / files.CARD).unlink(missing_ok=True)  # TRL's, which names no base and no data
        from rlhf.output.plots import curves

        curves(stage.path, "updates" if METHODS[stage.method.name].own_loop else "optimizer steps")
    run.status("finished")
    console.closing(stage, results, run.run)
    return results


def refuse(stage: Stage) -> bool:
    """Raise what the configuration, the run folder, the machine, the hub or the trainer's fields have against the stage.

    Returns whether it goes on with what its folder holds.
    """
    check_settings(stage)
    try:
        resume = record.claim(stage)
    except ConfigError:
        if record.state(stage) == "stale":  # by a misspelt setting it may be, and then the spelling is what helps
            from rlhf.methods.arguments import check_arguments  # imports TRL, which takes seconds

            quiet()
            check_arguments(stage)
        raise
    record.check_weights(stage)
    check_repositories([stage])
    check_machine(stage)
    quiet()  # from here on libraries are imported that take seconds
    from rlhf.methods.arguments import check_arguments, training_arguments, try_arguments
    from rlhf.models.checks import check_model

    check_arguments(stage)
    try_arguments(stage, training_arguments(stage))
    check_model(stage)
    return resume


def prepare(stage: Stage) -> tuple[Any, Any]:
    """The tokenizer and the rows (`rlhf.data.prepare.Prepared`); raises a DataError if they don't fill a batch."""
    from rlhf.data.prepare import prepare as prepare_rows
    from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer

    tokenizer = load_tokenizer(stage)
    data = prepare_rows(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
    rows = data.batch_rows(stage)
    if rows < stage.batch_size:  # PPO would wait for them forever (TRL 1.12), the others would make no step
        what = f"{rows} rows are left to train on, less than batch_size={stage.batch_size}"
        raise DataError(f"dataset: {what}\n  fix: batch_size={rows} or less")
    return tokenizer, data


def build(stage: Stage, tokenizer: Any, data: Any) -> Any:
    """The method's trainer, after a header that says what it will do."""
    from rlhf import methods
    from rlhf.methods.arguments import named

    console.header(stage, data)
    try:
        trainer = methods.build(stage, tokenizer, data)
    except (ValueError, NotImplementedError, ImportError) as error:
        if refusal := named(stage, error):
            raise refusal from error
        raise
    if sum(p.numel() for p in trainer.model.parameters()) >= LARGE:
        return_freed_memory()
    return trainer


def train(stage: Stage, tokenizer: Any, data: Any, trainer: Any, run: record.Record) -> None:
    """Train, from the last checkpoint if there is one; raises when a guard or a signal ends it before its last step."""
    from rlhf.methods.arguments import named
    from rlhf.runs import callbacks

    run.write("trainer_args.json", trainer.args.to_sanitized_dict())
    preemption, watching = callbacks.install(trainer, stage)
    found = ranks.from_main(str(run.last_checkpoint() or "") if run.resumed and ranks.is_main() else "")
    checkpoint = Path(found) if found else None
    if checkpoint is not None:
        if ranks.is_main():
            print(f"going on from {checkpoint}", flush=True)
        if not METHODS[stage.method.name].own_loop:
            callbacks.go_on(trainer, checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (ValueError, KeyError) as error:  # as of `metric_for_best_model`, whose names an evaluation gives
        if refusal := named(stage, error):
            raise refusal from error
        raise
    finally:
        preemption.over()
    if watching.stops:
        from rlhf.evaluation.evaluate import suspicious

        # several ranks with parts of the weights can't each answer some of the prompts
        said = suspicious(stage, tokenizer, data, trainer) if stage.hardware.sharding == "none" else []
        if ranks.is_main():
            watching.suspicious.unlink(missing_ok=True)
            files.append_lines(watching.suspicious, said)
        run.status("running")
        raise watching.stopped()
    if preemption.asked:
        run.status("running")
        raise Preempted(f"stopped by SIGTERM at step {trainer.state.global_step}; the same command goes on from there")
    own = METHODS[stage.method.name].own_loop  # which evaluates by itself
    if trainer.args.eval_strategy != "no" and not own and not _evaluated(trainer):
        trainer.evaluate()  # what is compared with published numbers is the model that is saved


def save(stage: Stage, tokenizer: Any, trainer: Any) -> None:
    """Weights and tokenizer go to `final/`, whole or not at all: other stages read it as soon as it is there."""
    from rlhf.parallel.sharding import gathered  # imports torch

    with ranks.agreed(), gathered(trainer.model):
        if ranks.is_main():
            files.replace_folder(stage.path / files.FINAL, partial(_write, stage, tokenizer, trainer))


def _write(stage: Stage, tokenizer: Any, trainer: Any, folder: Path) -> None:
    if METHODS[stage.method.name].own_loop:
        trainer.save_model(str(folder))
    else:
        from rlhf.models.base import save_final

        save_final(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    for file in folder.rglob("adapter_config.json"):
        config = files.read_json(file)
        if isinstance(config.get("target_modules"), list):  # PEFT writes the names of layers as their hashes fall
            config["target_modules"].sort()
        if stage.model.path is not None:  # the adapter it began with may name a base that has been moved since
            config["base_model_name_or_path"] = str(stage.model.path)
        files.write_json(file, config)


def evaluate(stage: Stage, tokenizer: Any, data: Any) -> dict[str, Any]:
    """The numbers of what the stage saved."""
    from rlhf.evaluation.evaluate import evaluate_policy, evaluate_reward

    of = {"policy": evaluate_policy, "reward": evaluate_reward}[METHODS[stage.method.name].leaves]
    return of(stage, tokenizer, data)


def _evaluated(trainer: Any) -> bool:
    """Whether the last held-out loss is that of the final weights."""
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return steps[-1:] == [trainer.state.global_step]
