"""Draw the pictures of the README from seeds.

    python scripts/draw_readme_pictures.py [--run runs/quickstart]

docs/pictures/eyes.jpg shows one patient per column, the same eye in four modalities. With --run, the confusion matrix and
the training curves of a finished quickstart run are copied to docs/pictures/.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from data_pipelines.images.decode import load
from data_pipelines.synthetic.sources import Patients

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
CONDITIONS = (
    "normal",
    "proliferative diabetic retinopathy",
    "neovascular age-related macular degeneration",
    "glaucoma",
    "retinal vein occlusion",
    "retinal detachment",
    "macular hole",
)
MODALITIES = ("CFP", "UWF", "FFA", "OCT")
CELL, HEAD, GAP = 220, 44, 4


def eyes() -> Image.Image:
    """Draw conditions by column and modalities by row."""
    sheet = Image.new("RGB", (len(CONDITIONS) * (CELL + GAP), HEAD + len(MODALITIES) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for column, condition in enumerate(CONDITIONS):
        source = Patients(
            1, seed=3, start=20 + column, size=CELL, modalities=MODALITIES, conditions=(condition,), one_eye=True
        )
        left = column * (CELL + GAP)
        words = condition.replace("age-related macular degeneration", "AMD").split()
        middle = (len(words) + 1) // 2 if len(words) > 2 else len(words)
        draw.multiline_text((left + 4, 4), " ".join(words[:middle]) + "\n" + " ".join(words[middle:]), "black", font)
        for row, view in enumerate(source[0].views):
            sheet.paste(Image.fromarray(load(view.image)), (left, HEAD + row * (CELL + GAP)))
    return sheet


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="finished quickstart run")
    run = parser.parse_args().run
    PICTURES.mkdir(parents=True, exist_ok=True)
    eyes().save(PICTURES / "eyes.jpg", quality=88)
    for path in sorted((run / "figures").glob("*.png")) if run else ():
        shutil.copyfile(path, PICTURES / f"quickstart_{path.name}")


if __name__ == "__main__":
    main()
