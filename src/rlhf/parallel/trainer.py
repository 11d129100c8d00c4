"""TRL's trainers on several ranks, and a batch that is one batch however many micro-batches it comes in."""

from itertools import zip_longest
from typing import Any

import torch

from rlhf.parallel import ranks, sharding

COUNTED = "_total_train_tokens"  # TRL's count of the tokens trained on


class WholeBatch:
    """Mixed into a trainer whose loss is a mean over a micro-batch: each of a batch counts by its `units`, so that four micro-batches
    of one row and one of four make the same step, a last one that is shorter included."""

    def units(self, inputs: dict[str, Any]) -> Any:
        """What a micro-batch's loss is a mean over, as a number: its rows."""
        return len(next(iter(inputs.values())))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        theirs: Any = super()
        batches, _ = theirs.get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(map(self.units, batches)) / max(1, len(batches))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        theirs: Any = super()
        counts = 1.0 if num_items_in_batch is None else self.units(inputs) / num_items_in_batch
        found = theirs.compute_loss(model, inputs, return_outputs)
        return (found[0] * counts, found[1]) if return_outputs else found * counts


class Shared:
    """Gives a trainer of transformers to several ranks. Each sees every micro-batch and computes its share; gradients and the loss are
    added up before the optimizer's step, and TRL's metrics before they are logged. The main rank alone writes.

    Where weights are dropped, each micro-batch has random numbers of its own, whichever rank computes it. Where they are sharded, torch
    adds the gradients up, and a rank with no micro-batch left computes one that counts nothing, since all gather layers together.
    """

    def __init__(self, trainer: Any, seed: int) -> None:
        self.trainer, self.seed = trainer, seed
        self.drops = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in trainer.model.modules())
        self.place, self.count, self.loss, self.counted = 0, 0, 0.0, 0.0
        self.last: tuple[Any, ...] = ()
        if ranks.size() == 1 and not self.drops:
            return
        own = ("get_batch_samples", "training_step", "prediction_step", "evaluation_loop", "log", "_save_checkpoint")
        self.theirs = {name: getattr(trainer, name) for name in own}
        for name in own:
            setattr(trainer, name, getattr(self, name))
        self.sharded = sharding.is_sharded(trainer.model)
        if self.sharded:
            sharding.cut_what_is_loaded(trainer)
        else:
            for parameter in self.trained():
                ranks.same(parameter.data)

    def trained(self) -> list[Any]:
        return [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]

    def get_batch_samples(self, *given: Any) -> Any:
        found = self.theirs["get_batch_samples"](*given)
        self.place, self.count, self.loss = 0, len(found[0]), 0.0
        self.counted = getattr(self.trainer, COUNTED, 0.0)
        return found

    def training_step(self, model: Any, inputs: Any, *more: Any) -> torch.Tensor:
        place, self.place = self.place, self.place + 1
        if self.drops:
            torch.manual_seed(hash((self.seed, self.trainer.state.global_step, place)) % 2**63)
        if ranks.is_mine(place):
            self.loss += self.theirs["training_step"](model, inputs, *more)
        if self.place < self.count:
            return torch.zeros((), device=self.trainer.args.device)
        if self.sharded:
            self.keep_up("training_step", model, inputs, *more)
        else:
            ranks.add_gradients(self.trained())
        tokens = getattr(self.trainer, COUNTED, 0.0) - self.counted
        loss, tokens = ranks.total(torch.tensor([float(self.loss), tokens], dtype=torch.float64)).tolist()
        if hasattr(self.trainer, COUNTED):
            setattr(self.trainer, COUNTED, type(getattr(self.trainer, COUNTED))(self.counted + tokens))
        return torch.tensor(loss, device=self.trainer.args.device, dtype=torch.float32)

    def keep_up(self, name: str, *given: Any) -> None:
        """Compute a micro-batch once more, for nothing, where others have one more than this rank has."""
        left = self.place % ranks.size()
        if not left or any(ranks.owner(self.place - back) == ranks.rank() for back in range(1, left + 1)):
            return
        trainer = self.trainer
        kept = {mode: {key: [*values] for key, values in told.items()} for mode, told in trainer._metrics.items()}
        counted, compute = getattr(trainer, COUNTED, None), trainer.compute_loss

        def nothing(*given: Any, **named: Any) -> Any:
            found = compute(*given, **named)
            return (found[0] * 0, *found[1:]) if isinstance(found, tuple) else found * 0

        trainer.compute_loss = nothing
        self.theirs[name](*given)
        del trainer.compute_loss
        for mode, told in kept.items():
            trainer._metrics[mode].clear()
            trainer._metrics[mode].update(told)
        if counted is not None:
            setattr(trainer, COUNTED, counted)

    def evaluation_loop(self, *given: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        self.place, self.last = 0, ()
        found = self.theirs["evaluation_loop"](*given, metric_key_prefix=metric_key_prefix, **named)
        if self.sharded and self.last:
            self.keep_up("prediction_step", *self.last)
        if (key := f"{metric_key_prefix}_loss") in found.metrics:  # the mean of a table in which others' losses are 0
            found.metrics[key] = float(ranks.total(torch.tensor(found.metrics[key], dtype=torch.float64)))
        return found

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *more: Any, **named: Any) -> Any:
        place, self.place = self.place, self.place + 1
        if not prediction_loss_only:
            self.last = ()  # all ranks do all of it
        elif self.sharded:
            self.last = (model, inputs, prediction_loss_only, *more)
        if ranks.is_mine(place) or not prediction_loss_only:
            found = self.theirs["prediction_step"](model, inputs, prediction_loss_only, *more, **named)
            return found if prediction_loss_only else (found[0] / ranks.size(), *found[1:])
        return torch.zeros((), device=self.trainer.args.device), None, None

    def log(self, logs: dict[str, float], *more: Any) -> None:
        told = self.trainer._metrics["train" if self.trainer.model.training else "eval"]
        every = ranks.gather({name: [float(value) for value in values] for name, values in told.items()})
        for name in dict.fromkeys(name for one in every for name in one):
            places = zip_longest(*(one.get(name, []) for one in every))
            told[name] = [value for place in places for value in place if value is not None]
        if "num_tokens" in told:
            told["num_tokens"] = [getattr(self.trainer, COUNTED)]
        self.theirs["log"](logs, *more)

    def _save_checkpoint(self, *given: Any) -> None:
        with ranks.agreed(), sharding.gathered(self.trainer.model, self.trainer.optimizer):
            if ranks.is_main():
                self.theirs["_save_checkpoint"](*given)
        state = self.trainer.state
        state.best_model_checkpoint = ranks.from_main(state.best_model_checkpoint)
