"""Reads tokenizers from Hugging Face's tokenizer.json or from the older vocabulary files."""

from __future__ import annotations

import functools
import json

from etils import epath
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_pipelines import fetch
from data_pipelines.errors import DataError

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_ROBERTA = ("<pad>", "<unk>", "<s>", "</s>")
_LAYOUTS = "tokenizer.json, vocab.txt, or vocab.json with merges.txt"


_PADDED = 128  # weights pad the vocabulary to a multiple of at most this


def rows_fit(tokens: int, rows: int) -> bool:
    """Returns True if an embedding of `rows` rows fits a tokenizer of `tokens` tokens."""
    return tokens <= rows < tokens + _PADDED


@functools.lru_cache(maxsize=8)  # per worker process
def load_tokenizer(path: str) -> Tokenizer:
    """Reads a tokenizer, without the truncation and padding of its file.

    A vocab.txt is read as BERT's WordPiece, in lower case if none of its entries has a capital
    letter. vocab.json with merges.txt is read as RoBERTa's byte-level BPE.

    Args:
      path: one of these files, or a folder that has one of them; local or gs://. The name
        "all-MiniLM-L6-v2" means the sample text encoder, which is downloaded if it is not there.

    Raises:
      DataError: there is no tokenizer, or it cannot be read.
    """
    root = fetch.sample_text_encoder() if path == fetch.MINILM_NAME else epath.Path(path)
    folder = root if root.is_dir() else root.parent
    names = [root.name] if folder != root else ["tokenizer.json", "vocab.txt", "vocab.json"]
    for file in (folder / name for name in names):
        if file.exists():
            break
    else:
        raise DataError(path, "holds no tokenizer", f"name a folder or file: {_LAYOUTS}")
    try:
        if file.suffix == ".txt":
            tokenizer = _wordpiece(file)
        elif file.name == "vocab.json":
            tokenizer = _byte_level(file, file.parent / "merges.txt")
        else:
            tokenizer = Tokenizer.from_str(file.read_text())
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        cure = f"download it again; supported are {_LAYOUTS}"
        raise DataError(file, f"is not a tokenizer ({error})", cure) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a report is text
    return tokenizer


def pad_id(tokenizer: Tokenizer, path: object) -> int:
    """Returns the id of the padding token.

    Raises:
      DataError: the vocabulary has no padding token.
    """
    for name in (_BERT[0], _ROBERTA[0]):
        if (number := tokenizer.token_to_id(name)) is not None:
            return number
    raise DataError(path, "has neither [PAD] nor <pad>", "use the tokenizer of a BERT or RoBERTa")


def _wordpiece(file: epath.Path) -> Tokenizer:
    # Some published vocabularies have Windows line ends.
    words = [line.rstrip("\r") for line in file.read_text().removesuffix("\n").split("\n")]
    vocabulary = {word: number for number, word in enumerate(words)}
    _check_special(file, vocabulary, _BERT)
    small = not any("A" <= c <= "Z" for word in words if not word.startswith("[") for c in word)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=small)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    end, start = ((name, vocabulary[name]) for name in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = processors.BertProcessing(end, start)
    tokenizer.add_special_tokens([name for name in (*_BERT, "[MASK]") if name in vocabulary])
    return tokenizer


def _byte_level(file: epath.Path, merges: epath.Path) -> Tokenizer:
    if not merges.exists():
        raise DataError(merges, "there is no such file", "put it beside vocab.json")
    vocabulary = json.loads(file.read_text())
    _check_special(file, vocabulary, _ROBERTA)
    lines = [line.rstrip("\r") for line in merges.read_text().split("\n")]
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, start = ((name, vocabulary[name]) for name in ("</s>", "<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    tokenizer.add_special_tokens([name for name in (*_ROBERTA, "<mask>") if name in vocabulary])
    return tokenizer


def _check_special(file: epath.Path, vocabulary: dict[str, int], names: tuple[str, ...]) -> None:
    if missing := [name for name in names if name not in vocabulary]:
        problem = f"is not a complete vocabulary: it lacks {', '.join(missing)}"
        raise DataError(file, problem, "use the file that was published with the weights")
