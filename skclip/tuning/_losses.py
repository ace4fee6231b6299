"""Terms that the losses of tuning methods are made of, and ProGrad's rule for two gradients: tensors in, tensors out.

Terms that are means over pictures take `weights` (b,), whose mean over all training pictures is 1, not over a batch:
a heavy picture then counts the same in whatever company.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skclip.tuning._setting import in_float32

if TYPE_CHECKING:
    import torch

# of the length of another gradient: what rounding leaves of one that is zero
_NOTHING = 1e-5


def cross_entropy(
    logits: torch.Tensor,
    codes: torch.Tensor,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean cross entropy of logits (b, K) with classes (b,), or with probabilities (b, K)."""
    from torch.nn import functional

    losses = functional.cross_entropy(logits, codes, reduction="none", label_smoothing=label_smoothing)
    return _mean_over_pictures(losses, weights)


def cosine_distance_to(text: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
    """``1 - mean_k cos(text_k, frozen_k)`` of two (K, d): KgCoOp, CVPR 2023, in the form of its code.

    The paper prints the squared distance of unit vectors, which is twice this.
    """
    from torch.nn.functional import cosine_similarity

    return 1.0 - cosine_similarity(text, frozen, dim=-1, eps=1e-7).mean()


def kl_divergence(
    teacher_logits: torch.Tensor,
    logits: torch.Tensor,
    temperature: float = 1.0,
    reduction: str = "batch",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """``T^2 KL(softmax(teacher_logits / T) || softmax(logits / T))`` of two (b, K).

    The gradient is that of ``-T^2 sum softmax(teacher_logits / T) log_softmax(logits / T)``, ProGrad's term.

    Parameters
    ----------
    reduction : {"batch", "batch_classes"}
        What the sum over pictures and classes is divided by: b (ProGrad, ICCV 2023), or ``b K`` (PromptSRC, ICCV
        2023, and BiomedCoOp, CVPR 2025), which shrinks with the number of classes.
    """
    from torch.nn.functional import kl_div, log_softmax

    teacher, student = log_softmax(teacher_logits / temperature, dim=1), log_softmax(logits / temperature, dim=1)
    divergences = kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    divisor = {"batch": 1, "batch_classes": logits.shape[1]}[reduction]
    return temperature**2 / divisor * _mean_over_pictures(divergences, weights)


def mean_absolute(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of ``|a - b|`` over all entries of two (m, d): PromptSRC, ICCV 2023, for text and for pictures."""
    return _mean_over_pictures((a - b).abs().flatten(1).mean(dim=1), weights)


def mse(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of ``(a - b)^2`` over all entries of two (m, ..., d): BiomedCoOp's semantic consistency, GOPro's of views.

    For unit vectors this is ``(2 - 2 cos) / d``.
    """
    return _mean_over_pictures((a - b).square().flatten(1).mean(dim=1), weights)


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Contrastive loss of two views of b pictures, two (b, d) of any length: SimCLR, ICML 2020, eq. 1.

    Each of the 2b vectors is to recognise the other view of its picture among the 2b - 1 other vectors.
    """
    import torch
    from torch.nn import functional

    vectors = functional.normalize(torch.cat([first, second]), dim=1)
    with in_float32(vectors):
        scores = (vectors @ vectors.T / temperature).fill_diagonal_(-torch.inf)
    positions = torch.arange(len(vectors), device=vectors.device)
    return functional.cross_entropy(scores, positions.roll(len(first)))


def text_to_text(text: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """How well learned class text is recognised by frozen class text, both (K, d) or (G, K, d) of unit rows.

    Mean cross entropy, over classes and groups, of the cosines of each class with all prototypes of its group. They
    are not scaled: MoCoOp, arXiv:2409.12011, after LASP, CVPR 2023.
    """
    import torch
    from torch.nn import functional

    with in_float32(text):
        cosines = text @ prototypes.transpose(-1, -2)
    n_classes = cosines.shape[-1]
    labels = torch.arange(n_classes, device=cosines.device).expand(cosines.shape[:-1])
    return functional.cross_entropy(cosines.reshape(-1, n_classes), labels.reshape(-1))


def project_gradients(g_d: torch.Tensor, g_g: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """The gradient of the labels without what opposes general knowledge, for one tensor of parameters.

    ``g_d - weight <g_d, u> u`` with ``u = g_g / ||g_g||`` where ``<g_d, g_g> < 0``, else `g_d`: ProGrad, ICCV 2023.
    A `g_g` shorter than 1e-5 of `g_d` is zero but for rounding, as where the learned prompt is still the hand-written
    one, and its direction says nothing: `g_d` again.

    Parameters
    ----------
    g_d : tensor
        Gradient of the cross entropy with the labels.
    g_g : tensor of the same shape
        Gradient of the divergence from zero-shot predictions.
    weight : float
        0 keeps `g_d`, 1 takes all of the opposing part away.
    """
    product = (g_d * g_g).sum()
    length = g_g.norm()
    if product >= 0 or length <= _NOTHING * g_d.norm():
        return g_d
    direction = g_g / length  # the square of a short gradient would be zero
    return g_d - weight * (g_d * direction).sum() * direction


def _mean_over_pictures(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    # autocast would multiply matrices in half precision, but not entries
    return losses.mean() if weights is None else (weights * losses).sum() / len(losses)
