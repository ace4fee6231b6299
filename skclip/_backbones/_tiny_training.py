"""How the bundled tiny models were made: one seeded function, from random weights to a folder."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from skclip._backbones._tiny import TinyTokenizer, build_tiny
from skclip.datasets import load_digit_pictures, make_picture_world
from skclip.datasets._language import digit_caption, vocabulary, write_captions
from skclip.datasets._scenes import ALL_COLORS, ALL_SHAPES, COLORS, HELD_OUT_PAIRS, SHAPES, SIZES

DEFAULT_STEPS = {"vit": 4000, "rn": 4600}
CONTEXT_LENGTH = 64
Tower: TypeAlias = Any  # an open_clip.CLIP, whose parts torch does not type
BATCH_SIZE = 128
N_DIGITS = 12  # of every batch
_CHUNK = 8  # batches drawn at once
_EVALUATION_SEED = 7_000_000

_SHAPE_MIX = {"shape": 1.0}
_SIMPLE_MIX = {"short": 0.5, "color": 0.2, "shape": 0.3}
_FULL_MIX = {
    "short": 0.2, "color": 0.07, "shape": 0.1, "description": 0.08, "attr": 0.12, "pos": 0.08,
    "rel": 0.07, "count": 0.03, "all": 0.07, "long": 0.16, "negated": 0.02,
}  # fmt: skip
# The ViT stays with colours for long, unless it first meets shapes alone: plain, not small, named without colour.
# The ResNet needs no such start.
_SHAPES_UNTIL = {"vit": 0.0625, "rn": 0.0}
_SIMPLE_UNTIL = 0.25

# Then a second, shorter cycle at half the learning rate. Its single objects share few colours and shapes, so that
# size, texture, place and background must tell them apart.
DETAIL_STEPS = 1504
_DETAIL_MIX = {"long": 0.5, "attr": 0.2, "pos": 0.15, "short": 0.05, "shape": 0.05, "color": 0.05}
_DETAIL_DIGITS = 24
_EASY = {"textures": ["plain"], "sizes": ["medium", "large", "huge"]}

# Kinds whose claim is one colour, one shape or both: whether they are true of another picture is known.
_KNOWN_TRUTH = ("short", "color", "shape", "description")


def tiny_architecture(kind: str) -> dict[str, Any]:
    """Configuration of ``kind`` "vit" or "rn", before training."""
    words = vocabulary()
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": len(words) + 4, "width": 64, "heads": 4, "layers": 4}
    if kind == "vit":
        vision: dict[str, Any] = {"image_size": 48, "layers": 4, "width": 96, "head_width": 24, "patch_size": 8}
        stem = [[24, 2], [48, 2], [64, 1], [vision["width"], 2]]  # (channels, stride)
    elif kind == "rn":
        vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}
        stem = None
    else:
        raise ValueError(f'kind must be "vit" or "rn", got {kind!r}.')
    side = vision["image_size"]
    return {
        "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text},
        "stem": stem,
        "preprocess_cfg": {
            "size": [side, side],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
        "vocabulary": list(words),
        "license": "bsd-3-clause",
    }


def train_tiny_clip(
    kind: str,
    *,
    seed: int = 0,
    n_steps: int,
    n_detail_steps: int = DETAIL_STEPS,
    learning_rate: float = 2e-3,
    checkpoint: Path | None = None,
    log: Path | None = None,
) -> tuple[Tower, dict[str, Any]]:
    """Train a tiny CLIP from scratch on the picture world and the training digits.

    Everything that a step sees is a function of (seed, step), so that a run resumed from its checkpoint
    sees the same pictures. Held-out (colour, shape) pairs, unseen shapes and colours, styles other than
    "photo" and the test digits never occur.

    Parameters
    ----------
    kind : {"vit", "rn"}
    n_steps : int
        Steps of 128 pictures. The first quarter shows single objects with the simplest captions, and the ViT's
        first sixteenth plain shapes whose captions name no colour. A multiple of 8.
    n_detail_steps : int
        Steps of the second cycle, whose captions name more.
    checkpoint : Path, optional
        Written every 200 steps; an existing one is continued.
    log : Path, optional
        One JSON line per hundred steps.

    Returns
    -------
    module : open_clip.CLIP
    config : dict
        As `tiny_config` returns it, with a ``"training"`` record.
    """
    config = tiny_architecture(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Tower = build_tiny(config)
    module.logit_scale.data.fill_(math.log(10.0))
    tokenizer = TinyTokenizer(config["vocabulary"], CONTEXT_LENGTH)
    optimizer = torch.optim.AdamW(_parameter_groups(module), lr=learning_rate, betas=(0.9, 0.98))
    first, spent = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]

    pair_ids = tokenizer([f"a photo of a {c} {s}" for c, s in _training_pairs()])
    pair_code = {(ALL_COLORS.index(c), ALL_SHAPES.index(s)): i for i, (c, s) in enumerate(_training_pairs())}
    mean, std = (torch.tensor(config["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))
    module.train()
    began = time.process_time()
    totals: dict[str, float] = {}
    for step, batch in _batches(kind, seed, first, n_steps, n_detail_steps, config["preprocess_cfg"]["size"][0]):
        rate = learning_rate * _schedule(step, n_steps, n_detail_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = (batch["images"].permute(0, 3, 1, 2).float() / 255 - mean) / std
        losses = _losses(module, pixels, tokenizer(batch["captions"]), batch, pair_ids, pair_code)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        module.logit_scale.data.clamp_(max=math.log(100.0))
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / 100
        if (step + 1) % 100 == 0:
            seconds = spent + time.process_time() - began
            scale = float(module.logit_scale.detach().exp())
            _append(log, {"step": step + 1, "seconds": round(seconds), "logit_scale": round(scale, 2)} | totals)
            totals = {}
        if checkpoint is not None and (step + 1) % 200 == 0:
            _save_checkpoint(checkpoint, module, optimizer, step + 1, spent + time.process_time() - began)
    module.eval()
    config["training"] = {
        "seed": seed,
        "n_steps": n_steps,
        "n_detail_steps": n_detail_steps,
        "batch_size": BATCH_SIZE,
        "learning_rate": learning_rate,
        "cpu_seconds": round(spent + time.process_time() - began),
        "n_parameters": sum(p.numel() for p in module.parameters()),
        "machine": f"{platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
    }
    config["logit_scale"] = round(float(module.logit_scale.detach().exp()), 4)
    return module, config


def evaluate_tiny_clip(module: Tower, config: dict[str, Any]) -> dict[str, float]:
    """Accuracy in % on pictures that training never saw.

    Returns
    -------
    figures : dict
        zero_shot_all (64 classes, every pair equally often), zero_shot_seen_pairs, zero_shot_held_out_pairs
        (the same 64 prompts), zero_shot_SIZE, digits (test scans), text_to_image_r1 and image_to_text_r1
        (1000 pictures of 1-3 objects, "long" captions), patch_accuracy and region_accuracy (value path,
        64 prompts, pictures of 2-3 objects; ViT only).
    """
    side = config["preprocess_cfg"]["size"][0]
    tokenizer = TinyTokenizer(config["vocabulary"], CONTEXT_LENGTH)
    mean, std = (torch.tensor(config["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))

    def pixels(images: NDArray) -> torch.Tensor:
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std

    @torch.no_grad()
    def encode(images: NDArray) -> torch.Tensor:
        parts = [module.visual(pixels(images[lo : lo + 128])) for lo in range(0, len(images), 128)]
        return F.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def encode_text(texts: list[str]) -> torch.Tensor:
        parts = [_encode_text(module, tokenizer(texts[lo : lo + 128])) for lo in range(0, len(texts), 128)]
        return F.normalize(torch.cat(parts), dim=1)

    def world(n: int, **choices: Any) -> Any:
        return make_picture_world(n, image_size=side, random_state=_EVALUATION_SEED, **choices)

    names = [f"{c} {s}" for c in COLORS for s in SHAPES]
    prompts = encode_text([f"a photo of a {name}" for name in names])
    code = {name: i for i, name in enumerate(names)}

    def accuracy(right: NDArray) -> float:
        return round(100 * float(np.mean(right)), 2)

    single = world(6400, held_out="include")
    truth = np.array([code[name] for name in single.target])
    right = (encode(single.images) @ prompts.T).argmax(1).numpy() == truth
    held = np.isin(single.target, [f"{c} {s}" for c, s in HELD_OUT_PAIRS])
    figures = {"zero_shot_all": accuracy(right), "zero_shot_seen_pairs": accuracy(right[~held])}
    only = world(2000, held_out="only")
    truth_only = np.array([code[name] for name in only.target])
    figures["zero_shot_held_out_pairs"] = accuracy((encode(only.images) @ prompts.T).argmax(1).numpy() == truth_only)
    for i, size in enumerate(SIZES):
        figures[f"zero_shot_{size}"] = accuracy(right[single.scenes.size[:, 0] == i])

    digits = load_digit_pictures(image_size=side, subset="test")
    digit_prompts = encode_text([digit_caption(d) for d in range(10)])
    figures["digits"] = accuracy((encode(digits.images) @ digit_prompts.T).argmax(1).numpy() == digits.target)

    many = world(1000, max_objects=3, captions="long")
    similarity = encode(many.images) @ encode_text(many.captions).T
    same = np.array([[a == b for b in many.captions] for a in many.captions])
    rows = np.arange(1000)
    figures["image_to_text_r1"] = accuracy(same[rows, similarity.argmax(1).numpy()])
    figures["text_to_image_r1"] = accuracy(same[rows, similarity.argmax(0).numpy()])

    if config["stem"]:
        scenes = world(1000, min_objects=2, max_objects=3, held_out="include")
        coverage = _coverage(scenes.id_map, 3, side // 8)
        with torch.no_grad():
            parts: list[Any] = [_embed(module, pixels(scenes.images[lo : lo + 128]))[1] for lo in range(0, 1000, 128)]
            grids = torch.cat(parts)
        patches = (F.normalize(grids, dim=2) @ prompts.T).argmax(2).numpy()
        regions = F.normalize(torch.einsum("nkp,npd->nkd", torch.from_numpy(coverage), grids), dim=2)
        found = (regions @ prompts.T).argmax(2).numpy()
        shape, color = scenes.scenes.shape, scenes.scenes.color
        truth = color * len(SHAPES) + shape
        owner = coverage.argmax(1)
        inside = coverage.max(1) > 0.5
        figures["patch_accuracy"] = accuracy((patches == np.take_along_axis(truth, owner, 1))[inside])
        present = np.arange(3) < scenes.scenes.n_objects[:, None]
        figures["region_accuracy"] = accuracy((found == truth)[present])
    return figures


def rounded_to_half(module: Tower) -> Tower:
    """The module itself, its weights replaced by what float16 keeps of them."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    return module


