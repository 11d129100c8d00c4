"""One stage from its composed configuration to a finished run folder: refuse early, train or go on, save, evaluate, report."""

import gc
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf import files
from rlhf.config import Stage, to_stage
from rlhf.errors import DataError, Preempted
from rlhf.preflight.hub import check_repositories
from rlhf.preflight.settings import check, check_machine
from rlhf.process import LARGE, quiet, return_freed_memory
from rlhf.runs import record


def run_stage(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Run what `cfg` says and return its results.

    Everything that can be refused is refused before the run folder is touched, and before any weight is loaded if it shows in
    the configuration or the data: with `run.overwrite=true` the old run goes only when a trainer for the new one stands.
    """
    stage = to_stage(cfg)
    check(stage)
    resume = record.claim(stage)
    quiet()
    check_machine(stage)
    check_repositories([stage])

    from rlhf.data.prepare import prepare
    from rlhf.methods.arguments import check_arguments, training_arguments
    from rlhf.models.tokenizer import load_tokenizer, prompt_renderer, renderer
    from rlhf.output import console

    check_arguments(stage)
    training_arguments(stage)
    tokenizer = load_tokenizer(stage)
    data = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
    _fits(stage, data.batch_rows(stage))

    trained = resume and record.read_run(stage.path).get("status") == "trained"
    trainer = None if trained else _build(stage, tokenizer, data)

    run = record.Record(stage, cfg, resume, overrides)
    run.write("data.json", {"source": stage.dataset.path, "licence": stage.dataset.licence, "splits": data.ledger})
    if stage.model.init is not None and files.is_main():
        tokenizer.save_pretrained(str(stage.path / "tokenizer"))
    if trainer is not None:
        if sum(p.numel() for p in trainer.model.parameters()) >= LARGE:
            return_freed_memory()
        _train(stage, tokenizer, data, trainer, run)
        run.status("trained")
        del trainer
        gc.collect()
    results = _evaluate(stage, tokenizer, data)
    run.write(files.RESULTS_FILE, results)
    if files.is_main():
        from rlhf.output.plots import curves

        curves(stage.path)
    run.status("finished")
    console.closing(stage, results, run.run)
    return results


def _fits(stage: Stage, rows: int) -> None:
    """A batch needs as many rows; PPO would wait for them forever (TRL 1.12), the others would make no step."""
    if rows < stage.batch_size:
        raise DataError(
            f"dataset: {rows} rows are left to train on, less than batch_size={stage.batch_size}\n  fix: batch_size={rows} or less"
        )


def _build(stage: Stage, tokenizer: Any, data: Any) -> Any:
    import importlib

    from rlhf.output import console

    console.header(stage, data)
    return importlib.import_module(f"rlhf.methods.{stage.method.name}").build(stage, tokenizer, data)


def _train(stage: Stage, tokenizer: Any, data: Any, trainer: Any, run: record.Record) -> None:
    from rlhf.files import replace_folder
    from rlhf.runs import callbacks

    run.write("trainer_args.json", trainer.args.to_sanitized_dict())
    preemption, watching = callbacks.install(trainer, stage)
    checkpoint = run.last_checkpoint() if run.resumed else None
    if checkpoint is not None:
        print(f"going on from {checkpoint}", flush=True)
    began = time.time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watching.stops:
        from rlhf.evaluation.evaluate import suspicious

        if files.is_main():
            watching.suspicious.unlink(missing_ok=True)
            files.append_lines(watching.suspicious, suspicious(stage, tokenizer, data, trainer))
        run.status("running")
        raise watching.stopped()
    if preemption.asked:
        run.status("running")
        raise Preempted(f"stopped by SIGTERM at step {trainer.state.global_step}; the same command goes on from there")
    if trainer.args.eval_strategy != "no" and stage.method.name != "ppo" and not _evaluated(trainer):
        trainer.evaluate()  # what is compared with published numbers is the model that is saved
    if files.is_main():
        # other stages read it as soon as it is there
        replace_folder(stage.path / files.FINAL, partial(_save, stage, trainer, tokenizer))
        run.run["train_seconds"] = round(time.time() - began, 1)


def _save(stage: Stage, trainer: Any, tokenizer: Any, folder: Path) -> None:
    from rlhf.models.base import save_final

    if stage.method.name == "ppo":
        trainer.save_model(str(folder))
        tokenizer.save_pretrained(str(folder))
    else:
        save_final(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
    _card(stage, folder)


def _evaluated(trainer: Any) -> bool:
    """Whether the last held-out loss is that of the final weights."""
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return steps[-1:] == [trainer.state.global_step]


def _card(stage: Stage, final: Any) -> None:
    """The model card: what this is, from what, and how to make it again."""
    lines = [entry["stage"] for entry in record.lineage(stage)]
    meta = ["---", "library_name: peft" if stage.adapter.name == "lora" else "library_name: transformers"]
    if stage.model.licence:
        meta.append(f"license: {stage.model.licence}")
    meta += ["tags: [trl, " + stage.method.name + "]", "---", ""]
    body = [
        f"# {stage.run.recipe}/{stage.run.stage}",
        "",
        f"Trained with the method `{stage.method.name}` on `{stage.dataset.path}` (licence: {stage.dataset.licence or 'not stated'}), "
        f"seed {stage.seed}.",
        "",
        "Weights it builds on, in order: " + (", ".join(f"`{name}`" for name in lines) or "none") + ".",
        "",
        "Settings: `config.yaml` beside this folder; versions, commit and command: `run.json`.",
        "",
    ]
    (final / "README.md").write_text("\n".join(meta + body))


def _evaluate(stage: Stage, tokenizer: Any, data: Any) -> dict[str, Any]:
    from rlhf.evaluation.evaluate import evaluate_policy, evaluate_reward

    if stage.method.name == "reward":
        return evaluate_reward(stage, tokenizer, data)
    return evaluate_policy(stage, tokenizer, data)
