"""A GPU that is not there: tensors are on the CPU, are told to be on `cuda:0`, and may not meet those that are not.

torch has no such device: `meta` holds no numbers, so that nothing that samples runs on it, and the backend in Python that torch
lets one register takes no Params4bit, no autocast and none of the code that asks for `cuda` by name. So two modes of torch keep
a list of storages that lie on the card. The one for functions answers `tensor.device` and makes `device="cuda"` a place on that
list; the one for operators lets tensors of two places meet only where CUDA does, and counts the bytes that live on the card.
What it can't tell: what kernels of CUDA do inside, how fast they are, and what another thread does.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CARD, HOST, NAME = torch.device("cuda", 0), torch.device("cpu"), "a GPU that is not there"
MEMORY = 80 * 10**9
_nn: Any = getattr(torch._C, "_nn")  # noqa: B009
_get = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_COPIES = {"aten::copy_", "aten::copy", "aten::_to_copy", "aten::set_"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
# what autocast of CUDA computes in fp32 and that of the CPU does not (torch.amp, "CUDA Ops that can autocast to float32")
_IN_FP32 = {"__pow__", "__rpow__", "__rtruediv__", "cross_entropy", "cumprod", "cumsum", "exp", "expm1", "kl_div", "layer_norm", "log",
            "log10", "log1p", "log2", "log_softmax", "mse_loss", "nll_loss", "norm", "pow", "prod", "reciprocal", "rsqrt",
            "smooth_l1_loss", "softmax", "softplus", "sum"}  # fmt: skip


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


class Card:
    """Which storages lie on the card, their bytes, and the most bytes there have been."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bound = self.peak = 0  # `bound`: what was held when it was last counted, and what came since

    def has(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage()._cdata in self.held

    def put(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta or (storage := tensor.untyped_storage())._cdata in self.held:
            return
        # the reference keeps the address from being another storage's, not the bytes
        self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bound += storage.nbytes()
        if self.bound > self.peak:
            self.peak = max(self.peak, self.allocated())

    def drop(self, tensor: torch.Tensor) -> None:
        self.held.pop(tensor.untyped_storage()._cdata, None)

    def allocated(self) -> int:
        """Bytes of the storages that somebody still holds."""
        self.held = {key: one for key, one in self.held.items() if not one[0].expired()}
        self.bound = sum(size for _, size in self.held.values())
        return self.bound

    def reset(self) -> None:
        self.peak = self.allocated()


class _Operators(TorchDispatchMode):
    """Every operator, also those of backward: who may meet, and where what it makes lies."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card, self.place = card, HOST  # `place`: of what is made of nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            kwargs, card, name = kwargs or {}, self.card, func._schema.name
            given = [*_tensors(args), *_tensors(kwargs)]
            there = [card.has(one) for one in given]
            if any(there) and not all(there):
                self._refuse_mixed(name, args, given, there)
            made = func(*args, **kwargs)
            if any(there[:1]) if name in _COPIES else any(there) or (not given and self.place == CARD):
                if kwargs.get("generator") is not None:  # all that can be made here are of the CPU
                    raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
                for one in _tensors(made):
                    card.put(one)
            return made

    def _refuse_mixed(self, name: str, args: Any, given: list[torch.Tensor], there: list[bool]) -> None:
        if name in _COPIES:
            return
        if name in _INDEXED and self.card.has(args[0]):  # places may be told by the host, values not
            given = [*_tensors(args[0]), *_tensors(args[2:])]
            there = [self.card.has(one) for one in given]
        if any(one.ndim for one, on_card in zip(given, there, strict=True) if not on_card):
            found = " and ".join(
                f"{'cuda:0' if card else 'cpu'} {list(one.shape)}" for one, card in zip(given, there, strict=True)
            )
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} was given {found}")


class _Functions(TorchFunctionMode):
    """Every function of Python on tensors: which device it asks for, and which it is told."""

    def __init__(self, card: Card, operators: _Operators) -> None:
        super().__init__()
        self.card, self.operators = card, operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        card, kwargs, name = self.card, dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "__get__":
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute in ("device", "is_cuda", "is_cpu"):
                held = card.has(args[0])
                told = CARD if held else _get(args[0])
                return {"device": told, "is_cuda": held, "is_cpu": told.type == "cpu"}[attribute]
        if func is torch.device and isinstance(args[0], int):
            return torch.device("cuda", args[0])
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], torch.Tensor):
            return self._move(name, args, kwargs)
        if name in ("numpy", "__array__") and card.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name == "get_device":
            return 0 if card.has(args[0]) else -1
        if name == "pin_memory":
            return args[0]
        kwargs.pop("pin_memory", None)
        asked = kwargs.get("device")
        if asked is not None:
            asked = _device(asked)
            kwargs["device"] = HOST if asked.type == "cuda" else asked
        if name in _IN_FP32 and torch.is_autocast_enabled("cuda"):
            args = tuple(_wide(one) for one in args)
        given = [*_tensors(args), *_tensors(kwargs)]
        of_card = any(card.has(one) for one in given)
        if asked is not None and asked.type == "cuda" and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator but found 'cpu'")
        before = self.operators.place
        self.operators.place = CARD if (of_card if asked is None else asked.type == "cuda") else HOST
        try:
            made = func(*args, **kwargs)
        finally:
            self.operators.place = before
        if asked is not None:
            return self._place(made, given, asked)
        if name.startswith("new_") and of_card:
            card.put(cast(torch.Tensor, made))
        return made

    def _place(self, made: Any, given: list[torch.Tensor], asked: torch.device) -> Any:
        if asked.type == "meta" or not isinstance(made, torch.Tensor) or self.card.has(made) == (asked.type == "cuda"):
            return made
        if any(made.untyped_storage()._cdata == one.untyped_storage()._cdata for one in given if not one.is_meta):
            made = made.clone()  # as_tensor, which would copy to the card
        (self.card.put if asked.type == "cuda" else self.card.drop)(made)
        return made

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """`to`, `cuda` and `cpu`: a copy on the other side, of which the gradient comes back."""
        tensor, rest = args[0], list(args[1:])
        if rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            asked, dtype = CARD if self.card.has(other) else _get(other), other.dtype
        elif name == "to":
            asked, dtype, _, _ = _nn._parse_to(*rest, **{k: v for k, v in kwargs.items() if k != "copy"})
            dtype = dtype or tensor.dtype
        else:
            asked, dtype = (CARD if name == "cuda" else HOST), tensor.dtype
        held = self.card.has(tensor)
        if asked is not None and asked.type == "meta":
            return torch.Tensor.to(tensor, device=asked, dtype=dtype)
        if asked is None or held == (asked.type == "cuda"):
            return torch.Tensor.to(tensor, dtype=dtype, copy=bool(kwargs.get("copy")))
        moved = torch.Tensor.to(tensor, dtype=dtype, copy=True)
        (self.card.put if asked.type == "cuda" else self.card.drop)(moved)
        return moved


def _wide(value: Any) -> Any:
    low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value


def _device(asked: Any) -> torch.device:
    return torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)


def install() -> Card:
    """Gives this process the card for good; call it before a model is made, in the thread that makes it."""
    import bitsandbytes  # noqa: F401  these look for a GPU when they are imported
    import peft  # noqa: F401
    import transformers  # noqa: F401

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers would place weights in other threads
    card = Card()
    told: dict[str, Any] = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(name=NAME, total_memory=MEMORY, major=9, minor=0),
        "mem_get_info": lambda *_: (MEMORY - card.allocated(), MEMORY),
        "memory_allocated": lambda *_: card.allocated(),
        "max_memory_allocated": lambda *_: card.peak,
        "memory_reserved": lambda *_: card.allocated(),
        "reset_peak_memory_stats": lambda *_: card.reset(),
    }
    for name in ("set_device", "synchronize", "empty_cache"):
        told[name] = lambda *_: None
    random: dict[str, Any] = {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda _: None,
    }
    for name, answer in (told | random).items():
        setattr(torch.cuda, name, answer)
    for name, answer in random.items():
        setattr(torch.cuda.random, name, answer)
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        setattr(torch, name, _of_host(getattr(torch, name)))
    parse = _nn._parse_to
    _nn._parse_to = lambda *arguments, **named: parse(
        *(_device(one) if type(one) is int else one for one in arguments),
        **{name: _device(one) if type(one) is int else one for name, one in named.items()},
    )
    operators = _Operators(card)
    operators.__enter__()
    functions = _Functions(card, operators)
    functions.__enter__()

    def answered(function: Any) -> Any:
        """In backward torch leaves modes for functions out; what it calls of Python asks for devices too."""

        def inside(*arguments: Any, **named: Any) -> Any:
            with nullcontext() if torch._C._len_torch_function_stack() else functions:
                return function(*arguments, **named)

        return inside

    torch.autograd.function.BackwardCFunction.apply = answered(torch.autograd.function.BackwardCFunction.apply)
    hooks: Any = torch.autograd.graph.saved_tensors_hooks
    begin = hooks.__init__
    # of a checkpoint: unpacking computes its forward again
    hooks.__init__ = lambda self, pack, unpack: begin(self, answered(pack), answered(unpack))
    return card


def _of_host(function: Any) -> Any:
    """Autocast of `cuda` is that of the CPU, where the tensors are."""

    def asked(device: Any = "cuda", *more: Any) -> Any:
        return function("cpu" if device == "cuda" else device, *more)

    return asked
