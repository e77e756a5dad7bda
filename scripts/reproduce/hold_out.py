"""Hold a part of the training images of a folder out, to choose a recipe on.

    python scripts/reproduce/hold_out.py FOLDER OUT [--images 5000]

OUT gets train/ and validation/ with links to the images in FOLDER/train, in the folders of their classes if there are
any: those with the last names, whatever their class, are held out. CIFAR-10's are named by their number, so it is the
same images every time.
"""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", metavar="FOLDER", type=Path)
parser.add_argument("out", metavar="OUT", type=Path)
parser.add_argument("--images", metavar="N", type=int, default=5000)
args = parser.parse_args()

train = args.folder / "train"
images = sorted((path for path in train.rglob("*") if path.is_file()), key=lambda path: path.name)
if not 0 < args.images < len(images):
    parser.error(f"--images must be fewer than the {len(images)} of {train}, got {args.images}")
for index, image in enumerate(images):
    split = "train" if index < len(images) - args.images else "validation"
    link = args.out / split / image.relative_to(train)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(image.resolve())
