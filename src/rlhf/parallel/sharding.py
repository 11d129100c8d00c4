"""Weights that are trained whole, cut over the ranks (torch's FSDP2): each holds its part of every weight, of its gradient and of the
optimizer's numbers, and gathers a layer while it is computed. Rajbhandari et al. 2020, arXiv:1910.02054, stage 3.

What is saved is whole, and what is read is cut again: a run goes on with any number of ranks, and without sharding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.parallel import ranks


def shard(model: Any, device: str) -> Any:
    """`model` of transformers, on `device`, cut over the ranks layer by layer; gradients become sums over the ranks, not means.

    `model.inside(work)` calls `work()` as its forward pass: what that reads outside of the layers is gathered.
    """
    for parameter in model.parameters():
        ranks.same(parameter.data)
    mesh = init_device_mesh(device, (ranks.size(),))
    layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for module in [*layers, model]:
        made: Any = fully_shard(module, mesh=mesh)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo can't divide
    torch.set_autocast_cache_enabled(False)  # it would hold a copy in bf16 of every layer
    model.inside = MethodType(lambda _, work: work(), model)
    register_fsdp_forward_method(model, "inside")
    return model


def is_sharded(model: Any) -> bool:
    return hasattr(model, "inside")


def part(tensor: Any) -> Any:
    """What of a tensor this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Any) -> Any:
    """All of a tensor that is cut, on the CPU; every rank has to ask, and only the main one keeps it."""
    if not isinstance(tensor, DTensor):
        return tensor
    found = tensor.full_tensor().detach()
    return found.cpu() if ranks.is_main() else found.new_empty(0)


def _cut(tensor: Tensor, like: Any) -> Any:
    """This rank's part of what every rank has whole, as `like` is cut."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def weights(model: Any) -> dict[str, Tensor]:
    """The whole state of a model, on the main rank; tied weights are one tensor under two names, as they are in memory."""
    tensors = model.state_dict(keep_vars=True)
    found = {id(tensor): whole(tensor) for tensor in tensors.values()}
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


@contextmanager
def gathered(model: Any, optimizer: Any = None) -> Iterator[None]:
    """Within, the main rank's `state_dict`s of a sharded model and its optimizer are those of whole ones. Every rank has to enter."""
    if not is_sharded(model):
        yield
        return
    states: list[tuple[Any, Any]] = [(model, weights(model))]
    if optimizer is not None:
        state = optimizer.state_dict()
        numbers = {one: {name: whole(value) for name, value in own.items()} for one, own in state["state"].items()}
        states.append((optimizer, state | {"state": numbers}))
    for owner, state in states:
        owner.state_dict = _giver(state)
    try:
        yield
    finally:
        for owner, _ in states:
            del owner.state_dict


def _giver(state: Any) -> Callable[..., Any]:
    return lambda *_, **__: state


def cut_what_is_loaded(trainer: Any) -> None:
    """From here on a trainer's model and optimizer, once it is made, take whole states from checkpoints."""
    model, create = trainer.model, trainer.create_optimizer
    load_weights = model.load_state_dict

    def load(state: dict[str, Tensor], *more: Any, **named: Any) -> Any:
        own = model.state_dict(keep_vars=True)
        return load_weights({name: _cut(value, own.get(name)) for name, value in state.items()}, *more, **named)

    def created(*given: Any, **named: Any) -> Any:
        optimizer = create(*given, **named)
        load_numbers = optimizer.load_state_dict

        def load_optimizer(state: dict[str, Any]) -> None:
            cut = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = {
                place: {name: _cut(value, cut[place]) for name, value in own.items()}
                for place, own in state["state"].items()
            }
            load_numbers(state | {"state": numbers})

        optimizer.load_state_dict = load_optimizer
        return optimizer

    model.load_state_dict, trainer.create_optimizer = load, created
