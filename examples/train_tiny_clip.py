"""
Train the bundled tiny CLIPs from scratch
=========================================

Writes NAME.safetensors, NAME.json, NAME.md (the model card) and NAME.log.jsonl into a folder. The run that
made the bundled models::

    python examples/train_tiny_clip.py vit --folder skclip/_backbones/tiny
    python examples/train_tiny_clip.py rn --folder skclip/_backbones/tiny

A run that was stopped continues from its checkpoint when the command is typed again.
"""

import argparse
from pathlib import Path

import torch

from skclip._backbones._tiny_training import (
    DEFAULT_STEPS,
    evaluate_tiny_clip,
    rounded_to_half,
    save_tiny,
    train_tiny_clip,
    write_model_card,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["vit", "rn"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="default: what the bundled model took")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("tiny"))
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    name = {"vit": "skclip-tiny", "rn": "skclip-tiny-rn"}[args.kind] + (f"-seed{args.seed}" if args.seed else "")
    args.folder.mkdir(parents=True, exist_ok=True)
    log = args.folder / f"{name}.log.jsonl"
    checkpoint = args.folder / f"{name}.checkpoint"
    steps = args.steps or DEFAULT_STEPS[args.kind]
    module, config = train_tiny_clip(args.kind, seed=args.seed, n_steps=steps, checkpoint=checkpoint, log=log)
    config["evaluation"] = evaluate_tiny_clip(rounded_to_half(module), config)
    save_tiny(args.folder, name, module, config)
    write_model_card(args.folder, name, log)
    checkpoint.unlink(missing_ok=True)
    for figure, value in config["evaluation"].items():
        print(f"{figure:28s} {value:6.2f}")


if __name__ == "__main__":
    main()
