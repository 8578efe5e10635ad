"""The file library, for built-in layouts, for invsolve and for layouts of your own alike.

Reading: `open_readonly`, `dataset`, `read`, `text`, `LazyRows`; every way in which a file can be broken is one line.
Writing: `atomic`, `write_scan`, `write_images`, `ResultFile`; no file ever stands half-written under its final name.
"""

from invsolve.datasets.extras import check_regular
from invsolve.datasets.hdf5.arrays import Source, files_of, is_npy, is_tiff, open_array, opens_array
from invsolve.datasets.hdf5.images import images_unit, read_images, read_volumes, write_images, write_rows
from invsolve.datasets.hdf5.joining import Part, glance, join_results
from invsolve.datasets.hdf5.links import shown
from invsolve.datasets.hdf5.matlab import is_matlab, written_by_matlab
from invsolve.datasets.hdf5.reading import (
    check_stored,
    dataset,
    datasets,
    doubles,
    fingerprint,
    members,
    open_readonly,
    read,
    stored_text,
    text,
    to_tensor,
)
from invsolve.datasets.hdf5.result import ResultFile, partial_path
from invsolve.datasets.hdf5.result_check import stored_config
from invsolve.datasets.hdf5.result_view import Picked, ResultView, read_result
from invsolve.datasets.hdf5.resume import changed, continue_partial, differences
from invsolve.datasets.hdf5.rows import LazyRows, OneByOne, WithChannel
from invsolve.datasets.hdf5.scan import read_noise, read_parameters, write_scan
from invsolve.datasets.hdf5.sources import other_files
from invsolve.datasets.hdf5.square_pixels import is_square, squared
from invsolve.datasets.hdf5.tiff import tiff_folder
from invsolve.datasets.hdf5.writing import atomic, check_name, check_target, image_axes, replace, sync, to_numpy

__all__ = [
    "LazyRows",
    "OneByOne",
    "Part",
    "Picked",
    "ResultFile",
    "ResultView",
    "Source",
    "WithChannel",
    "atomic",
    "changed",
    "check_name",
    "check_regular",
    "check_stored",
    "check_target",
    "continue_partial",
    "dataset",
    "datasets",
    "differences",
    "doubles",
    "files_of",
    "fingerprint",
    "glance",
    "image_axes",
    "images_unit",
    "is_matlab",
    "is_npy",
    "is_square",
    "is_tiff",
    "join_results",
    "members",
    "open_array",
    "open_readonly",
    "opens_array",
    "other_files",
    "partial_path",
    "read",
    "read_images",
    "read_noise",
    "read_parameters",
    "read_result",
    "read_volumes",
    "replace",
    "shown",
    "squared",
    "stored_config",
    "stored_text",
    "sync",
    "text",
    "tiff_folder",
    "to_numpy",
    "to_tensor",
    "write_images",
    "write_rows",
    "write_scan",
    "written_by_matlab",
]
