"""Prepared datasets: how they are made (`assemble`) and read (`open_dataset`)."""

from data_pipelines.datasets.reading import RecordSource, open_dataset

__all__ = ["RecordSource", "open_dataset"]
