"""Training on labels from unreliable annotators: cross-entropy against Pi-DUAL.

The digits are real, the annotators are simulated: every image is shown to three of five
annotators, who are wrong at different rates, and the label of one of the three is the training
target. Pi-DUAL (arXiv 2310.06600) learns with a second network that sees only privileged
information about the label (who gave it, how many of the other two agree, a random vector) and a
gate that decides how much of the label that second network has to explain. At test time only the
first network is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import PiDUAL
from .data import CLASSES, PIXELS, Digits
from .training import Advance, accuracy, batches, multilayer_perceptron, step, summary

# Share of wrong labels of each simulated annotator; the mean is 0.40.
WRONG_RATES = (0.05, 0.20, 0.40, 0.60, 0.75)
LABELS_PER_IMAGE = 3
# Half of the mistakes are a digit of similar shape, the others any wrong digit.
LOOK_ALIKE = (6, 7, 3, 8, 9, 6, 5, 1, 3, 4)
LOOK_ALIKE_SHARE = 0.5


@dataclass(frozen=True)
class Settings:
    """The same network, optimiser, batches and epochs for every method."""

    seeds: int = 5
    epochs: int = 60
    batch_size: int = 128
    width: int = 512
    noise_width: int = 256
    gate_width: int = 64
    random_features: int = 16
    learning_rate: float = 1e-3

    @property
    def steps(self) -> int:
        """Units of progress: one epoch of one method with one seed."""
        return self.seeds * self.epochs * len(METHODS)


@dataclass(frozen=True)
class Annotations:
    """What the simulated annotators left behind, one row per training image."""

    given: Tensor  # [N] the label to train on
    annotator: Tensor  # [N] who gave it
    agreement: Tensor  # [N] share of the other annotators of this image who gave the same label
    majority: Tensor  # [N] most frequent of the image's labels, the given one when all differ
    wrong: Tensor  # [N] bool: the given label is not the digit


def simulate_annotations(digits: Tensor, generator: torch.Generator) -> Annotations:
    """Draw three annotators for each image, their labels, and the one label to train on."""
    count, annotators = len(digits), len(WRONG_RATES)
    shape = (count, LABELS_PER_IMAGE)
    chosen = torch.rand(count, annotators, generator=generator).argsort(1)[:, :LABELS_PER_IMAGE]
    mistaken = torch.rand(shape, generator=generator) < torch.tensor(WRONG_RATES)[chosen]
    any_other = (digits[:, None] + torch.randint(1, CLASSES, shape, generator=generator)) % CLASSES
    similar = torch.tensor(LOOK_ALIKE)[digits][:, None]
    is_similar = torch.rand(shape, generator=generator) < LOOK_ALIKE_SHARE
    labels = torch.where(mistaken, torch.where(is_similar, similar, any_other), digits[:, None])

    # The annotators are in random order, so the first is a random one of the three.
    given, others = labels[:, 0], labels[:, 1:]
    agreeing = others == given[:, None]
    others_agree = others[:, 0] == others[:, 1]
    return Annotations(
        given=given,
        annotator=chosen[:, 0],
        agreement=agreeing.float().mean(1),
        majority=torch.where(others_agree, others[:, 0], given),
        wrong=given != digits,
    )


def privileged_information(
    annotations: Annotations, random_features: int, generator: torch.Generator
) -> Tensor:
    """Annotator (one-hot), agreement, and a fixed random vector per image, as in TRAM++.

    The random vector tells the images apart, so that the noise network, not the classifier, can
    learn single wrong labels by heart.
    """
    annotator = F.one_hot(annotations.annotator, len(WRONG_RATES)).float()
    random = torch.randn(len(annotator), random_features, generator=generator)
    return torch.cat([annotator, annotations.agreement[:, None], random], 1)


@dataclass(frozen=True)
class _Problem:
    """One seed's training set and the test set, images flattened to [N, 64]."""

    images: Tensor
    digits: Tensor
    annotations: Annotations
    privileged: Tensor
    test_images: Tensor
    test_digits: Tensor


@dataclass(frozen=True)
class _Method:
    label: str
    gated: bool
    target: Callable[[_Problem], Tensor]


METHODS = {
    "cross_entropy": _Method("Cross-entropy", False, lambda problem: problem.annotations.given),
    "pi_dual": _Method("Pi-DUAL", True, lambda problem: problem.annotations.given),
    "majority": _Method(
        "Cross-entropy, majority of 3", False, lambda problem: problem.annotations.majority
    ),
    "true_labels": _Method("Cross-entropy, true labels", False, lambda problem: problem.digits),
}

SCORES = {
    "pi_dual_log_probability": "Pi-DUAL: log-probability of the given label",
    "pi_dual_gate": "Pi-DUAL: gate γ",
    "cross_entropy_log_probability": "Cross-entropy: log-probability of the given label",
    "agreement": "No training: agreement of the annotators",
}


@dataclass(frozen=True)
class _Outcome:
    test_accuracies: list[float]  # after each epoch
    memorised: float  # share of the wrong labels that the classifier reproduces
    log_probability: Tensor  # [N] of the given label
    gate: Tensor  # [N]
    seconds: float


