"""
Features of a folder of pictures with Ray Data
==============================================

Writes Parquet files with a row per picture: its path, its features, and why it could not be read, if so. One
command, on this machine or, where ``RAY_ADDRESS`` names one, on a cluster that sees the folder::

    python examples/extract_with_ray.py photos/ out/ --model skclip-tiny --workers 2
    python examples/extract_with_ray.py s3://bucket/photos/ s3://bucket/out/ --workers 8 --gpus-per-worker 1

Each worker loads the model once. Rows come in any order, each with its path. On one machine `skclip extract` does
the same with less: rows in order, and a run that was interrupted goes on.
"""

import argparse

import ray
import ray.data

from skclip.features import BatchEncoder, CLIPFeatures

PICTURES = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"]

# Of a core. Workers that took all there are would wait for ever for somebody to read the files.
FOR_FILES = 0.25


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="folder or URL")
    parser.add_argument("out", help="folder or URL for the Parquet files")
    parser.add_argument("--model", default=CLIPFeatures().model)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus-per-worker", type=int, default=1)
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    parser.add_argument("--batch-size", type=int, default=256, help="pictures handed to a worker at once")
    args = parser.parse_args(arguments)

    features = CLIPFeatures(args.model, n_workers=args.cpus_per_worker, store=None, on_error="nan")
    pictures = ray.data.read_binary_files(
        args.pictures, include_paths=True, file_extensions=PICTURES, num_cpus=FOR_FILES
    )
    rows = pictures.map_batches(
        BatchEncoder,
        # The bytes of the pictures are of no use after this step.
        fn_constructor_kwargs={"features": features, "column": "bytes", "keep_pictures": False},
        batch_format="pyarrow",
        batch_size=args.batch_size,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=args.cpus_per_worker - FOR_FILES,
        num_gpus=args.gpus_per_worker,
    )
    rows.write_parquet(args.out, ray_remote_args={"num_cpus": FOR_FILES})


if __name__ == "__main__":
    main()
