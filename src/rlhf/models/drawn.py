"""Random weights straight in 4 bit, matrix by matrix on the device that holds them: an 8B shape never exists in 16 bits."""

from typing import Any

import torch


def drawn(
    kind: Any, config: Any, quantization: Any, *, dtype: torch.dtype, device: Any, attention: str = "sdpa"
) -> Any:
    """What `kind.from_pretrained` makes of a checkpoint whose matrices are drawn from N(0, initializer_range^2) of `config`.

    bitsandbytes quantizes each as it would a loaded one, so that scales and code book are those of such numbers, and what a model
    of such weights computes is finite. `device` is what `device_map` takes.
    """
    from accelerate import init_empty_weights
    from bitsandbytes.nn.modules import Params4bit
    from transformers.quantizers.auto import AutoHfQuantizer

    where = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    quantizer: Any = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    quantizer.preprocess_model(model=model, device_map={"": where})
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    for name, module in model.named_modules():
        for own, empty in list(module.named_parameters(recurse=False)):
            if f"{name}.{own}" in tied:
                continue
            values = torch.full(empty.shape, float(own == "weight"), dtype=dtype, device=where)
            if empty.ndim > 1:
                values.normal_(std=config.initializer_range)
            if isinstance(empty, Params4bit):
                packed: Any = Params4bit(values, requires_grad=False, **vars(empty))
                setattr(module, own, packed.to(where))  # which is when it quantizes
            else:
                setattr(module, own, torch.nn.Parameter(values, requires_grad=empty.requires_grad))
        for own, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(own, buffer.to(where), persistent=own not in module._non_persistent_buffers_set)
    model.tie_weights()
    model.hf_quantizer = quantizer
    return quantizer.postprocess_model(model).eval()