def write_model_card(folder: Path, name: str, log: Path) -> None:
    """Write NAME.md from NAME.json and the training log."""
    config = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    picked = records[:: max(1, len(records) // 12)]
    if picked[-1] is not records[-1]:
        picked.append(records[-1])
    training, vision, text = config["training"], config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    dense = "patch_accuracy" in config["evaluation"]
    kind = "vit" if dense else "rn"
    blocks = (
        f"VisionTransformer, {vision['layers']} blocks of width {vision['width']}, patch {vision['patch_size']}, "
        "after a stem of four convolutions"
        if dense
        else f"ModifiedResNet, {len(vision['layers'])} stages, width {vision['width']}"
    )
    shapes_first = "plain shapes named without colour for the first sixteenth, " if dense else ""
    region = (
        "; the mean of the value-path patch features over one object is also classified among the "
        "captions of the 56 pairs"
        if dense
        else ""
    )
    lines = [
        f"# {name}",
        "",
        "A small CLIP that sees the picture world (`skclip.datasets.make_picture_world`) and scanned digits "
        "(`load_digit_pictures`), for tests, examples and teaching. It knows nothing else: do not use it on "
        "photographs.",
        "",
        f"- **Model**: an `open_clip.CLIP`; {blocks}, pictures of {vision['image_size']} pixels; causal text tower, "
        f"{text['layers']} blocks of width {text['width']}, context {text['context_length']}, "
        f"{len(config['vocabulary'])} words; embedding {config['model_cfg']['embed_dim']}; "
        f"{training['n_parameters']:,} parameters, stored as float16. BSD-3-Clause.",
        f"- **Data**: drawn while training, nothing repeated: {shapes_first}one object with the simplest captions "
        f"for the first quarter, then one to three objects with all kinds of captions; at last single objects of few "
        f"colours and shapes, so that details must tell them apart. {N_DIGITS} of {BATCH_SIZE} pictures (at last "
        f"{_DETAIL_DIGITS}) are training digits, moved and turned a little. Never shown: {len(HELD_OUT_PAIRS)} "
        f"(colour, shape) pairs ({', '.join(f'{c} {s}' for c, s in HELD_OUT_PAIRS)}), unseen shapes and colours, "
        f'styles other than "photo", the test digits.',
        f"- **Objective**: InfoNCE both ways where equal captions are positives and other captions known to be true "
        f"of a picture are left out{region}.",
        f"- **Recipe**: AdamW (0.9, 0.98), weight decay 0.05 on matrices, batch {training['batch_size']}; "
        f"{training['n_steps']} steps at learning rate {training['learning_rate']}, then {training['n_detail_steps']} "
        f"at half of it, each with 100 steps of warm-up and cosine to 0; seed {training['seed']}; "
        f"{training['cpu_seconds']} seconds of one thread of {training['machine']}, torch {training['torch']}.",
        f"- **Command**: `python examples/train_tiny_clip.py {kind} --seed {training['seed']}`",
        "",
        "## Evaluation",
        "",
        'Pictures that training never saw, float16 weights, one prompt per class ("a photo of a red circle"), '
        "64 classes, all sizes, textures and backgrounds.",
        "",
        "| measure | % |",
        "|---|---|",
        *[f"| {_MEASURES.get(key, key)} | {value:.1f} |" for key, value in config["evaluation"].items()],
        "",
        "## Training log",
        "",
        "| step | CPU seconds | logit scale | caption loss | region loss |",
        "|---|---|---|---|---|",
        *[
            f"| {r['step']} | {r['seconds']} | {r['logit_scale']} | {r['caption']:.3f} | "
            f"{'{:.3f}'.format(r['region']) if 'region' in r else ''} |"
            for r in picked
        ],
        "",
    ]
    (folder / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


_MEASURES = {
    "zero_shot_all": "zero-shot, all 64 pairs",
    "zero_shot_seen_pairs": "zero-shot, the 56 pairs of training",
    "zero_shot_held_out_pairs": "zero-shot, the 8 held-out pairs (among 64 classes)",
    **{f"zero_shot_{size}": f"zero-shot, {size} objects" for size in SIZES},
    "digits": "zero-shot, test digits (10 classes)",
    "image_to_text_r1": "retrieval R@1, 1000 pictures of 1-3 objects to long captions",
    "text_to_image_r1": "retrieval R@1, long captions to 1000 pictures",
    "patch_accuracy": "value-path patches of 2-3 objects, 64 classes",
    "region_accuracy": "value path averaged over the true object, 64 classes",
}


def save_tiny(folder: Path, name: str, module: Tower, config: dict[str, Any]) -> None:
    """Write NAME.safetensors (float16) and NAME.json; the evaluation of the stored weights goes into the latter."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{name}.safetensors"
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, weights)
    weights.chmod(0o644)
    (folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


# -- the objective ----------------------------------------------------------------------------------------


def _losses(
    module: Tower,
    pixels: torch.Tensor,
    ids: torch.Tensor,
    batch: dict[str, Any],
    pair_ids: torch.Tensor,
    pair_code: dict[tuple[int, int], int],
) -> dict[str, torch.Tensor]:
    image, grid = _embed(module, pixels)
    image = F.normalize(image, dim=1)
    scale = module.logit_scale.exp()
    unique, inverse = torch.unique(ids, dim=0, return_inverse=True)
    text = F.normalize(_encode_by_length(module, unique), dim=1)[inverse]
    losses = {"caption": _contrastive(scale * image @ text.T, inverse, batch["truth"])}
    if grid is not None:
        rows, coverage, color, shape = batch["regions"]
        region = F.normalize(torch.einsum("np,npd->nd", coverage, grid[rows]), dim=1)
        prompts = F.normalize(_encode_text(module, pair_ids), dim=1)
        target = torch.tensor([pair_code[pair] for pair in zip(color.tolist(), shape.tolist())])
        losses["region"] = F.cross_entropy(scale * region @ prompts.T, target)
    return losses


def _contrastive(logits: torch.Tensor, caption: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """InfoNCE where equal captions are positives and other captions that happen to be true are left out.

    Parameters
    ----------
    logits : Tensor of shape (n, n), pictures x captions
    caption : Tensor of shape (n,), int
        Equal numbers = equal captions.
    truth : Tensor of shape (n, n), bool
        Caption j is known to be true of picture i.
    """
    equal = caption[:, None] == caption[None, :]
    logits = logits.masked_fill(truth & ~equal, -1e4)
    target = equal.float()
    to_text = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    to_image = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return 0.5 * (to_text + to_image)


def _embed(module: Tower, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Picture embedding and, for the ViT, the (n, patches, d) value-path grid of its last block."""
    visual = module.visual
    if not hasattr(visual, "_embeds"):
        return visual(pixels), None
    x = visual._embeds(pixels)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    # `_pool` normalises too. The bundled weights were trained with the layer applied twice, which turns an embedding
    # by a cosine of 0.999; it stays, so that this recipe makes these weights.
    pooled, _ = visual._pool(visual.ln_post(last(x)))
    patches = x[:, 1:]
    width = patches.shape[2]
    attention = last.attn
    value = F.linear(last.ln_1(patches), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    patches = patches + attention.out_proj(value)
    patches = patches + last.mlp(last.ln_2(patches))
    return pooled @ visual.proj, visual.ln_post(patches) @ visual.proj


def _encode_text(module: Tower, ids: torch.Tensor) -> torch.Tensor:
    """The text tower cut at the longest end token: exact, because it is causal."""
    end = ids.argmax(1)
    length = int(end.max()) + 1
    x = module.token_embedding(ids[:, :length]) + module.positional_embedding[:length]
    x = module.transformer(x, attn_mask=module.attn_mask[:length, :length])
    return module.ln_final(x)[torch.arange(len(ids)), end] @ module.text_projection


def _encode_by_length(module: Tower, ids: torch.Tensor) -> torch.Tensor:
    """`_encode_text` in two groups, so that short captions are not padded to the longest."""
    long = ids.argmax(1) > 13
    if not long.any() or long.all():
        return _encode_text(module, ids)
    parts = torch.cat([_encode_text(module, ids[~long]), _encode_text(module, ids[long])])
    order = torch.cat([torch.nonzero(~long), torch.nonzero(long)]).ravel()
    return parts[torch.argsort(order)]


def _parameter_groups(module: Tower) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def _schedule(step: int, n_steps: int, n_detail_steps: int) -> float:
    """Factor of the learning rate: two cycles of warm-up and cosine, the second at half height."""
    if step < n_steps:
        return _cycle(step, n_steps)
    return 0.5 * _cycle(step - n_steps, n_detail_steps)


def _cycle(step: int, n_steps: int, warmup: int = 100) -> float:
    return min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


# -- the data ---------------------------------------------------------------------------------------------


def _training_pairs() -> list[tuple[str, str]]:
    return [(c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS]


def _batches(
    kind: str, seed: int, first: int, n_steps: int, n_detail_steps: int, side: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    digits = load_digit_pictures(image_size=side, subset="train")
    for chunk in range(first // _CHUNK, (n_steps + n_detail_steps) // _CHUNK):
        done = chunk * _CHUNK / n_steps
        rng = np.random.Generator(np.random.Philox(key=[seed, 2**40 + chunk]))
        mix: dict[str, float] = _FULL_MIX
        counts: tuple[int, ...] = (1, 3)
        choices: dict[str, Any] = {}
        n_digits = N_DIGITS
        if done < _SIMPLE_UNTIL:
            mix, counts = _SIMPLE_MIX, (1,)
        if done < _SHAPES_UNTIL[kind]:
            mix, choices = _SHAPE_MIX, _EASY
        if done >= 1:
            mix, n_digits = _DETAIL_MIX, _DETAIL_DIGITS
            choices = {
                "shapes": rng.choice(SHAPES, 2, replace=False).tolist(),
                "colors": rng.choice(COLORS, 2, replace=False).tolist(),
            }
        parts = [
            _world_chunk(seed, chunk, mix, most, BATCH_SIZE // len(counts), rng, side, choices if most == 1 else {})
            for most in counts
        ]
        n_world = (BATCH_SIZE - n_digits) // len(parts)
        for i in range(_CHUNK):
            step = chunk * _CHUNK + i
            if step >= first:
                rows = slice(i * n_world, (i + 1) * n_world)
                generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
                part_rows = [{key: value[rows] for key, value in part.items()} for part in parts]
                yield step, _assemble(part_rows, digits, n_digits, rng, generator)


def _world_chunk(
    seed: int,
    chunk: int,
    mix: dict[str, float],
    max_objects: int,
    per_batch: int,
    rng: np.random.Generator,
    side: int,
    choices: dict[str, Any],
) -> dict[str, Any]:
    n = _CHUNK * per_batch
    world = make_picture_world(
        n,
        image_size=side,
        min_objects=min(2, max_objects),
        max_objects=max_objects,
        start=chunk * _CHUNK * BATCH_SIZE,
        random_state=1000 * (seed + 1) + max_objects,
        **choices,
    )
    kinds = rng.choice(list(mix), size=n, p=np.array(list(mix.values())) / sum(mix.values()))
    slot = (rng.random(n) * world.scenes.n_objects).astype(np.intp)
    captions = write_captions(world.scenes, kinds.tolist(), slot=slot, paraphrase=True)
    rows = np.arange(n)
    shown = np.arange(3) < world.scenes.n_objects[:, None]
    pad = ((0, 0), (0, 3 - max_objects))
    color = np.where(shown, np.pad(world.scenes.color, pad), -1)
    shape = np.where(shown, np.pad(world.scenes.shape, pad), -1)
    simple = np.isin(kinds, _KNOWN_TRUTH)
    claims_color = simple & (kinds != "shape")
    described = kinds == "description"
    claims_color[described] = [" object ," in c or " colored " in c for c in np.array(captions)[described]]
    region = (rng.random(n) * world.scenes.n_objects).astype(np.intp)
    coverage = _coverage(world.id_map, 3, side // 8)
    return {
        "images": world.images,
        "captions": np.array(captions, dtype=object),
        "color": color,
        "shape": shape,
        "simple": simple,
        "claim_color": np.where(claims_color, color[rows, slot], -1),
        "claim_shape": np.where(simple & (kinds != "color"), shape[rows, slot], -1),
        "coverage": coverage[rows, region],
        "region_color": color[rows, region],
        "region_shape": shape[rows, region],
    }


def _assemble(
    parts: list[dict[str, Any]], digits: Any, n_digits: int, rng: np.random.Generator, generator: torch.Generator
) -> dict[str, Any]:
    world = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    n = len(world["simple"])
    picked = rng.integers(len(digits.target), size=n_digits)
    number = digits.target[picked]
    wording = rng.integers(100, size=n_digits)
    captions = world["captions"].tolist() + [digit_caption(d, w) for d, w in zip(number, wording)]
    truth = np.zeros((n + n_digits, n + n_digits), dtype=bool)
    fits_color = (world["claim_color"] < 0) | (world["color"][:, :, None] == world["claim_color"])
    fits_shape = (world["claim_shape"] < 0) | (world["shape"][:, :, None] == world["claim_shape"])
    there = (world["color"] >= 0)[:, :, None]
    truth[:n, :n] = (fits_color & fits_shape & there).any(1) & world["simple"]
    truth[n:, n:] = number[:, None] == number
    rows = np.flatnonzero(world["coverage"].sum(1) > 0)
    regions = (
        torch.from_numpy(rows),
        torch.from_numpy(world["coverage"][rows]),
        world["region_color"][rows],
        world["region_shape"][rows],
    )
    images = torch.cat([torch.from_numpy(world["images"]), _shaken(digits.images[picked], generator)])
    return {"images": images, "captions": captions, "truth": torch.from_numpy(truth), "regions": regions}


def _shaken(images: NDArray, generator: torch.Generator) -> torch.Tensor:
    """Digits moved, turned and scaled a little, with other ink and grain; (n, side, side, 3) in 0..255."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    n = len(pixels)
    low_high = torch.tensor([(-0.26, 0.26), (0.82, 1.25), (-0.2, 0.2), (-0.12, 0.12), (-0.12, 0.12), (0.7, 1.0)])
    drawn = low_high[:, :1] + (low_high[:, 1:] - low_high[:, :1]) * torch.rand(6, n, generator=generator)
    angle, scale, shear, dx, dy, contrast = drawn
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack([torch.stack([cos, shear - sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    inked = 240 - (240 - moved) * contrast.view(n, 1, 1, 1)
    grainy = inked + 6 * torch.randn(inked.shape, generator=generator)
    return grainy.clamp(0, 255).permute(0, 2, 3, 1)


def _coverage(id_map: NDArray, n_slots: int, grid: int) -> NDArray:
    """(n, n_slots, grid * grid) share of each patch that belongs to each object."""
    n, side = id_map.shape[:2]
    patch = side // grid
    tiles = id_map.reshape(n, grid, patch, grid, patch)
    return (
        np.stack([(tiles == k + 1).mean((2, 4)) for k in range(n_slots)], 1).reshape(n, n_slots, -1).astype(np.float32)
    )


def _append(log: Path | None, record: dict[str, Any]) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()})
    if log is None:
        print(line, flush=True)
        return
    with log.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def _save_checkpoint(path: Path, module: Tower, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    partial = path.with_suffix(".partial")
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    torch.save(state, partial)
    partial.replace(path)
