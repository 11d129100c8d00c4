"""Take a finished run out: plain weights that other programs load, held against the run before they appear.

  python src/export.py run=support/ppo [to=[hf,gguf]] [dtype=float16] [out=<folder>] [push=<name>/<repository>] [run.root=runs]

to         hf: a Hugging Face folder for transformers 4.57 and 5, PEFT, vLLM and TGI; gguf: a file for llama.cpp, LM Studio and Ollama
           (with a Modelfile), of models of the Llama family with a byte-level tokenizer
dtype      float32, float16, bfloat16, or for gguf alone q8_0
out        default: runs/<recipe>/<stage>/export
prompts    how many of the run's test prompts the export is held against (200)
push       uploads the folder to the Hugging Face hub, as a private repository of that name

The adapter is merged into the base as it was in training, 4 bit and all; then the files are read back, and logits and greedy replies are
compared with the run's. `export.json` has the differences. Exit code 4: it is another model, and nothing is written. Reward models are
exported as sequence classifiers. Needs memory for the weights in fp32, twice.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlhf import door


@dataclass
class Arguments:
    run: str
    to: list[Literal["hf", "gguf"]] = field(default_factory=lambda: ["hf"])
    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] = "float16"
    out: str | None = None
    prompts: int = 200
    push: str | None = None
    run_root: str = "runs"


def main(own: Arguments) -> None:
    from rlhf.export.refuse import refuse

    root = Path(own.run_root)
    out = Path(own.out) if own.out else root / own.run / "export"
    stage = refuse(root, own.run, own.to, own.dtype, out)
    from rlhf.process import quiet

    quiet()  # from here on libraries are imported that take seconds
    from rlhf.export.run import export, push

    export(stage, own.to, own.dtype, out, own.prompts)
    print(f"files    {out}/")
    if own.push:
        print(f"pushed   {push(out, own.push)}")


if __name__ == "__main__":
    door.enter(main, Arguments)
