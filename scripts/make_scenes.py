#!/usr/bin/env python3
"""Write generated scenes as a COCO data set, or a picture of a few of them.

    python scripts/make_scenes.py --images 500 --domain mixed --seed 1000 --output out/scenes
    dhead-trt val MODEL.json --data out/scenes/annotations.json --images out/scenes/images

    python scripts/make_scenes.py --sheet scenes.png

Scene number i depends on the seed, the domain, the size and i alone, so the same command writes the same scenes.
Needs PyTorch and Pillow: pip install "dhead-trt[export,image]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dhead_trt.errors import DheadError
from dhead_trt.files import atomic_path
from dhead_trt.training.data import DOMAINS, Scenes, contact_sheet, write_coco


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 for an argument or a folder that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="how many scenes (500)")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[192], metavar="PIXELS", help="side, or height and width (192)"
    )
    parser.add_argument(
        "--domain", default="mixed", help=f"{', '.join(DOMAINS)} (mixed); several for --sheet, by commas"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the set (0)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, metavar="FOLDER", help="write annotations.json and images/ there")
    what.add_argument("--sheet", type=Path, metavar="PNG", help="write a picture of four scenes of each domain")
    args = parser.parse_args(argv)
    size = (args.size[0], args.size[-1])
    try:
        if args.output:
            path = write_coco(Scenes(args.images, size, args.domain, seed=args.seed), args.output)
            print(f"{args.images} scenes of {args.domain}: {path}")
        else:
            chosen = args.domain.split(",") if args.domain != "mixed" else list(DOMAINS)
            sets = [Scenes(4, size, name, seed=args.seed) for name in chosen]
            sheet = contact_sheet([data[i] for data in sets for i in range(4)], sets[0].names)
            with atomic_path(args.sheet) as path:
                sheet.save(path, format="PNG", optimize=True)
            print(f"four scenes each of {', '.join(chosen)}: {args.sheet}")
    except DheadError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
