"""
Pictures in, labels out
=======================

Classifies real pictures - scanned digits - with the bundled tiny CLIP: first by class names alone, then with a
few labelled pictures of each class, then inside an ordinary scikit-learn pipeline with a grid search. Nothing is
downloaded. With an internet connection, put a real model in place of ``"skclip-tiny"``, for instance
``"ViT-B-32/datacomp_xl_s13b_b90k"``, and your own pictures in place of the digits.
"""

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skclip import CLIPClassifier, CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.datasets import few_shot_split, load_digit_pictures

MODEL = "skclip-tiny"
TEMPLATE = "a photo of the {}"


def write_pictures(folder: Path) -> tuple[list[Path], list[int], dict[int, str]]:
    """A folder of picture files, as yours might be."""
    digits = load_digit_pictures(subset="test")
    paths = []
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        paths.append(folder / f"scan_{i:03d}_{label}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths, digits.target.tolist(), digits.class_names


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        paths, labels, class_names = write_pictures(Path(name))
        train, test = few_shot_split(labels, shots=8, random_state=0)
        train_paths, train_labels = [paths[i] for i in train], [labels[i] for i in train]
        test_paths, test_labels = [paths[i] for i in test], [labels[i] for i in test]
        print(f"{len(paths)} pictures, {len(class_names)} classes, {len(train)} of them labelled\n")

        names = ZeroShotClassifier(class_names=class_names, templates=TEMPLATE)
        zero_shot = CLIPClassifier(MODEL, names)
        print("The first five test pictures, by class names alone:")
        for path, label in zip(test_paths[:5], zero_shot.predict(test_paths[:5])):
            print(f"  {path.name}  ->  {class_names[label]}")

        few_shot = CLIPClassifier(MODEL, GDAClassifier(zero_shot=names, alpha="cv")).fit(train_paths, train_labels)
        pipeline = Pipeline([("features", CLIPFeatures(MODEL)), ("gda", GDAClassifier())])
        grid = {"gda__covariance": ["ks", "oas"], "gda__precision_scale": ["paper", "unit"]}
        search = GridSearchCV(pipeline, grid, cv=4).fit(train_paths, train_labels)

        print(f"\nAccuracy on {len(test)} test pictures")
        print(f"  class names alone                     {zero_shot.score(test_paths, test_labels):.3f}")
        print(f"  8 pictures of each class              {search.score(test_paths, test_labels):.3f}")
        print(f"  8 pictures of each class and names    {few_shot.score(test_paths, test_labels):.3f}")


if __name__ == "__main__":
    main()
