"""The one training loop of all that tunes a frozen model: named tensors in, named losses, NumPy arrays out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.tuning._advice import autocast, memory_advice
from skclip.tuning._averaging import Averaging
from skclip.tuning._checkpoint import check_writable, digest_of, read_checkpoint, write_checkpoint
from skclip.tuning._processes import Processes, join_processes
from skclip.tuning._schedules import Position, learning_rate

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
Losses = Callable[["Batch"], Tensors]
Gradients = Callable[[Tensors, Tensors], None]


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    max_iter: int  # epochs
    batch_size: int
    learning_rate: float
    optimizer: str = "sgd"  # or "adamw"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "dassl_cosine"  # see `_schedules`
    warmup: int = 1  # epochs or steps, whatever the schedule counts
    n_steps: int | None = None  # training ends after so many steps, in place of `max_iter` epochs
    clip_norm: float | None = None  # largest norm of all gradients together
    averaging: Averaging | None = None
    shuffle: bool = True
    drop_last: bool = True  # whether an incomplete last batch of shuffled pictures waits for the next epoch
    n_iter_no_change: int | None = None  # epochs without a better validation score before training ends


@dataclass
class Batch:
    """What one step sees."""

    rows: NDArray[np.intp]  # (b,) positions among the training pictures
    inputs: torch.Tensor  # (b, ...) on the device
    codes: torch.Tensor  # (b,) class of each picture
    weights: torch.Tensor | None  # (b,) of mean 1 over all training pictures
    epoch: int  # from 0
    step: int  # from 0, since the beginning of the training
    generator: torch.Generator | None  # on the device, for dropout and other noise of a step; None outside training


class Inputs(Protocol):
    """Where the pictures of each batch come from."""

    def __len__(self) -> int: ...

    def batches(
        self, rows: Sequence[NDArray[np.intp]], epoch: int, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """One tensor per entry of `rows`, in their order; `generator` is on the CPU and belongs to this epoch."""
        ...


class Group(NamedTuple):
    """What differs for some of the tensors."""

    lr: float = 1.0  # times the learning rate; tensors of 0 stay as they are
    weight_decay: float | None = None  # None is that of the recipe


class Trained(NamedTuple):
    learned: dict[str, NDArray]
    loss_curve: list[float]  # of each epoch
    loss_terms: dict[str, list[float]]  # the same, of each term
    validation_curve: list[float]
    n_iter: int  # epochs


def train(
    learned: Tensors,
    losses: Losses,
    inputs: Inputs,
    codes: ArrayLike,
    weights: ArrayLike | None,
    recipe: Recipe,
    *,
    groups: Mapping[str, Group] | None = None,
    generator: torch.Generator,
    device: torch.device,
    precision: str = "float32",
    gradients: Gradients | None = None,
    validate: Callable[[], float] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: Mapping[str, Any] | str = "",
    distributed: bool = False,
    verbose: int = 0,
    name: str = "",
) -> Trained:
    """Fit tensors by stochastic gradient on a sum of named losses.

    Parameters
    ----------
    learned : dict of tensor
        Where training starts. Each entry is replaced by a tensor of its own on the device (half precision becomes
        float32) that `losses` reads and every step changes in place; afterwards they hold what is returned.
    losses : callable
        ``losses(batch) -> {name: scalar}``, already weighted; their sum is minimised. The names are the same in every
        step.
    inputs : Inputs
        Of n pictures.
    codes : array-like of shape (n,)
    weights : array-like of shape (n,) or None
        Divided by their mean over all pictures, not over a batch: a heavy picture weighs the same in whatever company.
    recipe : Recipe
        An incomplete last batch is never left out where it is the only one, or nothing is shuffled.
    groups : dict of Group, default=None
        By names of `learned`, or patterns of them such as ``"visual.*"``; of several that fit the first counts.
    generator : torch.Generator
        On the CPU. The order of the pictures and all other random numbers follow from it.
    device : torch.device
    precision : {"float32", "bf16", "fp16"}
        Of the products; what is learned stays float32. The gradients of "fp16" are scaled to stay above underflow.
    gradients : callable, default=None
        ``gradients(losses, learned)`` sets ``.grad`` of the learned tensors in place of the backward pass of the sum.
        The losses may be scaled by a common factor. Of several processes each calls it for its share of a batch.
    validate : callable, default=None
        ``validate() -> score`` of the learned tensors as they would be returned; larger is better. With it, those of
        the best epoch are returned, the first of equals.
    checkpoint : path, default=None
        A file that is replaced after every epoch, and from which a training of the same `fingerprint` goes on: on a
        CPU with the same results to the last bit as if nothing had stopped it. That of a finished training gives its
        result at once.
    fingerprint : dict or str
        What the training is of beside the recipe, the labels and the shapes, by name, for what JSON can hold.
    distributed : bool, default=False
        Share every batch among the processes begun by ``accelerate launch`` or ``torchrun`` [1]_. All of them return
        the same tensors, and the main process alone writes the checkpoint and shows progress. As with one process,
        but for rounding, where the losses are means over the pictures of a batch.
    verbose : int
        1 shows a progress bar.
    name : str
        What the progress bar and errors say.

    Returns
    -------
    Trained
        The curves are means over the pictures of each epoch.

    Raises
    ------
    ValueError
        If a loss or a learned tensor stops being finite, a group names no tensor, or `recipe` stops early by a
        validation that is not there.
    CheckpointError
        If the checkpoint is damaged or of another training.
    BackboneError
        If a batch does not fit into memory.
    KeyboardInterrupt
        Saying how to go on.

    References
    ----------
    .. [1] https://huggingface.co/docs/accelerate
    """
    from tqdm.auto import tqdm

    if recipe.n_iter_no_change is not None and validate is None:
        raise ValueError(f"{name}: n_iter_no_change={recipe.n_iter_no_change} needs pictures to validate with.")
    processes = join_processes(device, distributed)
    data = _Data(inputs, codes, weights)
    run = _Run(learned, recipe, groups or {}, processes, precision, generator, data, name)
    file = None if checkpoint is None else _File(Path(checkpoint), run, fingerprint)
    run.start_from(file.read() if file and processes.is_main else None)
    try:
        with tqdm(
            total=run.n_steps,
            initial=run.step,
            desc=name,
            disable=not (verbose and processes.is_main),
            unit="step",
        ) as bar:
            while not run.is_finished:
                run.train_epoch(losses, gradients, bar.update)
                run.end_epoch(validate)
                bar.set_postfix(epoch=run.epoch, loss=f"{run.loss_curve[-1]:.4g}", refresh=False)
                if file and processes.is_main:
                    file.write()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_how_to_go_on(run, checkpoint)) from error
    return run.trained()


def n_batches(n: int, recipe: Recipe) -> int:
    """Steps of an epoch of n pictures."""
    if recipe.shuffle and recipe.drop_last and n >= recipe.batch_size:
        return n // recipe.batch_size
    return math.ceil(n / recipe.batch_size)


class _Data:
    """The pictures with their labels and weights, and the batches of an epoch."""

    def __init__(self, inputs: Inputs, codes: ArrayLike, weights: ArrayLike | None) -> None:
        import torch

        self.inputs = inputs
        self.codes = torch.from_numpy(np.array(codes, dtype=np.int64))
        self.weights = None
        if weights is not None:
            shares = np.array(weights, dtype=np.float64)
            self.weights = torch.from_numpy((shares / shares.mean()).astype(np.float32))

    def __len__(self) -> int:
        return len(self.inputs)

    def digest(self) -> str:
        return digest_of(self.codes, () if self.weights is None else self.weights)

    def order(self, recipe: Recipe, generator: torch.Generator, n: int) -> list[NDArray[np.intp]]:
        """The rows of the first n batches of an epoch."""
        import torch

        order = torch.randperm(len(self), generator=generator) if recipe.shuffle else torch.arange(len(self))
        return [batch.numpy() for batch in order.split(recipe.batch_size)[:n]]


class _Run:
    """A training under way: all that changes from step to step."""

    def __init__(
        self,
        learned: Tensors,
        recipe: Recipe,
        groups: Mapping[str, Group],
        processes: Processes,
        precision: str,
        generator: torch.Generator,
        data: _Data,
        name: str,
    ) -> None:
        import torch

        self.recipe, self.processes, self.precision, self.data, self.name = recipe, processes, precision, data, name
        self.device = processes.device
        self.generator = generator
        factors = _factors(learned, groups, recipe, name)
        for key, value in learned.items():
            kind = torch.float32 if value.dtype.itemsize < 4 else value.dtype
            own = value.detach().to(self.device, kind, copy=True)
            learned[key] = own.requires_grad_(factors[key].lr != 0.0)
        self.learned = learned
        self.trainable = {key: value for key, value in learned.items() if value.requires_grad}
        self.optimizer = _optimizer(self.trainable, factors, recipe, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.average = _copies(learned) if recipe.averaging else {}
        self.best: Tensors = {}

        self.n_batches = n_batches(len(data), recipe)
        self.n_steps = recipe.max_iter * self.n_batches if recipe.n_steps is None else recipe.n_steps
        self.n_epochs = math.ceil(self.n_steps / self.n_batches)
        self.epoch = self.step = self.n_idle = 0
        self.loss_curve: list[float] = []
        self.loss_terms: dict[str, list[float]] = {}
        self.validation_curve: list[float] = []

    @property
    def is_finished(self) -> bool:
        patience = self.recipe.n_iter_no_change
        return self.epoch == self.n_epochs or (patience is not None and self.n_idle >= patience)

    def rate(self, step: int) -> float:
        at = Position(step // self.n_batches, step, self.n_epochs, self.n_steps)
        return learning_rate(self.recipe.schedule, self.recipe.learning_rate, at, self.recipe.warmup)

    def train_epoch(self, losses: Losses, gradients: Gradients | None, tick: Callable[[], Any]) -> None:
        """Take the steps of an epoch and add to the curves. The device is waited for at the end alone."""
        import torch

        batches = self.data.order(self.recipe, self.generator, min(self.n_batches, self.n_steps - self.step))
        # Each has its own: reading ahead then cannot change what a step draws, nor a process what another draws.
        of_inputs, of_steps = torch.randint(2**62, (2,), generator=self.generator).tolist()
        noise = torch.Generator(self.device).manual_seed(of_steps + self.processes.index)
        shares = [self.processes.share(rows) for rows in batches]
        stream = self.data.inputs.batches(
            [rows for rows in shares if len(rows)], self.epoch, torch.Generator().manual_seed(of_inputs)
        )
        names: list[str] = []
        record = torch.zeros((len(batches), 0), device=self.device)
        try:
            for i, (rows, share) in enumerate(zip(batches, shares)):
                terms: Tensors = {}
                with memory_advice(self.recipe.batch_size, self.name, "or device='cpu'"):
                    if len(share):
                        batch = self._batch(share, next(stream), noise)
                        with autocast(self.device, self.precision):
                            terms = losses(batch)
                    self._take_step(terms, len(share) / len(rows), gradients)
                if terms and not names:
                    names = list(terms)
                    record = record.new_zeros((len(batches), len(names)))
                if terms:
                    values = torch.stack([terms[key].detach().to(record.dtype) for key in names])
                    record[i] = values * (len(share) / len(rows))
                tick()
        finally:
            if hasattr(stream, "close"):
                stream.close()
        self._add_to_curves(names, record, [len(rows) for rows in batches])
        self.epoch += 1

    def end_epoch(self, validate: Callable[[], float] | None) -> None:
        """Average, and ask how good the tensors have become."""
        import torch

        averaging = self.recipe.averaging
        if averaging and averaging.unit == "epoch":
            averaging.update(self.average, self.learned, self.epoch)
        if validate is None:
            return
        with self._as_returned(), torch.no_grad():
            score = float(self.processes.from_main(validate() if self.processes.is_main else None))
            self.n_idle += 1
            if not self.validation_curve or score > max(self.validation_curve):
                self.best, self.n_idle = _copies(self.learned), 0
        self.validation_curve.append(score)

    def trained(self) -> Trained:
        """What is returned, which the learned tensors hold from here on."""
        import torch

        final = self.processes.from_main(_on_cpu(self.best or self._result()))
        with torch.no_grad():
            for key, value in self.learned.items():
                value.requires_grad_(False).copy_(final[key])
                value.grad = None
        arrays = {key: np.array(value.numpy()) for key, value in final.items()}
        return Trained(arrays, self.loss_curve, self.loss_terms, self.validation_curve, self.epoch)

    def start_from(self, state: tuple[Tensors, dict[str, Any]] | None) -> None:
        """Go on from a state that the main process has read; without one all processes start from its tensors."""
        if self.processes.count > 1 and state is None:
            state = self.state()
        state = self.processes.from_main(state)
        if state is not None:
            self._restore(*state)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and facts that say all about where the training stands between two epochs."""
        import torch

        tensors = {"generator": self.generator.get_state()}
        for kind, of_kind in {"learned": self.learned, "average": self.average, "best": self.best}.items():
            tensors |= {f"{kind}/{key}": value for key, value in of_kind.items()}
        for key, value in self.trainable.items():
            for what, moment in self.optimizer.state.get(value, {}).items():
                if isinstance(moment, torch.Tensor):
                    tensors[f"optimizer/{what}/{key}"] = moment
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "n_idle": self.n_idle,
            "loss_curve": self.loss_curve,
            "loss_terms": self.loss_terms,
            "validation_curve": self.validation_curve,
            "scaler": self.scaler.state_dict(),
        }
        return _on_cpu(tensors), facts

    def _restore(self, tensors: Tensors, facts: dict[str, Any]) -> None:
        import torch

        self.generator.set_state(tensors["generator"])
        with torch.no_grad():
            for kind, of_kind in {"learned": self.learned, "average": self.average}.items():
                for key, value in of_kind.items():
                    value.copy_(tensors[f"{kind}/{key}"])
        self.best = {key: tensors[f"best/{key}"].to(self.device) for key in self.learned if f"best/{key}" in tensors}
        moments: dict[int, Tensors] = {}
        places = {key: i for i, key in enumerate(_in_groups(self.optimizer, self.trainable))}
        for entry, value in tensors.items():
            if entry.startswith("optimizer/"):
                _, what, key = entry.split("/", 2)
                moments.setdefault(places[key], {})[what] = value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.step, self.n_idle = facts["epoch"], facts["step"], facts["n_idle"]
        self.loss_curve, self.loss_terms = facts["loss_curve"], facts["loss_terms"]
        self.validation_curve = facts["validation_curve"]
        if facts["scaler"]:
            self.scaler.load_state_dict(facts["scaler"])

    def _batch(self, rows: NDArray[np.intp], inputs: torch.Tensor, noise: torch.Generator) -> Batch:
        codes, weights = self.data.codes[rows].to(self.device), None
        if self.data.weights is not None:
            weights = self.data.weights[rows].to(self.device)
        return Batch(rows, inputs, codes, weights, self.epoch, self.step, noise)

    def _take_step(self, terms: Tensors, part: float, gradients: Gradients | None) -> None:
        """One step along the gradients of a batch, of which this process has worked on a `part`."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["factor"]
        self.optimizer.zero_grad()
        part_there = torch.full((), part, device=self.device)
        scaled = {key: self.scaler.scale(value * part_there) for key, value in terms.items()}
        if not scaled:
            self.scaler.scale(part_there)  # sets it up, as it is in the other processes
        elif gradients is None:
            torch.stack(list(scaled.values())).sum().backward()
        else:
            gradients(scaled, self.learned)
        if self.processes.count > 1:
            for value in self.trainable.values():
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            self.processes.add([value.grad for value in self.trainable.values() if value.grad is not None])
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        averaging = self.recipe.averaging
        if averaging and averaging.unit == "step":
            averaging.update(self.average, self.learned, self.step)

    def _add_to_curves(self, names: list[str], record: torch.Tensor, sizes: list[int]) -> None:
        import torch

        names = self.processes.from_main(names)
        if not record.shape[1]:
            record = record.new_zeros((len(record), len(names)))
        self.processes.add([record])
        curves = record.cpu().double().numpy()  # (steps, terms)
        bad = np.argwhere(~np.isfinite(curves))
        if bad.size:
            step = self.step - len(curves) + int(bad[0, 0])
            what = f"loss ({names[bad[0, 1]]})" if len(names) > 1 else "loss"
            raise ValueError(self._no_longer_finite(what, step))
        for key, value in self.trainable.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(self._no_longer_finite(f"learned tensor {key!r}", self.step - 1))
        means = np.average(curves, axis=0, weights=sizes).tolist()
        for key, mean in zip(names, means):
            self.loss_terms.setdefault(key, []).append(mean)
        self.loss_curve.append(math.fsum(means))

    def _no_longer_finite(self, what: str, step: int) -> str:
        other = "" if self.precision == "float32" else " or precision='float32'"
        return (
            f"The {what} of {self.name} is no longer finite at step {step + 1} of {self.n_steps} (epoch "
            f"{step // self.n_batches + 1}), where the learning rate was {self.rate(step):.3g}; a smaller "
            f"learning_rate than {self.recipe.learning_rate:g}{other} may help."
        )

    def _result(self) -> Tensors:
        """What a training that ends now returns."""
        averaging = self.recipe.averaging
        return averaging.result(self.average, self.learned) if averaging else self.learned

    @contextmanager
    def _as_returned(self) -> Iterator[None]:
        """Inside, the learned tensors hold what a training that ends now returns."""
        import torch

        if self.recipe.averaging is None:
            yield
            return
        kept, result = _copies(self.learned), _copies(self._result())
        try:
            with torch.no_grad():
                for key, value in self.learned.items():
                    value.copy_(result[key])
            yield
        finally:
            with torch.no_grad():
                for key, value in self.learned.items():
                    value.copy_(kept[key])


class _File:
    """The checkpoint of a training."""

    def __init__(self, path: Path, run: _Run, fingerprint: Mapping[str, Any] | str) -> None:
        self.path, self.run = path, run
        given = {"training": fingerprint} if isinstance(fingerprint, str) else dict(fingerprint)
        recipe = {one.name: getattr(run.recipe, one.name) for one in fields(run.recipe)}
        self.fingerprint = {
            **given,
            **recipe,
            "averaging": repr(run.recipe.averaging),
            "precision": run.precision,
            "number of pictures": len(run.data),
            "labels and weights": run.data.digest(),
            "learned tensors": {
                key: [str(value.dtype), list(value.shape), value.requires_grad] for key, value in run.learned.items()
            },
        }

    def read(self) -> tuple[Tensors, dict[str, Any]] | None:
        check_writable(self.path)
        return read_checkpoint(self.path, self.fingerprint)

    def write(self) -> None:
        write_checkpoint(self.path, *self.run.state(), self.fingerprint)


def _factors(learned: Tensors, groups: Mapping[str, Group], recipe: Recipe, name: str) -> dict[str, Group]:
    """The group of each tensor, with its weight decay filled in."""
    for pattern in groups:
        if not any(fnmatchcase(key, pattern) for key in learned):
            raise ValueError(f"{name}: the group {pattern!r} fits none of the learned tensors: {', '.join(learned)}.")
    found = {}
    for key in learned:
        group = next((group for pattern, group in groups.items() if fnmatchcase(key, pattern)), Group())
        decay = recipe.weight_decay if group.weight_decay is None else group.weight_decay
        found[key] = Group(group.lr, decay)
    return found


def _optimizer(
    trainable: Tensors, factors: Mapping[str, Group], recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    import torch

    kinds = dict.fromkeys(factors[key] for key in trainable)
    groups = [
        {
            "params": [value for key, value in trainable.items() if factors[key] == kind],
            "weight_decay": kind.weight_decay,
            "factor": kind.lr,
        }
        for kind in kinds
    ]
    # in one kernel, which also scales the gradients of half precision without waiting for the device
    options: dict[str, Any] = {"lr": recipe.learning_rate, "fused": device.type == "cuda" or None}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, **options)
    return torch.optim.AdamW(groups, **options)


def _in_groups(optimizer: torch.optim.Optimizer, trainable: Tensors) -> list[str]:
    """Names of the tensors in the order in which the optimizer counts them."""
    names = {id(value): key for key, value in trainable.items()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


def _copies(tensors: Tensors) -> Tensors:
    return {key: value.detach().clone() for key, value in tensors.items()}


def _on_cpu(tensors: Tensors) -> Tensors:
    return {key: value.detach().cpu() for key, value in tensors.items()}


def _how_to_go_on(run: _Run, checkpoint: str | Path | None) -> str:
    if run.is_finished:
        where = "after the last epoch"
    else:
        where = f"in epoch {run.epoch + 1} of {run.n_epochs}"
    if checkpoint is None:
        return f"{run.name}: interrupted {where}; nothing is kept. With checkpoint=<file> training could go on."
    if not Path(checkpoint).exists():
        return f"{run.name}: interrupted {where}, before checkpoint={str(checkpoint)!r} was first written."
    return (
        f"{run.name}: interrupted {where}. checkpoint={str(checkpoint)!r} holds the training up to its last complete "
        "epoch: the same call goes on from there."
    )
