"""What is known about a model before its weights are read: from open_clip's configurations."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from skclip._backbones._hub import BackboneError, hub_file
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._tiny import TINY_NAMES, tiny_config

# Good, small, MIT, and trained with the plain GELU of its architecture.
DEFAULT_MODEL = "ViT-B-32/datacomp_xl_s13b_b90k"

CONFIG_NAME = "open_clip_config.json"
_HUB_PREFIX = "hf-hub:"
_FOLDER_PREFIX = "local-dir:"
_QUICK_SUFFIX = "-quickgelu"

# What open_clip's configurations do not hold. Licences are the publishers' own; first pattern that
# matches "<architecture>/<tag>" wins, and a family without an entry has None: ask its publisher.
_LICENSES = (
    (r".*/metaclip.*", "CC-BY-NC-4.0"),
    (r"nllb-clip.*", "CC-BY-NC-4.0"),
    (r"MobileCLIP.*", "apple-amlr"),
    (r".*(SigLIP|CLIPA|PE-Core).*", "Apache-2.0"),
    (r"(EVA0|ViTamin).*", "MIT"),
    (r".*/(openai|yfcc15m|cc12m)", "MIT"),
    (r".*/.*(laion|datacomp|commonpool).*", "MIT"),
)
# OpenAI clipped the scale at 100 in training and all its models ended there.
_LOGIT_SCALES = {"openai": 100.0}


@dataclass(frozen=True)
class BackboneCard:
    """Facts about a model, known without its weights.

    Attributes
    ----------
    name : str
        Canonical model string: two strings that mean the same model have cards with one name.
    architecture : str
        What is built: open_clip's name (with ``-quickgelu`` where the weights need it), the hub
        repository, or the folder's name.
    tag : str or None
        Pretrained tag; None unless the string is ``"<architecture>/<tag>"``.
    dim : int
        Width of the shared embedding.
    image_size : tuple of int
        Height and width of the picture the image tower reads.
    mean, std : tuple of float
        Per-channel normalisation of pixels in [0, 1].
    interpolation : {"bicubic", "bilinear"}
    resize_mode : {"shortest", "longest", "squash"}
    fill_color : int
        How a picture is brought to `image_size`, in open_clip's words.
    context_length : int
        Token limit of the text tower, start and end tokens included.
    causal_text : bool
        Whether tokens after the end token cannot change a text's feature.
    logit_scale : float or None
        Trained factor on cosines; None where only the weights tell (then: ``Backbone.logit_scale``).
    quick_gelu : bool
        Whether the towers use the QuickGELU activation.
    license : str or None
        Licence of the weights; None when unknown.
    config : str
        The tower configuration as canonical JSON. With the weights' digest it identifies the function
        that is computed.
    """

    name: str
    architecture: str
    tag: str | None
    dim: int
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int
    context_length: int
    causal_text: bool
    logit_scale: float | None
    quick_gelu: bool
    license: str | None
    config: str = field(repr=False)

    @cached_property
    def gflops_image(self) -> float | None:
        """10^9 floating-point operations per picture (a multiply-add is two); None if not countable.

        Counted at the first use by running the image tower on shapes alone, without numbers: up to a
        few seconds for the largest.
        """
        from skclip._backbones._building import count_image_gflops

        return count_image_gflops(json.loads(self.config), self.image_size)

    @cached_property
    def n_parameters(self) -> int | None:
        """Trained numbers of both towers, counted as `gflops_image` is; None if not countable."""
        from skclip._backbones._building import count_parameters

        return count_parameters(json.loads(self.config))


@dataclass(frozen=True)
class Recipe:
    """A card and where its weights come from."""

    card: BackboneCard
    kind: Literal["tiny", "folder", "hub"]
    source: str
    filename: str | None = None


def get_card(model: str) -> BackboneCard:
    """Facts about a model without loading its weights.

    Parameters
    ----------
    model : str
        ``"<architecture>/<pretrained tag>"``, ``"hf-hub:<repository>"``, ``"local-dir:<folder>"`` or a
        bundled model. Only ``"hf-hub:"`` may ask the network, for a configuration that is not cached.

    Returns
    -------
    BackboneCard

    Raises
    ------
    ValueError
        Unknown model; the message lists near names or the architecture's tags.
    BackboneError
        The configuration of a hub repository or folder cannot be read.
    """
    return get_recipe(model).card


def list_models(pattern: str = "*") -> list[str]:
    """Model strings that match a shell pattern, bundled models first.

    Parameters
    ----------
    pattern : str, default="*"
        For instance ``"ViT-B*"`` or ``"*/openai"``; case matters.

    Returns
    -------
    list of str
    """
    return [name for name in (*TINY_NAMES, *_tagged_models()) if fnmatchcase(name, pattern)]


def get_recipe(model: str) -> Recipe:
    """Resolve a model string; see `get_card`."""
    if not isinstance(model, str):
        raise ValueError(f"model={model!r} is not a string such as {DEFAULT_MODEL!r}.")
    if model in TINY_NAMES:
        return _tiny_recipe(model)
    if model.startswith(_FOLDER_PREFIX):
        return _folder_recipe(model)
    if model.startswith(_HUB_PREFIX):
        return _hub_recipe(model)
    return _tag_recipe(model)


@cache
def _tiny_recipe(model: str) -> Recipe:
    config = tiny_config(model)
    card = _card(
        model,
        model,
        config["model_cfg"],
        config["preprocess_cfg"],
        logit_scale=config["logit_scale"],
        license=config["license"],
        config={**config["model_cfg"], "stem": config.get("stem")},
    )
    return Recipe(card, "tiny", model)


def _folder_recipe(model: str) -> Recipe:
    folder = Path(model.removeprefix(_FOLDER_PREFIX)).expanduser()
    if not folder.is_dir():
        raise BackboneError(f"model={model!r}: there is no folder {folder}.")
    config = _read_config(folder / CONFIG_NAME, model)
    card = _card(model, folder.resolve().name, config["model_cfg"], config.get("preprocess_cfg", {}))
    return Recipe(card, "folder", str(folder.resolve()))


def _hub_recipe(model: str) -> Recipe:
    repo = model.removeprefix(_HUB_PREFIX)
    config = _read_config(hub_file(repo, [CONFIG_NAME]), model)
    card = _card(model, repo, config["model_cfg"], config.get("preprocess_cfg", {}))
    return Recipe(card, "hub", repo)


def _read_config(path: Path, model: str) -> dict[str, Any]:
    if not path.is_file():
        raise BackboneError(
            f"model={model!r}: {path.parent} holds no {path.name}, which open_clip writes beside the weights "
            "and which says what to build."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"model={model!r}: {path} cannot be read as JSON: {error}") from error
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(model_cfg, dict) or any(key not in model_cfg for key in needed):
        raise BackboneError(f"model={model!r}: {path} lacks 'model_cfg' with {', '.join(needed)}.")
    return config


@cache
def _tag_recipe(model: str) -> Recipe:
    open_clip = import_open_clip()
    architecture, slash, tag = model.rpartition("/")
    pretrained = open_clip.get_pretrained_cfg(architecture, tag) if slash else {}
    model_cfg = open_clip.get_model_config(architecture) if pretrained else None
    if not pretrained or model_cfg is None:
        raise ValueError(_unknown_model_message(model))
    tag = tag.lower().replace("-", "_")  # the registry's own spelling
    if pretrained.get("quick_gelu", False) and not model_cfg.get("quick_gelu", False):
        # The same weights with the plain GELU give plausible, wrong features.
        architecture += _QUICK_SUFFIX
        model_cfg = open_clip.get_model_config(architecture) or {**model_cfg, "quick_gelu": True}
    repo, _, filename = pretrained["hf_hub"].rpartition("/")
    name = f"{architecture}/{tag}"
    card = _card(
        name,
        architecture,
        model_cfg,
        pretrained,
        tag=tag,
        logit_scale=_LOGIT_SCALES.get(tag),
        license=next((text for pattern, text in _LICENSES if re.fullmatch(pattern, name)), None),
    )
    return Recipe(card, "hub", repo, filename or None)


def _card(
    name: str,
    architecture: str,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    *,
    tag: str | None = None,
    logit_scale: float | None = None,
    license: str | None = None,
    config: dict[str, Any] | None = None,
) -> BackboneCard:
    import_open_clip()
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    text = {**_dataclass_defaults(), **model_cfg["text_cfg"]}
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), preprocess_cfg)
    return BackboneCard(
        name=name,
        architecture=architecture,
        tag=tag,
        dim=int(model_cfg["embed_dim"]),
        image_size=_pair(model_cfg["vision_cfg"].get("image_size", 224)),
        mean=_triple(preprocess["mean"]),
        std=_triple(preprocess["std"]),
        # open_clip reads every other word, such as "random", as bicubic outside training.
        interpolation="bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic",
        resize_mode=preprocess["resize_mode"],
        fill_color=int(preprocess["fill_color"]),
        context_length=int(text["context_length"]),
        causal_text=(
            not text["no_causal_mask"]
            and not text["hf_model_name"]
            and not text["embed_cls"]
            and text["pool_type"] in ("argmax", "eos")
        ),
        logit_scale=logit_scale,
        quick_gelu=bool(model_cfg.get("quick_gelu", False)),
        license=license,
        config=json.dumps(config or model_cfg, sort_keys=True),
    )


def _dataclass_defaults() -> dict[str, Any]:
    from open_clip import CLIPTextCfg

    return asdict(CLIPTextCfg())


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)


def _triple(value: Any) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, (tuple, list)) else (value,) * 3
    return float(red), float(green), float(blue)


def _tagged_models() -> list[str]:
    open_clip = import_open_clip()
    known = set(open_clip.list_models())
    return [f"{name}/{tag}" for name, tag in open_clip.list_pretrained() if name in known]


def _unknown_model_message(model: str) -> str:
    open_clip = import_open_clip()
    architecture, slash, tag = model.rpartition("/")
    if not slash:
        architecture, tag = model, ""
    plain = architecture.removesuffix(_QUICK_SUFFIX)
    if plain != architecture and open_clip.get_pretrained_cfg(plain, tag):
        return (
            f"model={model!r}: the weights {tag!r} were trained without QuickGELU; with it they would give "
            f"wrong features. Use {f'{plain}/{tag}'!r}."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tags:
        what = f"has no weights {tag!r}" if tag else "needs a tag that names its weights"
        return f"model={model!r}: {architecture} {what}. There are: " + ", ".join(
            repr(f"{architecture}/{known}") for known in tags
        )
    names = [*TINY_NAMES, *_tagged_models()]
    near = difflib.get_close_matches(model, names, 3, cutoff=0.6)
    if not near:
        near = [
            f"{close}/{tags[0]}"
            for close in difflib.get_close_matches(architecture, open_clip.list_models(), 3)
            if (tags := open_clip.list_pretrained_tags_by_model(close))
        ]
    return (
        f"Unknown model {model!r}."
        + (f" Did you mean {', '.join(map(repr, near))}?" if near else "")
        + " Models are '<architecture>/<tag>' (all of them: skclip.list_models()), 'hf-hub:<repository>', "
        f"'local-dir:<folder>', or bundled: {', '.join(map(repr, TINY_NAMES))}."
    )
