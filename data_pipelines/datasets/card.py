"""The dataset card: what a prepared dataset holds, for people (.md) and programs (.json)."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.datasets.records import Record
from data_pipelines.datasets.study import Collection

_AIR, _TOP, _BIN = -1024, 3072, 64  # HU: what 12 bits can hold


@dataclass
class Statistics:
    """What is counted while the records go by.

    Attributes:
      studies: {split: number}.
      patients: {split: patient ids}.
      units: {units: number of studies}.
      spacing: (before, after) mm of each study, both along D, H, W of the record.
      shape: (before, after) voxels of each study, likewise.
      voxels: HU histogram in bins of 64 from -1024; outliers count in the outermost bins.
      masks: {label value: number of studies with such a voxel}.
      labels: {label name: [absent, present]}.
      reports: Number of studies with a report.
    """

    label_names: tuple[str, ...] = ()
    studies: Counter[str] = field(default_factory=Counter)
    patients: dict[str, set[str]] = field(default_factory=dict)
    units: Counter[str] = field(default_factory=Counter)
    spacing: list[tuple[list[float], list[float]]] = field(default_factory=list)
    shape: list[tuple[list[float], list[float]]] = field(default_factory=list)
    voxels: np.ndarray = field(default_factory=lambda: np.zeros((_TOP - _AIR) // _BIN, np.int64))
    masks: Counter[int] = field(default_factory=Counter)
    labels: dict[str, list[int]] = field(default_factory=dict)
    reports: int = 0

    def watch(self, split: str, records: Iterable[Record]) -> Iterator[Record]:
        """Yields the records while counting them."""
        for record in records:
            self._count(split, record)
            yield record

    def _count(self, split: str, record: Record) -> None:
        self.studies[split] += 1
        self.patients.setdefault(split, set()).add(record["patient_id"])
        self.units[record["units"]] += 1
        self.reports += bool(record["report_valid"])
        # Column j of to_source has its entry in the row of the source axis that axis j was.
        axes = np.abs(record["to_source"][:3, :3]).argmax(0)
        self.shape.append((record["source_shape"][axes].tolist(), [*record["image"].shape]))
        if record["affine_valid"]:
            before = np.linalg.norm(record["source_affine"][:3, :3], axis=0)[axes]
            self.spacing.append((before.tolist(), record["spacing"].tolist()))
        if record["units"] == "HU":
            bins = (record["image"].ravel() - np.int32(_AIR)) // _BIN
            self.voxels += np.bincount(
                bins.clip(0, self.voxels.size - 1), minlength=self.voxels.size
            )
        if record["mask_valid"]:
            self.masks.update(np.flatnonzero(np.bincount(record["mask"].ravel())).tolist())
        for name, value in zip(self.label_names, record["labels"], strict=True):
            if not np.isnan(value):
                self.labels.setdefault(name, [0, 0])[int(value)] += 1


def facts(collection: Collection, seen: Statistics, size: int, quarantined: int) -> dict[str, Any]:
    """Returns the card as JSON values.

    Args:
      collection: What was prepared.
      seen: Statistics of all its records.
      size: Bytes of the records on disk.
      quarantined: Number of studies that could not be prepared.
    """
    return {
        "name": collection.name,
        "notes": list(collection.notes),
        "recipe": collection.recipe.to_json(),
        "splits": {
            split: {"studies": count, "patients": len(seen.patients[split])}
            for split, count in seen.studies.items()
        },
        "quarantined": quarantined,
        "units": dict(seen.units),
        "spacing_mm": _ranges(seen.spacing),
        "shape": _ranges(seen.shape),
        "hu_histogram": {"first": _AIR, "bin": _BIN, "voxels": seen.voxels.tolist()},
        "bytes": size,
        "reports": seen.reports,
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
    """Returns the card as a page."""
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
    if card["quarantined"]:
        lines += [f"{card['quarantined']} studies were put aside: see quarantine.csv.", ""]
    lines += ["| D x H x W | min | median | max |", "| --- | --- | --- | --- |", *sizes, ""]
    units = ", ".join(f"{units} ({count} studies)" for units, count in card["units"].items())
    lines += [f"Units: {units}. On disk: {card['bytes'] / 1e6:.1f} MB.", ""]
    lines += ["Preprocessing:", "", *(f"1. {_step(step)}" for step in card["recipe"]), ""]
    lines += _histogram(card["hu_histogram"])
    lines += [f"Reports: {card['reports']}.", ""]
    known = {name: f"{n['present']} of {sum(n.values())}" for name, n in card["labels"].items()}
    lines += _table("label | present in studies", known)
    lines += _table("mask | in studies", card["masks"])
    return "\n".join(lines).rstrip() + "\n"


def _ranges(pairs: list[tuple[list[float], list[float]]]) -> dict[str, dict[str, list[float]]]:
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
    """Returns rows of 256 HU with their share of the voxels, as text that needs no picture."""
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
    """Returns card.json."""
    return json.dumps(card, indent=1) + "\n"
