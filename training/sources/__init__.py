"""Where images come from: folders, tar files, data sets by name, and timm's own readers."""

from .folders import load_folder, load_tar
from .label_list import load_listed
from .loading import load_sources, load_validation
from .named import NAMED, describe_split_files
from .readers import wrap_dataset
from .source import ArraySource, FileSource, PartSource, Source, Target, fingerprint, renumber, stamp_of
from .splits import carve_out, choose_per_class, choose_share, split_indices
from .streams import Stream, StreamedImage, is_streamed

__all__ = [
    'NAMED',
    'ArraySource',
    'FileSource',
    'PartSource',
    'Source',
    'Stream',
    'StreamedImage',
    'Target',
    'carve_out',
    'choose_per_class',
    'choose_share',
    'describe_split_files',
    'fingerprint',
    'is_streamed',
    'load_folder',
    'load_listed',
    'load_sources',
    'load_tar',
    'load_validation',
    'renumber',
    'split_indices',
    'stamp_of',
    'wrap_dataset',
]
