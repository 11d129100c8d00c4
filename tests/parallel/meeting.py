"""What two ranks say to each other, as a program that `rlhf.parallel.start` runs once for each of them."""

import sys

from rlhf.errors import ConfigError, Elsewhere
from rlhf.parallel import ranks


def main() -> None:
    ranks.meet(2, on_gpu=False)
    import torch

    me = ranks.rank()
    assert ranks.size() == 2 and ranks.is_main() == (me == 0)
    assert ranks.gather({"rank": me, "text": "é" * (1 + 5 * me)}) == [
        {"rank": 0, "text": "é"},
        {"rank": 1, "text": "é" * 6},
    ]
    assert ranks.from_main(me) == 0 and ranks.anywhere(me == 1) and not ranks.anywhere(False)
    assert ranks.total(torch.tensor([1.0, me])).tolist() == [2.0, 1.0]
    assert ranks.same(torch.tensor([5.0 + me])).tolist() == [5.0]
    assert ranks.share(list("abcde")) == (list("ade"), list("bc"))[me] and ranks.done() == (3, 2)[me]

    both, one, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    both.grad = torch.full((3,), 1.0 + me)
    if me:
        one.grad = torch.ones(3)
    ranks.add_gradients([both, one, none])
    assert both.grad.tolist() == [3.0] * 3 and one.grad is not None and one.grad.tolist() == [1.0] * 3
    assert none.grad is None  # an optimizer would decay its weights

    try:
        with ranks.agreed(main_first=True):
            if me:
                raise ConfigError("only here")
        raise AssertionError("what fails on one rank fails on all")
    except (ConfigError, Elsewhere) as error:
        assert (type(error) is ConfigError) == bool(me)
    try:
        ranks.check_same({"seed": me})
    except ConfigError as error:
        assert str(error).startswith("rank 1 has seed=1, and rank 0 has 0")
    else:
        raise AssertionError("other settings are told")
    print("met", flush=True)
    if sys.argv[1:] == ["lost"]:
        if me:
            raise SystemExit(3)
        try:
            ranks.gather(0)
        except Elsewhere as error:
            raise SystemExit(error.code) from error


main()
