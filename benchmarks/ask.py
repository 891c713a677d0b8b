"""Benchmark of `run.py ask` against the same model in torch, built from transformers and MONAI.

    pip install -r requirements-peers.txt
    python benchmarks/ask.py [--json] [--rounds 3] [--tokens 32]

The model is M3D's ViT-B on 32 x 256 x 256 voxels (2,048 patches, 256 tokens; random weights) with
the real SmolLM2-135M. Both sides use float32, the same weights and the same CT in a NIfTI file.

The benchmark measures the seconds from the start of the process to the first token of the first
answer. For each further question it measures the seconds to the first token and to the end of the
answer. It also measures peak memory.

The peer reads the scan with MONAI's transforms and encodes it once. Like our side, it keeps the
cache of the volume's tokens for all questions. It decodes greedily. Both sides have the same limit
of tokens per answer, and the table shows the number of tokens. Our compile cache is empty in the
first round and warm in later rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import peers
import steps

SIDES = ("ours", "torch")
QUESTIONS = (
    "What does this scan show?",
    "Is the liver enlarged?",
    "Which organs can be seen here?",
    "Are there any fractures of the ribs?",
)
SIZE, PATCH, GRID = (32, 256, 256), (4, 16, 16), (8, 16, 16)
VISION, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector.projector."


def make(folder: Path) -> None:
    """Writes one model as a run's folder and as the peer's files."""
    import jax

    from data_pipelines import fetch
    from data_pipelines.fields.image import Image
    from data_pipelines.fields.text import Text
    from data_pipelines.pipeline import Data, Source
    from data_pipelines.text.dialogue import DialogueTokens
    from data_pipelines.text.llm_tokenizer import IMAGE, PLAIN, SPECIAL
    from m3djax import params as params_lib
    from m3djax.convert import lamed, pretrained, stream, vit
    from m3djax.convert.new_tokens import grow
    from m3djax.experiment import Experiment
    from m3djax.inputs.inputs import Inputs, ScaleIntensityRange
    from m3djax.models.mlp import Mlp
    from m3djax.models.multi_head import Attention
    from m3djax.models.positions import LearnedPositions
    from m3djax.models.projectors import Projector
    from m3djax.models.transformer import Block, Transformer
    from m3djax.models.vit import ViT3D
    from m3djax.runs import weights
    from m3djax.tasks.vision_language import VisionLanguage

    llm = grow(pretrained.load(fetch.sample_llm()), SPECIAL, PLAIN)
    block = Block(Attention(12, qkv_bias=False), Mlp(3072), norm_eps=1e-5)
    vision = ViT3D(PATCH, 768, Transformer(12, block), LearnedPositions(GRID), cls_token=True)
    width, image_token_id = llm.model.hidden_size, llm.tokenizer.convert_tokens_to_ids(IMAGE)
    task = VisionLanguage(vision, Projector(width), llm.model, image_token_id)
    drawn = jax.jit(task.init)(jax.random.key(0), {"image": np.zeros((1, *SIZE, 1), np.int16)})
    flat = params_lib.flatten({**drawn, **llm.params})
    pretrained.save(folder / "llm", llm)
    tokens = DialogueTokens(str(folder / "llm"), 256, 512, llm.model.vocab_size)
    fields = {"image": Image(), "text": Text(tokens)}
    data = Data((Source("none"),), SIZE, units="unit", fields=fields)
    experiment = Experiment("ask", task, data, inputs=Inputs(ScaleIntensityRange(0, 1)))
    weights.save(folder / "run", experiment, flat, {})
    rules = (*vit.monai_vit(task.vision, VISION), *lamed.projector(task.projector))
    stream.save(folder / "vision", flat, rules)


def ours(folder: Path, scan: str, tokens: int) -> dict[str, Any]:
    """Runs the code of `run.py ask` and records times instead of printing."""
    from m3djax.ask.command import Ask
    from m3djax.cli import set_up_jax
    from m3djax.generate.sampling import Sampling

    set_up_jax()
    ask = Ask(
        str(folder / "run"),
        scan,
        recipe="m3d",
        sampling=Sampling(max_new_tokens=tokens),
        dtype="float32",
    )
    clock = _Clock()
    session = ask.open()
    for question in QUESTIONS:
        clock.asked()
        reply = session.ask((), question, lambda _text: clock.spoke())
        clock.ended(len(reply.tokens), reply.text)
    return clock.found()


def theirs(folder: Path, scan: str, tokens: int) -> dict[str, Any]:
    """Runs the same model from transformers and MONAI, in eager mode."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data_pipelines.text.prompts import Prompt

    clock = _Clock()
    with torch.inference_mode():
        image = _monai_input(scan)
        encode = _monai_vision(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder / "llm")
        llm = AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32).eval()
        volume = encode(image[None])
        prompt, place = Prompt(256), tokenizer.convert_tokens_to_ids("<im_patch>")
        embed, cache = llm.get_input_embeddings(), None
        for question in QUESTIONS:
            clock.asked()
            ids = prompt(tokenizer, question)
            cut = len(ids) - ids[::-1].index(place)
            if cache is None:
                before = torch.cat(
                    [embed(torch.tensor([ids[: cut - 256]], dtype=torch.long)), volume], 1
                )
                cache = llm(inputs_embeds=before, use_cache=True, logits_to_keep=1).past_key_values
            state, given = copy.deepcopy(cache), torch.tensor([ids[cut:]])
            said: list[int] = []
            while len(said) < tokens:
                out = llm(given, past_key_values=state, use_cache=True, logits_to_keep=1)
                token = int(out.logits[0, -1].argmax())
                if token == tokenizer.eos_token_id:
                    break
                said.append(token)
                text = tokenizer.decode(said)
                clock.spoke()
                state, given = out.past_key_values, torch.tensor([[token]])
            clock.ended(len(said), text if said else "")
    return clock.found()


def _monai_input(scan: str) -> Any:
    """Reads a scan with the recipe "m3d", built from MONAI's transforms; returns (1, D, H, W)."""
    from monai import transforms

    read = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation(axcodes="SPL"),
            transforms.ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
            transforms.CropForeground(allow_smaller=True),
            transforms.Resize(SIZE, mode="trilinear", anti_aliasing=True),
        ]
    )
    return read(scan).as_tensor().float()


def _monai_vision(folder: Path) -> Callable[[Any], Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for file in sorted((folder / "vision").glob("*.safetensors")):
        found |= load_file(file)
    parts = {n.removeprefix(PROJECTOR): v for n, v in found.items() if n.startswith(PROJECTOR)}
    vision, projector, encode = peers.m3d_encoder(len(parts["0.bias"]))
    tower = {n.removeprefix(VISION): v for n, v in found.items() if n.startswith(VISION)}
    missing = vision.load_state_dict(tower, strict=False).missing_keys
    assert all("cross_attn" in name for name in missing), missing  # unused modules
    projector.load_state_dict(parts)
    vision.eval()
    return encode


class _Clock:
    """A recorder of the times at which answers begin and end."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._begin, self._heard = 0.0, False
        self._to_first: list[float] = []
        self._to_end: list[float] = []
        self._tokens: list[int] = []
        self._texts: list[str] = []

    def asked(self) -> None:
        self._begin, self._heard = time.perf_counter(), False

    def spoke(self) -> None:
        if self._first is None:
            self._first = steps.since_start()
        if not self._heard:
            self._to_first.append(time.perf_counter() - self._begin)
            self._heard = True

    def ended(self, tokens: int, text: str) -> None:
        self._to_end.append(time.perf_counter() - self._begin)
        self._tokens.append(tokens)
        self._texts.append(text)

    def found(self) -> dict[str, Any]:
        """Returns the measurements; the first question is left out, as it pays the shared costs."""
        return {
            "start_to_first_token": self._first,
            "further_to_first_token": self._to_first[1:],
            "further_to_end": self._to_end[1:],
            "tokens": self._tokens,
            "texts": self._texts,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--tokens", type=int, default=32, help="largest number of tokens of an answer"
    )
    parser.add_argument("--contestant", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        side, folder, scan = options.contestant
        if side == "make":
            print(json.dumps({"made": make(Path(folder))}))
        else:
            run = ours if side == "ours" else theirs
            print(json.dumps(run(Path(folder), scan, options.tokens)))
        return
    from data_pipelines import fetch

    scan = str(fetch.sample_scans() / "aorta_report/example_ct.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        common.in_process(__file__, "--contestant", "make", folder, scan)
        os.environ["M3DJAX_CACHE"] = f"{folder}/cache"
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, done in runs.items():
                arguments = ("--tokens", str(options.tokens), "--contestant", side, folder, scan)
                done.append(common.in_process(__file__, *arguments))
    results = {
        "command": "python benchmarks/ask.py",
        "machine": common.machine("jax", "flax", "torch", "transformers", "monai"),
        **{side: _summary(done) for side, done in runs.items()},
        "same_answers": runs["ours"][0]["texts"] == runs["torch"][0]["texts"],
    }
    common.show(results, options.json, _rows(results))


def _summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    def all_of(name: str) -> dict[str, float]:
        return common.middle([value for run in done for value in run[name]])

    starts = [run["start_to_first_token"] for run in done]
    return {
        "start_to_first_token": {"first round": starts[0], "later": min(starts[1:] or starts)},
        "further_to_first_token": all_of("further_to_first_token"),
        "further_to_end": all_of("further_to_end"),
        "tokens": done[0]["tokens"],
        "texts": done[0]["texts"],
        "peak_mib": max(run["peak_mib"] for run in done),
    }


def _rows(results: dict[str, Any]) -> list[list[str]]:
    rows = [["", "start to first token, s", "first round", "a further question's first token",
             "a further answer", "tokens", "peak MiB"]]  # fmt: skip
    for side in SIDES:
        found = results[side]
        starts = found["start_to_first_token"]
        rows.append(
            [
                side,
                f"{starts['later']:.1f}",
                f"{starts['first round']:.1f}",
                f"{found['further_to_first_token']['median']:.2f}",
                f"{found['further_to_end']['median']:.2f}",
                " ".join(map(str, found["tokens"])),
                f"{found['peak_mib']:.0f}",
            ]
        )
    return rows


if __name__ == "__main__":
    main()
