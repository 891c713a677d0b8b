"""Anonymous ids: hashes of ids with a secret salt, equal for equal ids."""

import csv
import dataclasses
import hashlib
import hmac
import io
import secrets

from etils import epath

from data_pipelines.datasets.study import Collection
from data_pipelines.errors import DataError, printable
from data_pipelines.files import write_whole

_LEAST = 16  # bytes; a short salt could be guessed from known ids


def read_salt(path: epath.PathLike) -> bytes:
    """Reads a salt from a file; writes 32 random bytes (as hex) to it if it does not exist.

    Raises:
      DataError: the file has less than 16 bytes.
    """
    file = epath.Path(path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, secrets.token_hex(32) + "\n", private=True)
    salt = file.read_bytes().strip()
    if len(salt) < _LEAST:
        cure = "name a file that does not exist: a random salt is written to it"
        raise DataError(file, f"it holds fewer than {_LEAST} bytes, too few for a salt", cure)
    return salt


def salted(collection: Collection, salt: bytes) -> Collection:
    """Returns the collection with hashed patient and study ids and without file names.

    The splits of studies do not change. Two datasets with the same salt have the same ids.
    """
    studies = tuple(
        dataclasses.replace(
            study,
            patient_id=_hash(salt, "patient", study.patient_id),
            study_id=_hash(salt, "study", study.study_id),
        )
        for study in collection.studies
    )
    names = {study.study_id: study.study_id for study in studies}
    return dataclasses.replace(collection, studies=studies, names=names)


def write_key(path: epath.Path, unsalted: Collection, collection: Collection) -> None:
    """Writes the private table that maps salted ids to the original ids."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("salted_study_id", "salted_patient_id", "study_id", "patient_id", "file"))
    for own, study in zip(unsalted.studies, collection.studies, strict=True):
        ids = (study.study_id, study.patient_id, printable(own.study_id), printable(own.patient_id))
        writer.writerow((*ids, unsalted.below_root(own.image)))
    write_whole(path, text.getvalue(), private=True)


def _hash(salt: bytes, kind: str, text: str) -> str:
    digest = hmac.new(salt, f"{kind}:{text}".encode("utf-8", "surrogateescape"), hashlib.sha256)
    return digest.hexdigest()[:16]
