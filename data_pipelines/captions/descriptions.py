"""Descriptions of structures without their names: short, certain facts, in our own words."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

_SIDE = re.compile(r"\b(left|right)\b")
_RIB = re.compile(r"rib (left|right) (\d+)")
_VERTEBRA = re.compile(r"(?:vertebrae?|(?:cervical|thoracic|lumbar) spine) ([ctls])(\d+)")
_WITHIN = re.compile(r"(.+) (tumou?rs?|cancer|cysts?)")
_SPINE: Mapping[str, tuple[str, int]] = {
    "c": ("the {} vertebrae of the neck", 7),
    "t": ("the {} vertebrae that carry ribs", 12),
    "l": ("the {} vertebrae between chest and pelvis", 5),
    "s": ("the {} vertebrae that are fused between the hip bones", 5),
}
_ALIASES = {
    "bladder": "urinary bladder",
    "clavicle": "clavicula",
    "eyeball": "eye",
    "femoral head": "head of femur",
    "gall bladder": "gallbladder",
    "hip bone": "hip",
    "iliac vein": "iliac vena",
    "mandible": "bone mandible",
    "oesophagus": "esophagus",
    "parotid": "parotid gland",
    "pituitary": "pituitary gland",
    "postcava": "inferior vena cava",
    "small intestine": "small bowel",
    "thyroid": "thyroid gland",
}
_ABOUT: Mapping[str, tuple[str, ...]] = {
    "adrenal gland": ("one of the two small glands that make cortisol and adrenaline",),
    "aorta": (
        "the largest artery of the body",
        "the artery through which the heart supplies the whole body",
    ),
    "atrial appendage": ("the small pouch of a chamber of the heart",),
    "autochthon": ("the long muscles beside the spine that straighten the trunk",),
    "bone mandible": ("the only bone of the face that moves", "the bone of the jaw that opens"),
    "brachiocephalic trunk": ("the first large branch of the arch of the aorta",),
    "brachiocephalic vein": (
        "one of the two large veins that collect the blood of an arm and of one half of the head",
    ),
    "brain": ("the organ that the skull encloses", "the organ of thought"),
    "brainstem": ("the stalk that connects the brain and the spinal cord",),
    "celiac trunk": ("the short artery that supplies liver, spleen and stomach",),
    "clavicula": ("the slender bone between breastbone and shoulder",),
    "cochlea": ("the spiral of the inner ear", "the part of the ear that turns sound into signals"),
    "colon": (
        "the wide part of the gut, which takes water from what was digested",
        "the part of the gut that frames the small bowel",
    ),
    "common carotid artery": ("one of the two large arteries of the neck that lead to the head",),
    "costal cartilages": ("the elastic tissue that joins the ribs to the breastbone",),
    "duodenum": (
        "the first part of the gut after the stomach",
        "the part of the gut that bile enters",
    ),
    "esophagus": ("the muscular tube that carries food from the throat to the stomach",),
    "eye": ("one of the two organs of sight",),
    "face": ("the part of the head with eyes, nose and mouth",),
    "femur": ("the longest bone of the leg", "the bone between hip and knee"),
    "gallbladder": (
        "the small sac that stores bile",
        "the pouch beside the liver that fills with bile",
    ),
    "gluteus maximus": ("the largest of the three muscles that form the buttock",),
    "gluteus medius": ("the second in size of the three muscles that form the buttock",),
    "gluteus minimus": ("the smallest of the three muscles that form the buttock",),
    "head of femur": ("the ball of the hip joint",),
    "heart": ("the muscle that pumps the blood", "the organ with four chambers and four valves"),
    "heart atrium": ("the chamber that collects blood before the ventricle pumps it on",),
    "heart myocardium": ("the thick wall of muscle around the chamber that supplies the aorta",),
    "heart ventricle": ("the chamber that pumps blood out through an artery",),
    "hepatic vessel": ("the vessels inside of the liver",),
    "hip": (
        "one half of the bony girdle of the pelvis",
        "the bone with the socket of the thigh bone",
    ),
    "humerus": ("the long bone between shoulder and elbow",),
    "iliac artery": ("one of the two arteries that the aorta divides into",),
    "iliac vena": ("one of the two large veins of the pelvis, which bring blood from the legs",),
    "iliopsoas": (
        "the strongest muscle that bends the hip",
        "the muscle from the lumbar spine and the hip bone to the thigh",
    ),
    "inferior vena cava": (
        "the largest vein of the body",
        "the large vein that returns blood from legs and abdomen to the heart",
    ),
    "kidney": (
        "one of the two bean-shaped organs that make urine",
        "one of the two organs that filter the blood and drain into the ureters",
    ),
    "lacrimal gland": ("the gland that makes tears",),
    "larynx": ("the organ of the voice",),
    "liver": ("the largest gland of the body", "the organ that makes bile"),
    "lung": (
        "one of the two organs of breathing",
        "one of the two organs that take oxygen from the air",
    ),
    "lung lower lobe": ("the part of the lung that lies on most of the diaphragm",),
    "lung middle lobe": ("the smallest of the three parts of a lung",),
    "lung upper lobe": ("the part of the lung that reaches into the root of the neck",),
    "optic chiasm": ("the place where the nerves of both eyes cross",),
    "optic nerve": ("the nerve that leads from an eye to the brain",),
    "pancreas": (
        "the gland that makes insulin and digestive juice",
        "the long gland whose head lies in the bend of the duodenum",
    ),
    "parotid gland": ("the largest gland that makes saliva",),
    "pituitary gland": ("the small gland of the skull that steers other glands",),
    "portal vein and splenic vein": (
        "the veins that carry blood from spleen and gut to the liver",
    ),
    "prostate": ("the gland of men that the urethra passes through",),
    "pulmonary artery": ("the vessel that carries blood from the heart to the lungs",),
    "pulmonary vein": ("the vessels that bring blood from the lungs to the heart",),
    "rectum": ("the last part of the gut but for the anal canal",),
    "renal artery": ("the artery that supplies a kidney",),
    "renal vein": ("the vein that drains a kidney",),
    "sacrum": ("the wedge of fused vertebrae between the hip bones",),
    "scapula": ("the flat bone of the shoulder", "the bone with the socket of the shoulder joint"),
    "seminal vesicle": ("one of the two glands that make most of the fluid of semen",),
    "skull": ("the bones that enclose the brain", "the bones of the head"),
    "small bowel": (
        "the longest part of the gut",
        "the part of the gut that takes up most nutrients",
    ),
    "spinal cord": ("the bundle of nerves inside of the spine",),
    "spleen": (
        "the organ that clears old red cells from the blood",
        "the largest lymphatic organ of the body",
    ),
    "sternum": ("the flat bone that both collarbones and the first ribs join",),
    "stomach": (
        "the part of the gut that mixes food with acid",
        "the hollow organ between esophagus and duodenum",
    ),
    "subclavian artery": ("one of the two arteries that lead to the arms",),
    "submandibular gland": ("the gland that makes saliva inside of the arch of the jaw",),
    "superior vena cava": ("the large vein that returns blood from head and arms to the heart",),
    "thyroid gland": ("the butterfly-shaped gland of the neck", "the gland that takes up iodine"),
    "trachea": (
        "the airway from the larynx to the two main bronchi",
        "the tube with rings of cartilage that brings air to the lungs",
    ),
    "urinary bladder": ("the hollow muscle that stores urine",),
    "uterus": ("the organ in which a child grows before birth",),
}


_COUNTS = {5: "five", 7: "seven", 12: "twelve"}
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)


@functools.lru_cache(1 << 12)
def describe(label: str) -> tuple[str, ...]:
    """Returns descriptions of the structure of a label; () if there are none.

    They begin with an article or "one" and state facts that are in every atlas. They name a side
    only if the label does.

    Args:
      label: name in the form of TotalSegmentator ("kidney_left") or M3D-Seg ("left kidney").
    """
    words = " ".join(label.replace("_", " ").casefold().split())
    if match := _RIB.fullmatch(words):
        which = _which(int(match[2]), 12, "the {} curved bones of the chest wall")
        return tuple(f"{about}, on the {match[1]}" for about in which)
    if match := _VERTEBRA.fullmatch(words):
        where, count = _SPINE[match[1]]
        return _which(int(match[2]), count, where)
    sides = sorted(set(_SIDE.findall(words)))
    base = " ".join(_SIDE.sub("", words).split())
    if match := _WITHIN.fullmatch(base):
        what = "a pocket of fluid" if match[2].startswith("cyst") else "an abnormal growth"
        found = tuple(f"{what} in {about}" for about in _of(match[1]))
    else:
        found = _of(base)
    if len(sides) > 1:
        return ()
    return tuple(", on the ".join([about, *sides]) for about in found)


def _of(base: str) -> tuple[str, ...]:
    return _ABOUT.get(_ALIASES.get(base, base), ())


def _which(number: int, count: int, several: str) -> tuple[str, ...]:
    """Describes one of a counted row; returns () for a supernumerary one, as some people have."""
    if not 1 <= number <= count:
        return ()
    return (
        f"the {_ORDINALS[number - 1]} of {several.format(_COUNTS[count])}, counted from the head",
    )
