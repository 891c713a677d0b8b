"""Golden of `torch.save`: tensors of several dtypes that are views into shared storages.

    python tools/make_goldens/torch_zip.py --out tests/golden   # needs requirements-peers.txt

pretrained_ViT.bin of M3D is such a file: all its tensors lie in one bfloat16 storage.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import OrderedDict

import torch
from safetensors.torch import save_file

README = """# {name}
model.bin: an OrderedDict that torch {torch} saved with torch.save, the way that `state_dict` is.
`view.*` are views into one bfloat16 storage, with offsets, a transposed and a strided one; the
others have storages of their own and other dtypes, one is a Parameter, one is empty.
io: the same tensors, contiguous, written by safetensors. They must be equal bit by bit.
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    flat = torch.randn(400).to(torch.bfloat16)
    saved = OrderedDict(
        {
            "view.weight": flat[7:127].view(10, 12),
            "view.bias": flat[127:137],
            "view.transposed": flat[137:257].view(8, 15).t(),
            "view.strided": flat[260:300].view(4, 10)[1:, ::3],
            "view.number": flat[300],
            "own.float": torch.nn.Parameter(torch.randn(3, 4)),
            "own.half": torch.randn(5).half(),
            "own.ids": torch.arange(6).view(1, 6),
            "own.flags": torch.tensor([True, False]),
            "own.empty": torch.zeros(0, 3),
        }
    )
    saved._metadata = {"": {"version": 1}}  # as state_dict leaves it
    folder = options.out / f"torch_zip_{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, folder / "model.bin")
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in saved.items()},
        folder / "io.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"seed": options.seed}) + "\n")
    (folder / "README.md").write_text(README.format(name=folder.name, torch=torch.__version__))


if __name__ == "__main__":
    main()
