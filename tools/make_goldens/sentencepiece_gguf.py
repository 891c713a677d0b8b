"""Golden of SentencePiece's own BPE, with its model as a GGUF file.

pip install sentencepiece
python tools/make_goldens/sentencepiece_gguf.py --out tests/golden/sentencepiece_0
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib

import gguf
import numpy as np
import sentencepiece
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = (
    "The heart pumps blood.",
    "  two blanks,  and two more  ",
    "a 3.5 cm cyst in 2025",
    "line\n\nline\tand tab",
    "déjà vu, 肺 and \U0001fac1",
    "unhappiness aaaaaaa bbbbb mmmm",
    "▁",
    "x",
)
README = """# sentencepiece
A BPE model of {size} pieces with byte fallback, trained by sentencepiece {version} on this
project's docs with Llama's settings, as the metadata of model.gguf (which has no tensors).
config.json: texts, and what sentencepiece decodes their ids to. io: ids/N, sentencepiece's ids of
text N, bos in front. Tolerance: exact.
"""


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--size", type=int, default=500)
    options = parser.parse_args()
    folder: pathlib.Path = options.out
    lines = [line for file in sorted(ROOT.glob("docs/*.md")) for line in file.open()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=options.size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )
    spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    _write(spm, folder / "model.gguf")
    ids = [[spm.bos_id(), *spm.encode(text)] for text in TEXTS]
    config = {"texts": TEXTS, "decoded": [spm.decode(row) for row in ids]}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(
        {f"ids/{number}": np.array(row, np.int32) for number, row in enumerate(ids)},
        folder / "io.safetensors",
    )
    readme = README.format(size=options.size, version=sentencepiece.__version__)
    (folder / "README.md").write_text(readme)


def _write(spm: sentencepiece.SentencePieceProcessor, path: pathlib.Path) -> None:
    numbers = range(spm.get_piece_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([spm.id_to_piece(number) for number in numbers])
    writer.add_token_scores([spm.get_score(number) for number in numbers])
    writer.add_token_types([_kind(spm, number) for number in numbers])
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _kind(spm: sentencepiece.SentencePieceProcessor, number: int) -> gguf.TokenType:
    if spm.is_unknown(number):
        return gguf.TokenType.UNKNOWN
    if spm.is_control(number):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if spm.is_byte(number) else gguf.TokenType.NORMAL


if __name__ == "__main__":
    main()
