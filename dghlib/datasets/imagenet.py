"""ImageNet (ILSVRC2012): 224x224 images of 1000 classes, from folders that the user provides.

Users who have agreed to its terms get the images at image-net.org. The images are in the data directory in
torchvision's
layout: `imagenet/val/<WordNet id>/*.JPEG`, and `imagenet/train` likewise. A class is the index of its id in the sorted
list.
"""

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dghlib.choices import look_up
from dghlib.datasets.files import evaluation_crop, image_files
from dghlib.datasets.labelled import LabelledImages, choose
from dghlib.storage import assets

DEFAULT_SIZE = (224, 224)  # pixels, height and width
_FOLDERS = {"test": "val", "train": "train"}


def imagenet(split: str, num_images: int | None = None, image_size: tuple[int, int] = DEFAULT_SIZE) -> LabelledImages:
    """Return uint8 images (N, 3, H, W) of a split, "test" (the validation images) or "train".

    As in the tests of all papers, the shorter side is scaled bilinearly to 256 pixels, and the central 224x224 pixels
    are cut out; at another `image_size` (H, W) in proportion.

    Raises:
        FileNotFoundError: the folder is missing; the message says where it belongs.
        ValueError: an unknown split, more images than there are, a folder without images, a file that is not an image.
    """
    folder = assets.data_dir() / "imagenet" / look_up(_FOLDERS, split, "split of imagenet")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing. ImageNet is not for us to download: get ILSVRC2012 at image-net.org and place a "
            f"folder for each class, named by its WordNet id, there; or set {assets.DATA_DIR_VARIABLE} (or "
            "--data-dir) to the directory that has imagenet/val"
        )
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    files = [(file, label) for label, name in enumerate(classes) for file in image_files(folder / name)]
    chosen = [files[k] for k in choose(len(files), num_images)]
    pixels = np.empty((len(chosen), 3, *image_size), dtype=np.uint8)
    for k, (file, _) in enumerate(tqdm(chosen, desc="read imagenet", unit="image", delay=3, leave=False)):
        pixels[k] = evaluation_crop(file, str(file), image_size, Image.Resampling.BILINEAR)
    return LabelledImages(torch.from_numpy(pixels), torch.tensor([label for _, label in chosen]), classes)
