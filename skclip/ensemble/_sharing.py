"""Pictures for several members: each is decoded once, and encoded once by every backbone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from copy import copy
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from skclip._media import PictureError, SharedPicture, check_images, describe, held_chunks, read_picture
from skclip.ensemble._members import Members
from skclip.features import CLIPFeatures, UnreadablePictureWarning
from skclip.utils import SkclipBase
from skclip.zero_shot import CLIPClassifier

Reader = Callable[[Sequence[SharedPicture]], Any]


class MemberInputs(NamedTuple):
    """X as each member is given it."""

    of: dict[str, Any]
    answers: dict[str, NDArray]  # of members that have answered already


def member_inputs(
    X: Any,
    members: Members,
    *,
    training: Collection[str] = (),
    answer: Callable[[str, Any, Any], NDArray] | None = None,
) -> MemberInputs:
    """X for each member: shared pictures where these are read by this package, X itself for all others.

    The pictures are walked in chunks; only rows of features, answers, and the pixels on which a network is trained
    outlast a chunk.

    Parameters
    ----------
    X : object
        What the ensemble was given.
    members : list of (str, classifier)
    training : collection of str
        Who is about to be fitted.
    answer : callable, default=None
        Called with the name of a network that is not, the network, and the pictures of a chunk. None asks none.
    """
    fronts = {name: front for name, member in members if (front := front_end(member)) is not None}
    networks = {name: member for name, member in members if reads_pixels(member)}
    if not fronts and not networks:
        return MemberInputs({name: X for name, _ in members}, {})
    pictures = share(X)
    readers: dict[str, Reader] = {name: encoder(front, training=name in training) for name, front in fronts.items()}
    for name, network in networks.items():
        if name in training:
            readers[name] = network.preprocess
        elif answer is not None:
            readers[name] = partial(answer, name, network)
    read = dict(zip(readers, read_together(pictures, list(readers.values()))))
    of = {name: pictures if name in fronts or name in networks else X for name, _ in members}
    answers = {name: _joined(read[name], len(pictures)) for name in networks if name in read}
    of.update({name: answers.pop(name) for name in networks if name in training})
    return MemberInputs(of, answers)


def front_end(member: Any) -> Any:
    """The transformer of this package that a member reads pictures with; None where there is none, or it is hidden."""
    if isinstance(member, CLIPClassifier):
        if hasattr(member, "features_"):
            return member.features_
        given = member.get_params(deep=False)
        return CLIPFeatures(**{name: given[name] for name in CLIPFeatures().get_params() if name in given})
    if isinstance(member, Pipeline):
        return member[0] if len(member) > 1 and _reads_pictures(member[0]) else None
    return front_end(member.estimator) if isinstance(member, FrozenEstimator | CalibratedClassifierCV) else None


def reads_pixels(member: Any) -> bool:
    """Whether a member is a network, which makes pixels of its size out of pictures by ``preprocess``."""
    network = member.estimator if isinstance(member, FrozenEstimator) else member
    return hasattr(network, "preprocess") and not get_tags(network).input_tags.two_d_array


def share(X: Any) -> list[SharedPicture]:
    """The pictures of X, each wrapped so that what one reader makes of it serves the others."""
    return [item if isinstance(item, SharedPicture) else SharedPicture(item) for item in check_images(X)]


def encoder(front: Any, *, training: bool) -> Reader:
    """A reader that makes the rows of a front end, which stay with the pictures.

    With `training`, those of all views that ``fit_transform`` will ask for, where its seed is known.
    """
    front = copy(front)  # no clone: a fitted one runs on the CPU where its device is missing
    if "verbose" in front.get_params():
        front.set_params(verbose=0)  # a bar for every few pictures says nothing
    views = training and getattr(front, "n_views", 1) > 1 and isinstance(front.random_state, Integral)
    encode = front.fit_transform if views else front.transform

    def read(pictures: Sequence[SharedPicture]) -> None:
        with warnings.catch_warnings():
            # the member itself reports what cannot be read, with its position among all pictures
            warnings.simplefilter("ignore", UnreadablePictureWarning)
            encode(pictures)

    return read


def read_together(pictures: Sequence[SharedPicture], readers: Sequence[Reader]) -> list[list[Any]]:
    """Give every reader the same few pictures, then the next.

    Returns
    -------
    list of list
        For each reader what it returned, chunk by chunk.

    Raises
    ------
    PictureError
        If a reader cannot do without a picture that cannot be read.
    """
    answers: list[list[Any]] = [[] for _ in readers]
    for start, chunk in held_chunks(pictures):
        for reader, own in zip(readers, answers):
            try:
                own.append(reader(chunk))
            except PictureError as error:
                raise _at_its_position(chunk, start, error) from error
    return answers


def _joined(parts: list[NDArray], n: int) -> NDArray:
    """One array of n rows; each part is dropped when it is copied, so that no two copies of all stand side by side."""
    joined = np.empty((n, *parts[0].shape[1:]), dtype=parts[0].dtype)
    start = 0
    while parts:
        part = parts.pop(0)
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def _at_its_position(chunk: Sequence[SharedPicture], start: int, error: PictureError) -> PictureError:
    for position, picture in enumerate(chunk, start):
        try:
            read_picture(picture)
        except PictureError as reason:
            return PictureError(f"X[{position}], {describe(picture)}: {reason}.")
    return error


def _reads_pictures(step: Any) -> bool:
    """Whether a transformer of this package turns pictures into numbers without having learned anything."""
    if not isinstance(step, SkclipBase):
        return False
    tags = get_tags(step)
    return tags.input_tags.three_d_array and not tags.input_tags.two_d_array and not tags.requires_fit
