"""Folders of adapters that do not fit: copies of the workshop's reward adapter with a change."""

import json
import shutil

from safetensors.torch import load_file, save_file


def broken(workshop, tmp_path, change):
    """A copy of the reward folder with `change` applied to its config and tensors."""
    folder = tmp_path / "broken"
    shutil.copytree(workshop.reward, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def head_key(tensors):
    return next(k for k in tensors if k.endswith("score.weight"))


def other_tokenizer(workshop, folder):
    """A reward adapter whose tokenizer has the ids of two words exchanged."""
    folder = broken(workshop, folder, lambda config, tensors: None)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["w10"], vocabulary["w11"] = vocabulary["w11"], vocabulary["w10"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder
