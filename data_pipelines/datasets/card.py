"""Makes the dataset card: a summary of a prepared dataset for people (.md) and programs (.json)."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.datasets import points, qa
from data_pipelines.datasets.records import Record
from data_pipelines.datasets.study import Collection
from data_pipelines.volume import Volume

_AIR, _TOP, _BIN = -1024, 3072, 64  # HU: the range of 12 bits


def study_facts(
    volume: Volume, record: Record, labels: Mapping[str, float], signature: np.ndarray
) -> dict[str, Any]:
    """Returns the facts about a study for the card and the search for leaks, as JSON values.

    Args:
      volume: the volume after the recipe.
      record: record of the volume.
      labels: known labels of the study.
      signature: see `leaks.signature`.
    """
    # The largest entry of column j of to_source is in the row of the source axis of axis j.
    axes = np.abs(volume.to_source[:3, :3]).argmax(0)
    assert volume.source_shape is not None
    facts = {
        "study_id": volume.study_id,
        "patient_id": volume.patient_id,
        "units": volume.units,
        "shape": [[volume.source_shape[axis] for axis in axes], list(volume.shape)],
        "spacing": _spacing(volume, axes),
        "report": bool(record["report_valid"]),
        "questions": len(qa.from_text(record["qa"])),
        "labels": dict(labels),
        "points": points.names(record),
        "masks": [] if volume.mask is None else _values(volume.mask),
        "hu_histogram": _count_hu(volume.array) if volume.units == "HU" else None,
        "signature": base64.b64encode(signature.astype("<f2").tobytes()).decode(),
    }
    return facts


def _spacing(volume: Volume, axes: np.ndarray) -> list[list[float]] | None:
    if volume.source_affine is None or volume.spacing is None:
        return None
    before = np.linalg.norm(volume.source_affine[:3, :3], axis=0)[axes]
    return [before.tolist(), list(volume.spacing)]


def _values(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.bincount(mask.ravel())).tolist()


def _count_hu(array: np.ndarray) -> list[int]:
    """Counts HU in bins of 64 from -1024; the outermost bins include outliers."""
    bins = (np.rint(array).astype(np.int32).ravel() - _AIR) // _BIN
    size = (_TOP - _AIR) // _BIN
    return np.bincount(bins.clip(0, size - 1), minlength=size).tolist()


@dataclass
class Statistics:
    """Statistics of the studies of a dataset.

    Attributes:
      studies: {split: number of studies}.
      patients: {split: patient ids}.
      units: {units: number of studies}.
      spacing: (before, after) mm of each study, both along D, H, W of the record.
      shape: (before, after) voxels of each study, both along D, H, W of the record.
      voxels: HU histogram, see `study_facts`.
      masks: {label value: number of studies with such a voxel}.
      labels: {label name: [number absent, number present]}.
      reports: number of studies with a report.
      questions: number of stored questions.
      subsets: {name of a split that overlaps others: (split, number of the record) of its studies}.
    """

    studies: Counter[str] = field(default_factory=Counter)
    patients: dict[str, set[str]] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)
    spacing: list[list[list[float]]] = field(default_factory=list)
    shape: list[list[list[float]]] = field(default_factory=list)
    voxels: np.ndarray = field(default_factory=lambda: np.zeros((_TOP - _AIR) // _BIN, np.int64))
    masks: Counter[int] = field(default_factory=Counter)
    labels: dict[str, list[int]] = field(default_factory=dict)
    reports: int = 0
    questions: int = 0
    subsets: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Adds one study: its `study_facts` with "split" and "also_in"."""
        for name in facts["also_in"]:
            place = facts["split"], self.studies[facts["split"]]
            self.subsets.setdefault(name, []).append(place)
        self.studies[facts["split"]] += 1
        self.patients.setdefault(facts["split"], set()).add(facts["patient_id"])
        self.units[facts["units"]] += 1
        self.reports += facts["report"]
        self.questions += facts.get("questions", 0)  # shards of an earlier version have none
        self.shape.append(facts["shape"])
        if facts["spacing"] is not None:
            self.spacing.append(facts["spacing"])
        if facts["hu_histogram"] is not None:
            self.voxels += facts["hu_histogram"]
        self.masks.update(facts["masks"])
        for name, value in facts["labels"].items():
            self.labels.setdefault(name, [0, 0])[int(value)] += 1


def facts(collection: Collection, seen: Statistics, size: int, quarantined: int) -> dict[str, Any]:
    """Returns the card as JSON values.

    Args:
      collection: the collection.
      seen: statistics of all its studies.
      size: bytes of the records on disk.
      quarantined: number of studies that could not be prepared.
    """
    return {
        "name": collection.name,
        "notes": list(collection.notes),
        "recipe": collection.recipe.to_json(),
        "splits": {
            split: {"studies": count, "patients": len(seen.patients[split])}
            for split, count in seen.studies.items()
        },
        "subsets": {name: len(places) for name, places in sorted(seen.subsets.items())},
        "quarantined": quarantined,
        "units": dict(seen.units),
        "spacing_mm": _ranges(seen.spacing),
        "shape": _ranges(seen.shape),
        "hu_histogram": {"first": _AIR, "bin": _BIN, "voxels": seen.voxels.tolist()},
        "bytes": size,
        "reports": seen.reports,
        "questions": seen.questions,
        "labels": {
            name: dict(zip(("absent", "present"), seen.labels.get(name, (0, 0)), strict=True))
            for name in collection.label_names
        },
        "masks": {
            collection.mask_names.get(value, str(value)): count
            for value, count in sorted(seen.masks.items())
            if value not in (0, 255)
        },
    }


def markdown(card: Mapping[str, Any]) -> str:
    """Returns the card as Markdown."""
    splits = [
        f"| {name} | {n['studies']} | {n['patients']} |" for name, n in card["splits"].items()
    ]
    sizes = [
        f"| {name} {when} | {_triple(values['min'])} | {_triple(values['median'])} "
        f"| {_triple(values['max'])} |"
        for name, key in (("spacing, mm", "spacing_mm"), ("voxels", "shape"))
        for when, values in card[key].items()
    ]
    lines = [f"# {card['name']}", "", *(f"- {note}" for note in card["notes"]), ""]
    lines += ["| split | studies | patients |", "| --- | --- | --- |", *splits, ""]
    lines += ["No patient is in two splits.", ""]
    lines += _table("overlapping split | studies", card["subsets"])
    if card["quarantined"]:
        lines += [
            f"{card['quarantined']} studies or rows of tables were put aside: see quarantine.csv.",
            "",
        ]
    lines += ["| D x H x W | min | median | max |", "| --- | --- | --- | --- |", *sizes, ""]
    units = ", ".join(f"{units} ({count} studies)" for units, count in card["units"].items())
    lines += [f"Units: {units}. On disk: {card['bytes'] / 1e6:.1f} MB.", ""]
    lines += ["Preprocessing:", "", *(f"1. {_step(step)}" for step in card["recipe"]), ""]
    lines += _histogram(card["hu_histogram"])
    lines += [f"Reports: {card['reports']}. Questions: {card['questions']}.", ""]
    known = {name: f"{n['present']} of {sum(n.values())}" for name, n in card["labels"].items()}
    lines += _table("label | present in studies", known)
    lines += _table("mask | in studies", card["masks"])
    return "\n".join(lines).rstrip() + "\n"


def _ranges(pairs: list[list[list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Returns min, median and max per axis, before and after."""
    if not pairs:
        return {}
    table = np.array(pairs)  # (studies, before and after, 3)
    return {
        when: {
            name: getattr(np, name)(table[:, index], axis=0).round(3).tolist()
            for name in ("min", "median", "max")
        }
        for index, when in enumerate(("before", "after"))
    }


def _triple(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _step(step: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name}={value}" for name, value in step.items() if name != "step")
    return f"`{step['step']}({values})`"


def _histogram(counts: Mapping[str, Any]) -> list[str]:
    """Returns a Markdown table of the share of voxels per 256 HU, with bars of characters."""
    voxels = np.array(counts["voxels"])
    if not voxels.sum():
        return []
    share = voxels.reshape(-1, 256 // counts["bin"]).sum(1) / voxels.sum()
    lines = ["| HU | voxels |", "| --- | --- |"]
    for index, value in enumerate(share):
        low = counts["first"] + 256 * index
        lines.append(f"| {low} to {low + 255} | {value:.2%} {'#' * round(40 * value)} |")
    return [*lines, ""]


def _table(head: str, rows: Mapping[str, Any]) -> list[str]:
    if not rows:
        return []
    return [f"| {head} |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items()), ""]


def to_json(card: Mapping[str, Any]) -> str:
    """Returns the content of card.json."""
    return json.dumps(card, indent=1) + "\n"
