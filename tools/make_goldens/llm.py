"""Goldens of kind `llm`: tiny language models of every family, run with transformers in torch.

    pip install -r requirements-peers.txt
    python tools/make_goldens/llm.py tests/golden

Writes tests/golden/llm_<name>/: Hugging Face's config, random weights with published names, token
ids with padding on either side, logits, loss, and the ids from generate().
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

COMMON = {
    "vocab_size": 88,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.5, 4.0],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GOLDENS = {
    "llama": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama_tied": ("llama", {"tie_word_embeddings": True, "rope_scaling": YARN, "head_dim": 8}),
    "phi3": (
        "phi3",
        # Phi-3 takes the trained length from here, whatever the scaling says.
        {"sliding_window": 6, "rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
}
LENGTH, SHORT, NEW = 21, 15, 10
README = """# llm_{name}
`{architecture}` of transformers {transformers} in torch {torch}, eager attention, float32,
random weights (names as published). config.json is the model's own config.
input_ids_right, mask_right: row 1 is padded behind; logits_right with position ids 0, 1, 2, ...
input_ids_left, mask_left: the same two texts, row 1 padded in front; logits_left with position ids
that start at the first valid token. Logits at padding are set to 0.
loss: mean negative log-likelihood of the next valid token, over input_ids_right.
generated_ids: {new} new tokens by generate(do_sample=False) from input_ids_left, no eos;
generated_ids_eos: with eos_id, 0 after it; generated_ids_penalty: with repetition_penalty 1.5.
The smallest margin between the best two tokens is {margin:.4f}.
Tolerance: 5e-5 absolute on logits, 1e-5 relative on the loss; ids exact.
"""


def main(root: Path) -> None:
    """Writes every golden below `root`."""
    for number, (name, (family, values)) in enumerate(GOLDENS.items()):
        write(root / f"llm_{name}", name, family, values, seed=number)


def write(folder: Path, name: str, family: str, values: dict, seed: int) -> None:
    """Writes one golden; other seeds are tried until no step of generate() is a near tie."""
    while True:
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(family, **(COMMON | values))
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        ).eval()
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:  # initial norms are one and biases zero, which would hide swaps
                noise = 0.2 * torch.randn_like(parameter)
                parameter.data = noise + ("norm" in key)
        with torch.no_grad():
            io, margin = run(model)
        if margin > 5e-3:
            break
        seed += 100
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    save_file(
        {k: v.contiguous().clone() for k, v in weights.items()}, folder / "weights.safetensors"
    )
    save_file({k: v.contiguous() for k, v in io.items()}, folder / "io.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1, sort_keys=True))
    text = README.format(
        name=name,
        architecture=type(model).__name__,
        transformers=transformers.__version__,
        torch=torch.__version__,
        new=NEW,
        margin=margin,
    )
    (folder / "README.md").write_text(text)


def run(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], float]:
    """Returns inputs and outputs, and the smallest margin of the greedy choices."""
    right = torch.randint(3, model.config.vocab_size, (2, LENGTH))
    mask_right = torch.ones_like(right)
    right[1, SHORT:], mask_right[1, SHORT:] = 0, 0
    shift = LENGTH - SHORT
    left, mask_left = right.clone(), mask_right.clone()
    left[1], mask_left[1] = right[1].roll(shift), mask_right[1].roll(shift)
    logits_right = model(right, attention_mask=mask_right).logits
    positions = (mask_left.cumsum(-1) - 1).clamp(min=0)
    logits_left = model(left, attention_mask=mask_left, position_ids=positions).logits
    labels = right.masked_fill(mask_right == 0, -100)
    loss = model(right, attention_mask=mask_right, labels=labels).loss

    def generate(**options: object) -> torch.Tensor:
        model.generation_config.eos_token_id = options.pop("eos", None)
        return model.generate(
            left,
            attention_mask=mask_left,
            do_sample=False,
            max_new_tokens=NEW,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
            **options,
        )

    plain, penal = generate(), generate(repetition_penalty=1.5)
    generated = plain.sequences[:, LENGTH:]
    eos = generated[0, 3]
    stopped = generate(eos=int(eos)).sequences[:, LENGTH:]
    margins = [step.topk(2).values for result in (plain, penal) for step in result.scores]
    margin = min(float((best[:, 0] - best[:, 1]).min()) for best in margins)
    padded = torch.zeros(2, NEW, dtype=stopped.dtype)
    padded[:, : stopped.shape[1]] = stopped
    io = {
        "input_ids_right": right,
        "mask_right": mask_right,
        "logits_right": logits_right * mask_right[..., None],
        "input_ids_left": left,
        "mask_left": mask_left,
        "logits_left": logits_left * mask_left[..., None],
        "loss": loss,
        "generated_ids": generated,
        "eos_id": eos,
        "generated_ids_eos": padded,
        "generated_ids_penalty": penal.sequences[:, LENGTH:],
    }
    return io, margin


if __name__ == "__main__":
    main(Path(sys.argv[1]))
