"""What a detector is trained on: generated scenes, COCO and YOLO data sets, augmentation."""

from .augment import Augmentation, Samples, augment
from .domains import DOMAINS, Domain, domain
from .folders import CocoDataset, YoloDataset
from .labels import LabelCounts
from .scenes import Sample, Scenes, collate
from .shapes import SHAPE_NAMES
from .write import contact_sheet, write_coco

__all__ = [
    "DOMAINS",
    "SHAPE_NAMES",
    "Augmentation",
    "CocoDataset",
    "Domain",
    "LabelCounts",
    "Sample",
    "Samples",
    "Scenes",
    "YoloDataset",
    "augment",
    "collate",
    "contact_sheet",
    "domain",
    "write_coco",
]
