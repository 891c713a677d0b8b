from .dicom import find_series as find_series
from .dicom import read_dicom_series as read_dicom_series
from .image import read_image as read_image
from .masks import find_mask as find_mask
from .masks import organ_files as organ_files
from .masks import read_mask as read_mask
from .masks import structures_in as structures_in
from .scan import read as read
