"""Golden of the package bert-score with the real MiniLM weights.

pip install bert-score pandas    # besides requirements-peers.txt
python tools/make_goldens/bert_score.py --out tests/golden/bert_score_minilm
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib

import torch
from bert_score.utils import bert_cos_score_idf
from transformers import BertModel, BertTokenizerFast

from data_pipelines import fetch

PAIRS = (
    ("The liver is enlarged with fatty infiltration.", "Fatty infiltration of an enlarged liver."),
    ("A 12 mm nodule in the right upper lobe.", "A 12 mm nodule in the right upper lobe."),
    ("No pleural effusion or pneumothorax.", "There is a small left pleural effusion."),
    ("Yes", "No"),
    ("B. Right lung", "B. right lung."),
    ("the the the the", "The aorta, the spleen and both kidneys are seen in part or as a whole."),
    ("", "The heart is normal in size."),
    ("Mild hydronephrosis of the left kidney.", ""),
)
README = """# bert_score_minilm
scores.json: candidates, references, and the precision, recall and F that bert-score 0.3.13 gives
(no idf, no rescaling) with layer {layer} of the real all-MiniLM-L6-v2, torch {torch}, float32.
Tolerance: 1e-5.
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--layer", type=int, default=5)
    options = parser.parse_args()
    folder = fetch.sample_text_encoder()
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.model_max_length = 512
    tokenizer.backend_tokenizer.no_padding()
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    tokenizer.build_inputs_with_special_tokens = lambda ids: [special[0], *ids, special[1]]
    model = BertModel.from_pretrained(str(folder)).eval()
    model.encoder.layer = torch.nn.ModuleList(model.encoder.layer[: options.layer])
    idf = collections.defaultdict(lambda: 1.0, dict.fromkeys(special, 0))
    candidates, references = map(list, zip(*PAIRS, strict=True))
    scores = bert_cos_score_idf(model, references, candidates, tokenizer, idf, device="cpu")
    content = {
        "candidates": candidates,
        "references": references,
        "scores": [list(map(float, row)) for row in scores],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "config.json").write_text(json.dumps({"layer": options.layer}) + "\n")
    readme = README.format(layer=options.layer, torch=torch.__version__)
    (options.out / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
