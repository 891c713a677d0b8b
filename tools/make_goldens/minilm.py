"""Golden of the real all-MiniLM-L6-v2, by transformers' torch model and tokenizer.

    python tools/make_goldens/minilm.py --out tests/golden/minilm   # needs requirements-peers.txt

The weights are not in the golden: tests fetch them as this script does.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

from data_pipelines import fetch

TEXTS = (
    "The lungs are clear.",
    "No infiltrate or nodule is seen in either lung.",
    "There is a large pleural effusion on the right.",
    "Fluid has collected in the right pleural space.",
    "A 3.5 cm cyst is present in the left kidney.",
    "The train to the coast leaves at noon.",
)
LENGTH = 16
README = """# minilm
all-MiniLM-L6-v2 (Apache-2.0) from {package}, run by transformers {version}, torch {torch}, float32.
The weights are not here: the package holds them. config.json: the texts and the padded length.
io: input_ids, attention_mask (of the package's tokenizer), last (output of the last layer),
embed (mean over the tokens that are there, of length 1), similarity (their cosines).
Tolerance: 1e-5 absolute.
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    folder = parser.parse_args().out
    source = str(fetch.sample_text_encoder())
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    inputs = tokenizer(list(TEXTS), padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        last = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"]
    embed = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    embed = torch.nn.functional.normalize(embed, dim=-1)
    io = {
        "input_ids": inputs["input_ids"],
        "attention_mask": mask,
        "last": last,
        "embed": embed,
        "similarity": embed @ embed.T,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in io.items()}, folder / "io.safetensors")
    config = {"texts": TEXTS, "length": LENGTH}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    versions = {"version": transformers.__version__, "torch": torch.__version__}
    (folder / "README.md").write_text(README.format(package=fetch.MINILM, **versions))


if __name__ == "__main__":
    main()
