"""What a detector is trained on: generated scenes, COCO and YOLO data sets, augmentation."""

from .domains import DOMAINS, Domain, domain
from .scenes import Sample, Scenes, collate
from .shapes import SHAPE_NAMES

__all__ = ["DOMAINS", "SHAPE_NAMES", "Domain", "Sample", "Scenes", "collate", "domain"]
