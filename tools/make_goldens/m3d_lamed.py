"""Goldens of kinds `m3d_lamed_llama`, `m3d_lamed_phi3` and `lora` at many sizes, made with torch.

    pip install -r requirements-peers.txt
    python tools/make_goldens/m3d_lamed.py FOLDER [NAME ...]

The model combines transformers' language models, MONAI's ViT and PEFT, with the structure and names
of BAAI-DCAI/M3D (63e7200). These goldens cover cases that the goldens from M3D's own code do not
cover. FOLDER gets a folder for each of CASES, or for the named ones only. To compare them:
M3DJAX_GOLDEN=FOLDER/NAME:... python -m pytest tests/parity/test_m3d_lamed.py
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import monai
import peft
import torch
import transformers
from monai.networks.nets import ViT
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

COMMON: dict[str, Any] = {
    "kind": "llama",
    "vision_select_layer": -1,
    "vision_select_feature": "patch",
    "mm_projector_type": "spp",
    "proj_layer_type": "mlp",
    "proj_layer_num": 2,
    "proj_pooling_type": "spatial",
    "proj_pooling_size": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "image_size": [6, 10, 24],
    "patch_size": [3, 5, 6],
    "vit_hidden_size": 24,
    "vit_mlp_dim": 40,
    "vit_num_layers": 3,
    "vit_num_heads": 3,
    "text": {"qlen": [7, 3, 5], "alen": [4, 9, 1], "max_length": 26, "prompt_q": 4, "new": 9},
}
PHI3 = {"kind": "phi3", "sliding_window": 2047, "original_max_position_embeddings": 512}
CASES: dict[str, dict[str, Any]] = {
    "m3d_lamed_llama_grouped": {"proj_layer_num": 3, "num_hidden_layers": 3},
    "m3d_lamed_llama_sequence": {"proj_pooling_type": "sequence", "proj_layer_type": "linear"},
    "m3d_lamed_llama_linear": {
        "mm_projector_type": "linear",
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "rope_theta": 2e4,
    },
    "m3d_lamed_phi3_grouped": PHI3 | {"eos_token_id": 64, "pad_token_id": 64, "proj_layer_num": 1},
    "m3d_lamed_phi3_window": PHI3
    | {"sliding_window": 5, "num_key_value_heads": 3, "proj_pooling_size": 1, "hidden_size": 48},
    "lora_grouped": {"lora": {"r": 3, "alpha": 5}, "num_key_value_heads": 3},
    "lora_phi3": PHI3 | {"lora": {"r": 2, "alpha": 16}},
    "lora_phi3_tied": PHI3
    | {"lora": {"r": 4, "alpha": 2}, "tie_word_embeddings": True, "mm_projector_type": "linear"},
}
README = """# {name}
`{architecture}` of transformers {transformers}, ViT of MONAI {monai}{peft}, in torch {torch},
float32, put together as in BAAI-DCAI/M3D (63e7200) by tools/make_goldens/m3d_lamed.py, random
weights under its names. Tensors as in the golden of the same kind that came from M3D's own code;
gradient norms of all parameters that get one.
Tolerance: 2e-4 absolute on logits, 1e-5 relative on losses; ids exact{margin}.
"""


def main(root: Path, names: list[str]) -> None:
    """Writes goldens below `root`."""
    for number, (name, values) in enumerate(CASES.items()):
        if not names or name in names:
            write(root / name, values, seed=number)


def write(folder: Path, values: dict[str, Any], seed: int) -> None:
    """Writes one golden; other seeds are tried until no step of generate() is a near tie."""
    c = completed(copy.deepcopy(COMMON | values))
    margin = 0.0
    while margin < 5e-3:
        seed += 100
        torch.manual_seed(seed)
        model = make(c)
        batch = make_batch(c)
        if "lora" in c:
            model, io = adapted(model, c, batch, folder)
            margin = 1.0
        else:
            io = outputs(model, c, batch)
            margin = float(io["generated_top1_margin"].min())
    folder.mkdir(parents=True, exist_ok=True)
    save(weights_of(model, c), folder / "weights.safetensors")
    save(batch | io, folder / "io.safetensors")
    config = c | {"batch": len(batch["input_ids"]), "seed": seed}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    adapters = "lora" in c
    text = README.format(
        name=folder.name,
        architecture=f"{c['kind'].capitalize()}ForCausalLM",
        transformers=transformers.__version__,
        monai=monai.__version__,
        peft=f", PEFT {peft.__version__}" if adapters else "",
        torch=torch.__version__,
        margin="" if adapters else f"; the smallest margin between two tokens is {margin:.4f}",
    )
    (folder / "README.md").write_text(text)


def completed(c: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with values that follow from its sizes."""
    grid = [size // patch for size, patch in zip(c["image_size"], c["patch_size"], strict=True)]
    block = 1 if c["mm_projector_type"] == "linear" else c["proj_pooling_size"]
    tokens = grid[0] * grid[1] * grid[2] // block**3
    names = ("im_patch", "bx_start", "bx_end", "seg")
    special = {name: c["vocab_size"] - 4 + number for number, name in enumerate(names)}
    text = c["text"]
    longest = max(map(sum, zip(text["qlen"], text["alen"], strict=True)))
    text["max_length"] = 1 + tokens + longest + 3
    return c | {
        "mm_hidden_size": c["vit_hidden_size"],
        "grid": grid,
        "num_image_tokens": tokens,
        "special": special,
    }


def make(c: dict[str, Any]) -> nn.Module:
    """Returns the language model with tower and projector under M3D's names."""
    known = {k: v for k, v in c.items() if k not in ("kind", "text", "special", "lora")}
    config = transformers.AutoConfig.for_model(c["kind"], **known)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.model.vision_tower = nn.Module()
    model.model.vision_tower.vision_tower = tower(c)
    model.model.mm_projector = projector(c)
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:  # initial norms are one and biases zero, which would hide swaps
            parameter.data = 0.2 * noise + ("norm" in name and name.endswith("weight"))
        else:
            wide = 4.0 if "embed" in name else parameter.shape[-1]
            parameter.data = 1.3 * noise * wide**-0.5
    return model.eval()


def tower(c: dict[str, Any]) -> nn.Module:
    """Returns MONAI's ViT without the parts that M3D's older version lacks."""
    vit = ViT(
        1,
        c["image_size"],
        c["patch_size"],
        c["vit_hidden_size"],
        c["vit_mlp_dim"],
        c["vit_num_layers"],
        c["vit_num_heads"],
        proj_type="perceptron",
        pos_embed_type="learnable",
        classification=True,
    )
    del vit.classification_head
    for block in vit.blocks:
        for name in ("cross_attn", "norm_cross_attn"):
            if hasattr(block, name):
                delattr(block, name)
    return vit


def projector(c: dict[str, Any]) -> nn.Module:
    """Returns M3D's linear layers; `see` does the pooling."""
    if c["mm_projector_type"] == "linear":
        return nn.Linear(c["mm_hidden_size"], c["hidden_size"])
    layers: list[nn.Module] = [nn.Linear(c["mm_hidden_size"], c["hidden_size"])]
    for _ in range(1, c["proj_layer_num"]):
        layers += [nn.GELU()] if c["proj_layer_type"] == "mlp" else []
        layers.append(nn.Linear(c["hidden_size"], c["hidden_size"]))
    holder = nn.Module()
    holder.projector = nn.Sequential(*layers)
    return holder


def see(model: nn.Module, c: dict[str, Any], images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns features of the patches, and tokens for the language model."""
    features = model.model.vision_tower.vision_tower(images)[0][:, 1:]
    if c["mm_projector_type"] == "linear":
        return features, model.model.mm_projector(features)
    size, x = c["proj_pooling_size"], features.transpose(1, 2)
    if c["proj_pooling_type"] == "sequence":
        pooled = F.avg_pool1d(x, size**3)
    else:
        pooled = F.avg_pool3d(x.unflatten(2, c["grid"]), size).flatten(2)
    return features, model.model.mm_projector.projector(pooled.transpose(1, 2))


def embedded(model: nn.Module, ids: Tensor, volumes: Tensor) -> Tensor:
    """Returns embeddings with the tokens of volumes after the first token, as in M3D."""
    text = model.get_input_embeddings()(ids)
    return torch.cat([text[:, :1], volumes, text[:, 1 + volumes.shape[1] :]], 1)


def make_batch(c: dict[str, Any]) -> dict[str, Tensor]:
    """Returns texts like M3D's CapDataset: the mask is 0 at the eos token."""
    text, images = c["text"], c["num_image_tokens"]
    rows = len(text["qlen"])
    ids = torch.full((rows, text["max_length"]), c["pad_token_id"])
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    begin = [c["bos_token_id"]] + [c["special"]["im_patch"]] * images

    def words(count: int) -> Tensor:
        return torch.randint(3, c["vocab_size"] - 6, (count,))

    for row, (asked, said) in enumerate(zip(text["qlen"], text["alen"], strict=True)):
        first = len(begin) + asked
        end = first + said
        ids[row, : len(begin)] = torch.tensor(begin)
        ids[row, len(begin) : end] = words(asked + said)
        ids[row, end] = c["eos_token_id"]
        mask[row, :end] = 1
        labels[row, first : end + 1] = ids[row, first : end + 1]
    return {
        "images": torch.rand(rows, 1, *c["image_size"]),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
    }


def outputs(model: nn.Module, c: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns all outputs of training and generation."""
    features, volumes = see(model, c, batch["images"])
    embeds = embedded(model, batch["input_ids"], volumes)
    found = model(
        inputs_embeds=embeds,
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        output_hidden_states=True,
    )
    found.loss.backward()
    io = {
        "vision_tower_features": features,
        "projected_image_tokens": volumes,
        "inputs_embeds": embeds,
        "hidden_after_layer0": found.hidden_states[1],
        "last_hidden": found.hidden_states[-1],
        "logits": found.logits,
        "lm_loss": found.loss,
    }
    return io | gradient_norms(model) | generated(model, c, volumes)


def generated(model: nn.Module, c: dict[str, Any], volumes: Tensor) -> dict[str, Tensor]:
    """Returns greedy answers with the model's eos, and with an eos that occurs early."""
    begin = [c["bos_token_id"]] + [c["special"]["im_patch"]] * volumes.shape[1]
    asked = torch.randint(3, c["vocab_size"] - 6, (len(volumes), c["text"]["prompt_q"]))
    prompts = torch.cat([torch.tensor([begin]).expand(len(volumes), -1), asked], 1)
    embeds = embedded(model, prompts, volumes).detach()

    def answer(eos: int) -> Any:
        model.generation_config.eos_token_id = eos
        model.generation_config.pad_token_id = c["pad_token_id"]
        return model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=c["text"]["new"],
            return_dict_in_generate=True,
            output_logits=True,
        )

    whole = answer(c["eos_token_id"])
    logits = torch.stack(whole.logits, 1)
    best = logits.topk(2).values
    early = int(whole.sequences[0, 3])
    return {
        "prompt_ids": prompts,
        "prompt_logits": model(inputs_embeds=embeds).logits,
        "generated_ids": whole.sequences,
        "generated_step_logits": logits,
        "generated_top1_margin": best[..., 0] - best[..., 1],
        "early_eos_id": torch.tensor(early),
        "generated_ids_early_eos": answer(early).sequences,
    }


def adapted(
    model: nn.Module, c: dict[str, Any], batch: dict[str, Tensor], folder: Path
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns the model with random adapters on the language model's layers, and its outputs.

    The merged weights are written at once, because merging removes the adapters.
    """
    names = {
        name.rpartition(".")[2]
        for name, layer in model.model.layers.named_modules()
        if isinstance(layer, nn.Linear)
    }
    sizes = c["lora"]
    config = peft.LoraConfig(
        r=sizes["r"], lora_alpha=sizes["alpha"], target_modules=sorted(names), lora_dropout=0.05
    )
    wrapped = peft.get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.5 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5

    def run(model: nn.Module) -> Any:
        inner = getattr(model, "base_model", model)
        inner = inner.model if isinstance(inner, peft.tuners.lora.LoraModel) else model
        embeds = embedded(inner, batch["input_ids"], see(inner, c, batch["images"])[1])
        return model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]
        )

    io: dict[str, Tensor] = {}
    found = run(wrapped)
    found.loss.backward()
    io |= gradient_norms(wrapped)
    with torch.no_grad():
        with wrapped.disable_adapter():
            base = run(wrapped)
        merged_model = copy.deepcopy(wrapped).merge_and_unload()
        merged = run(merged_model)
    folder.mkdir(parents=True, exist_ok=True)
    save(weights_of(merged_model, c), folder / "merged.safetensors")
    for name, result in (("lora", found), ("base", base), ("merged", merged)):
        io |= {f"logits_{name}": result.logits, f"loss_{name}": result.loss}
    return wrapped, io


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """Returns the gradient norm of every parameter that has a gradient."""
    return {
        f"gradnorm/{name}": parameter.grad.norm()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def weights_of(model: nn.Module, c: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the state dict as in a checkpoint: a tied head is stored once."""
    tied = ("lm_head.weight",) if c["tie_word_embeddings"] else ("\0",)
    return {k: v for k, v in model.state_dict().items() if not k.endswith(tied)}


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file."""
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