def _train(
    method: _Method, problem: _Problem, settings: Settings, seed: int, advance: Advance
) -> _Outcome:
    torch.manual_seed(seed)
    hidden = (settings.width, settings.width)
    features = problem.privileged.shape[1]
    model = PiDUAL(
        multilayer_perceptron(PIXELS, *hidden, CLASSES),
        multilayer_perceptron(features, settings.noise_width, settings.noise_width, CLASSES),
        multilayer_perceptron(features, settings.gate_width, settings.gate_width, 1),
    )
    # The backbone is drawn first, so every method starts from the same classifier.
    trained = model if method.gated else model.backbone
    optimizer = torch.optim.Adam(trained.parameters(), lr=settings.learning_rate)
    order = torch.Generator().manual_seed(seed)
    target = method.target(problem)

    test_accuracies = []
    start = time.perf_counter()
    for _ in range(settings.epochs):
        for rows in batches(len(target), settings.batch_size, order):
            images = problem.images[rows]
            if method.gated:
                loss = model.loss(images, problem.privileged[rows], target[rows])
            else:
                loss = F.cross_entropy(model(images), target[rows])
            step(optimizer, loss)
        with torch.no_grad():
            test_accuracies.append(accuracy(model(problem.test_images), problem.test_digits))
        advance()
    seconds = time.perf_counter() - start

    given, wrong = problem.annotations.given, problem.annotations.wrong
    scores = model.noise_scores(problem.images, problem.privileged, given)
    return _Outcome(
        test_accuracies=test_accuracies,
        memorised=(scores.predicted == given)[wrong].double().mean().item(),
        log_probability=scores.log_probability,
        gate=scores.gate,
        seconds=seconds,
    )


def _problem(digits: Digits, settings: Settings, seed: int) -> _Problem:
    generator = torch.Generator().manual_seed(seed)
    annotations = simulate_annotations(digits.train.digits, generator)
    return _Problem(
        images=digits.train.images.flatten(1),
        digits=digits.train.digits,
        annotations=annotations,
        privileged=privileged_information(annotations, settings.random_features, generator),
        test_images=digits.test.images.flatten(1),
        test_digits=digits.test.digits,
    )


def _detection(problem: _Problem, outcomes: dict[str, _Outcome]) -> dict[str, float]:
    """Area under the ROC curve of finding the wrong labels; a low probability means wrong."""
    from sklearn.metrics import roc_auc_score

    scores = {
        "pi_dual_log_probability": -outcomes["pi_dual"].log_probability,
        "pi_dual_gate": outcomes["pi_dual"].gate,
        "cross_entropy_log_probability": -outcomes["cross_entropy"].log_probability,
        "agreement": -problem.annotations.agreement,
    }
    wrong = problem.annotations.wrong.numpy()
    return {name: float(roc_auc_score(wrong, score.numpy())) for name, score in scores.items()}


def _histogram(values: Tensor, wrong: Tensor, low: float, high: float) -> dict[str, list[float]]:
    bins = 30
    values = values.clamp(low, high)
    return {
        "edges": torch.linspace(low, high, bins + 1).tolist(),
        "right": torch.histc(values[~wrong], bins, low, high).tolist(),
        "wrong": torch.histc(values[wrong], bins, low, high).tolist(),
    }


def run(digits: Digits, settings: Settings, advance: Advance) -> dict[str, Any]:
    """Train every method with every seed; accuracies, detection scores and curves."""
    problems = [_problem(digits, settings, seed) for seed in range(settings.seeds)]
    outcomes = [
        {name: _train(method, problem, settings, seed, advance) for name, method in METHODS.items()}
        for seed, problem in enumerate(problems)
    ]

    methods = {}
    for name, method in METHODS.items():
        of_method = [of_seed[name] for of_seed in outcomes]
        curves = torch.tensor([outcome.test_accuracies for outcome in of_method])
        methods[name] = {
            "label": method.label,
            "test_accuracy": summary([outcome.test_accuracies[-1] for outcome in of_method]),
            "best_epoch_accuracy": summary([max(outcome.test_accuracies) for outcome in of_method]),
            "memorised_wrong_labels": summary([outcome.memorised for outcome in of_method]),
            "curve": {
                "mean": curves.mean(0).tolist(),
                "low": curves.amin(0).tolist(),
                "high": curves.amax(0).tolist(),
            },
            "seconds": sum(outcome.seconds for outcome in of_method),
        }

    detections = [_detection(*pair) for pair in zip(problems, outcomes, strict=True)]
    annotator = torch.cat([problem.annotations.annotator for problem in problems])
    wrong = torch.cat([problem.annotations.wrong for problem in problems])
    pi_dual = [of_seed["pi_dual"] for of_seed in outcomes]
    return {
        "images": {"train": len(digits.train), "test": len(digits.test)},
        "seeds": settings.seeds,
        "epochs": settings.epochs,
        "parameters": _parameters(settings),
        "wrong_labels": summary([p.annotations.wrong.double().mean().item() for p in problems]),
        "annotators": [
            {
                "name": "ABCDE"[index],
                "simulated_wrong_rate": rate,
                "labels": int((annotator == index).sum()),
                "wrong": int(wrong[annotator == index].sum()),
            }
            for index, rate in enumerate(WRONG_RATES)
        ],
        "methods": methods,
        "detection": {
            name: {"label": label, **summary([detection[name] for detection in detections])}
            for name, label in SCORES.items()
        },
        "histograms": {
            "log_probability": _histogram(
                torch.cat([outcome.log_probability for outcome in pi_dual]), wrong, -15.0, 0.0
            ),
            "gate": _histogram(torch.cat([outcome.gate for outcome in pi_dual]), wrong, 0.0, 1.0),
        },
    }


def _parameters(settings: Settings) -> int:
    """Parameters of the classifier, the only part that is used at test time."""
    classifier = multilayer_perceptron(PIXELS, settings.width, settings.width, CLASSES)
    return sum(parameter.numel() for parameter in classifier.parameters())
