from .reading import RecordSource as RecordSource
from .reading import open_dataset as open_dataset
