"""Goldens of transformers' torch BERT and RoBERTa, with random weights of tiny size.

    python tools/make_goldens/bert.py --out tests/golden          # needs requirements-peers.txt

Each folder is a checkpoint in Hugging Face's layout (config.json, weights.safetensors) with its
inputs and outputs in io.safetensors. Other sizes: --seed and --scale.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

README = """# {name}
{model} of transformers {version}, torch {torch}, eval mode, float32, eager attention.
All weights are random, norms and biases too; config.json is the model's own.
weights.safetensors: the names of its state_dict, without tied copies.
io: input_ids, attention_mask, token_type_ids, labels (-100: no label), embeddings (output of the
embedding layer), hidden<i> (output of layer i), pooled, logits, loss (mean over the labels),
gradnorm/<parameter> (of loss + the sum of pooled squared).
Biases of keys have no gradient but noise. Tolerance: 1e-5 absolute, 1e-4 relative on gradients.
"""


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=1, help="multiplies heads and widths")
    options = parser.parse_args()
    for kind in ("bert", "roberta"):
        make(options.out / f"{kind}_{options.seed}", kind, options.seed, options.scale)


def make(folder: pathlib.Path, kind: str, seed: int, scale: int) -> None:
    """Writes one golden."""
    torch.manual_seed(seed)
    model = build(kind, seed, scale).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = texts(model.config, seed)
    labels = inputs["input_ids"].clone()
    labels[torch.rand(labels.shape) < 0.7] = -100
    labels[inputs["attention_mask"] == 0] = -100
    io = {**inputs, "labels": labels}
    base = getattr(model, kind)
    io["embeddings"] = base.embeddings(inputs["input_ids"], inputs["token_type_ids"])
    out = base(**inputs, output_hidden_states=True)
    io |= {f"hidden{i}": state for i, state in enumerate(out.hidden_states[1:])}
    io["pooled"] = out.pooler_output
    head = model.cls.predictions if kind == "bert" else model.lm_head
    io["logits"] = head(out.last_hidden_state)
    entropy = torch.nn.functional.cross_entropy
    io["loss"] = entropy(io["logits"].flatten(0, 1), labels.flatten())
    (io["loss"] + out.pooler_output.square().sum()).backward()
    io |= {
        f"gradnorm/{name}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not name.endswith("key.bias")  # exactly 0 but for noise
    }
    write(folder, model, io)


def build(kind: str, seed: int, scale: int) -> torch.nn.Module:
    """Returns a tiny model with pooler and masked-language head."""
    sizes = {
        "vocab_size": 89 + 6 * scale,
        "hidden_size": 24 * scale,
        "num_hidden_layers": 2 + seed % 2,
        "num_attention_heads": 4 * scale,
        "intermediate_size": 40 * scale,
        "max_position_embeddings": 20 * scale,
        "type_vocab_size": 2,
        "attn_implementation": "eager",
    }
    if kind == "bert":
        return transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    config = transformers.RobertaConfig(**sizes, layer_norm_eps=1e-5, pad_token_id=1)
    model = transformers.RobertaForMaskedLM(config)
    model.roberta = transformers.RobertaModel(config, add_pooling_layer=True)
    model.tie_weights()
    return model


def texts(config: transformers.PretrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    """Returns three texts, padded on the right; the second half of each has segment 1."""
    pad = config.pad_token_id
    longest = config.max_position_embeddings - pad - 2
    lengths = [longest, longest // 2 + seed % 3, 3]
    ids = torch.full((len(lengths), longest), pad)
    types = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(pad + 1, config.vocab_size, (length,))
        types[row, length // 2 : length] = 1
    mask = (ids != pad).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def write(folder: pathlib.Path, model: torch.nn.Module, io: dict[str, torch.Tensor]) -> None:
    """Writes the four files of a golden."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(weights, folder / "weights.safetensors")
    save_file({k: v.detach().contiguous() for k, v in io.items()}, folder / "io.safetensors")
    config = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    text = README.format(
        name=folder.name,
        model=type(model).__name__,
        version=transformers.__version__,
        torch=torch.__version__,
    )
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    main()
