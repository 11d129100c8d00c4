"""Chat templates of model families as they ship, and a tokenizer that knows the special tokens of all of them.

Most are the files that TRL keeps byte for byte from the models (`trl/chat_templates/README.md` names the checkpoints). Those that it
has not are written here after what their repositories publish (tokenizer_config.json; in `WRITTEN`).
"""

import re
from functools import cache
from pathlib import Path

MISTRAL = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}"
    "{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}"
    "{%- elif m.role == 'assistant' -%}{{- m.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}{%- endfor -%}"
)
MISTRAL_TOOLS = (  # the system turn and the tools stand before the last user's words
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list -%}"
    "{{- bos_token -}}{%- for m in turns -%}{%- if m.role == 'user' -%}"
    "{%- if tools and m == asked[-1] -%}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}"
    "{%- if loop.last and system is defined -%}{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' -}}"
    "{%- else -%}{{- '[INST] ' + m.content + '[/INST]' -}}{%- endif -%}"
    "{%- elif m.tool_calls is defined -%}{{- '[TOOL_CALLS] [' -}}{%- for call in m.tool_calls -%}"
    "{%- if not call.id is defined or call.id | length != 9 -%}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}{%- endif -%}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' -}}{{- ', ' if not loop.last else ']' + eos_token -}}"
    "{%- endfor -%}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' + m.content | trim + eos_token -}}"
    "{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS] {\"content\": ' + m.content + '}[/TOOL_RESULTS]' -}}"
    "{%- endif -%}{%- endfor -%}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ SYSTEM }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'"
SMOLLM3 = (  # thinking by default; its switches are taken out of the system turn
    "{%- set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' -%}"
    "{%- set ns = namespace(custom='') -%}{%- if messages[0].role == 'system' -%}"
    "{%- if '/no_think' in messages[0].content -%}{%- set mode = '/no_think' -%}{%- endif -%}"
    "{%- set ns.custom = messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() -%}{%- endif -%}"
    "{{- '<|im_start|>system\n## Metadata\n\nReasoning Mode: ' + mode + '\n\n## Custom Instructions\n\n' + ns.custom -}}"
    "{%- if tools -%}{{- '\n\n### Tools\n\n' + tools | tojson -}}{%- endif -%}{{- '<|im_end|>\n' -}}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<|im_start|>assistant\n' -}}"
    "{{- ('<think>\n\n</think>\n' if mode == '/no_think' else '') + m.content.lstrip('\n') + '<|im_end|>\n' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{{- '<think>\n\n</think>\n' if mode == '/no_think' else '' -}}{%- endif -%}"
)
PHI4 = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
TULU3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}{{ '\n' if not loop.last else '' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
GRANITE3 = (
    "{%- for m in messages -%}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
FALCON3 = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
VICUNA = (  # no token ends a user's turn
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- 'USER: ' + m.content + ' ' -}}{%- elif m.role == 'assistant' -%}"
    "{{- 'ASSISTANT: ' + m.content + eos_token -}}{%- else -%}{{- m.content + '\n\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
WRITTEN = {
    "Mistral v0.1": (MISTRAL, "</s>"),
    "Mistral v0.3": (MISTRAL_TOOLS, "</s>"),
    "Zephyr": (ZEPHYR, "</s>"),
    "SmolLM2": (CHATML.replace("SYSTEM", SMOLLM2), "<|im_end|>"),
    "SmolLM3": (SMOLLM3, "<|im_end|>"),
    "Yi": (CHATML.replace("{{ SYSTEM }}", ""), "<|im_end|>"),
    "Phi-4": (PHI4, "<|im_end|>"),
    "Tulu 3": (TULU3, "<|end_of_text|>"),
    "OLMo 2": ("{{ bos_token }}" + TULU3, "<|endoftext|>"),
    "Granite 3": (GRANITE3, "<|end_of_text|>"),
    "Falcon 3": (FALCON3, "<|endoftext|>"),
    "Vicuna": (VICUNA, "</s>"),
}
SHIPPED = {
    "Qwen2.5": ("qwen2_5", "<|im_end|>"),
    "Qwen3": ("qwen3", "<|im_end|>"),
    "Qwen3 2507": ("qwen3_instruct_2507", "<|im_end|>"),
    "Llama 3": ("llama3", "<|eot_id|>"),
    "Llama 3.1": ("llama3_1", "<|eot_id|>"),
    "Llama 3.2": ("llama3_2", "<|eot_id|>"),
    "Gemma 2": ("gemma", "<end_of_turn>"),
    "Gemma 3": ("gemma3", "<end_of_turn>"),
    "Phi-3": ("phi3", "<|end|>"),
    "Phi-3.5": ("phi3_5", "<|end|>"),
    "Command R": ("cohere", "<|END_OF_TURN_TOKEN|>"),
    "Command R7B": ("cohere2", "<|END_OF_TURN_TOKEN|>"),
    "DeepSeek V3": ("deepseekv3", "<｜end▁of▁sentence｜>"),
    "DeepSeek R1 distilled": ("deepseek_r1_distill", "<｜end▁of▁sentence｜>"),
    "GLM 4.5": ("glm4moe", "<|endoftext|>"),
    "gpt-oss": ("gptoss", "<|return|>"),
    "LFM2": ("lfm2", "<|im_end|>"),
    "Gemma 4": ("gemma4", "<turn|>"),
    "Qwen3.5": ("qwen3_5_think", "<|im_end|>"),
    "Nemotron 3": ("nemotron_3_nano", "<|im_end|>"),
}
SPECIAL = re.compile(
    r"<\|[A-Za-z_]+\|>|<｜[^｜<]+｜>|<(?:start|end)_of_(?:turn|image|utterance)>|\[/?(?:INST|[A-Z]+_[A-Z]+)\]"
    r"|<\|(?:turn|channel|tool\w*)>|<(?:turn|channel|tool\w*)\|>|<\|\"\|>|\[gMASK\]|<sop>"
)
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # tokens of their own, and not special, as in Qwen3


def templates():
    import trl

    shipped = Path(trl.__file__).parent / "chat_templates"
    found = {name: ((shipped / f"{file}.jinja").read_text(), eos) for name, (file, eos) in SHIPPED.items()}
    return {**found, **WRITTEN}


@cache
def core():
    """Bytes, a few merges, and the special tokens of all families."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = {"<pad>", "<s>", "</s>", *(eos for _, eos in templates().values())}
    special |= {token for text, _ in templates().values() for token in SPECIAL.findall(text)} - set(ADDED)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=sorted(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["is it late? the last train back\n\nassistant\nuser\n"] * 3, trainer)
    made.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return made


def tokenizer_of(template, eos):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=core(), bos_token="<s>", eos_token=eos, pad_token="<pad>", chat_template=template
    )
