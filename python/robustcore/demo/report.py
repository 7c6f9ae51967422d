"""The HTML report: one file, no scripts, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from . import plots

_CSS = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2127;
  --soft: #5c6570; --line: #dfe2e6; --accent: #1f66b0;
  --shade: #00000030; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --card: #1d2126; --ink: #e4e7eb;
  --soft: #a3acb7; --line: #343a42; --accent: #7db4ec;
  --shade: #000000b0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: break-word; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: 1.2rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, li { max-width: 46rem; }
code { font-size: .9em; }
sub { line-height: 0; }
.soft, figcaption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; }
.card b { display: block; font-size: 1.35rem; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 1rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: .5rem; }
/* A wide table scrolls inside its own box; a shadow at the right edge shows that there is more. */
.table { overflow-x: auto; background: linear-gradient(to left, var(--page) 60%, transparent) right
  / 2rem 100% no-repeat local, linear-gradient(to left, var(--shade), transparent) right
  / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th { font-weight: 600; color: var(--soft); }
tr.total td { font-weight: 600; }
.machine td { text-align: left; white-space: normal; }
"""


def percent(value: float) -> str:
    """0.9511 as 95.1 %."""
    return f"{100.0 * value:.1f} %"


def with_spread(values: dict[str, Any], scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± sample standard deviation over the seeds."""
    mean = f"{scale * values['mean']:.{digits}f}"
    return mean if values["std"] is None else f"{mean} ± {scale * values['std']:.{digits}f}"


def seconds(value: float) -> str:
    """Seconds or milliseconds with three figures."""
    return f"{value:.3g} s" if value >= 1.0 else f"{1e3 * value:.3g} ms"


def size(value: int) -> str:
    """Bytes in decimal megabytes or kilobytes."""
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)

    body = [f"<tr>{line(row, 'td')}</tr>" for row in rows]
    if total:
        body[-1] = body[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<div class="table"><table><thead><tr>{line(header, "th")}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    cells = (
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for svg, caption in figures
    )
    return f'<div class="figures">{"".join(cells)}</div>'


def _seeds(count: int) -> str:
    return "one seed (so no spread)" if count == 1 else f"{count} seeds"


def _noisy_labels(results: dict[str, Any]) -> str:
    methods = results["methods"]
    accuracies = [
        [
            method["label"],
            with_spread(method["test_accuracy"]),
            with_spread(method["best_epoch_accuracy"]),
            with_spread(method["memorised_wrong_labels"]),
        ]
        for method in methods.values()
    ]
    accuracy_header = [
        f"training, {_seeds(results['seeds'])}",
        "test accuracy, last epoch (%)",
        "best epoch (%)",
        "wrong labels learned by heart (%)",
    ]
    detection = [
        [score["label"], with_spread(score, scale=1.0, digits=3)]
        for score in results["detection"].values()
    ]
    annotators = [
        [
            annotator["name"],
            percent(annotator["simulated_wrong_rate"]),
            percent(annotator["wrong"] / annotator["labels"]) if annotator["labels"] else "–",
        ]
        for annotator in results["annotators"]
    ]
    accuracy_figure, *score_figures = plots.noisy_label_figures(results)
    return f"""
<h2 id="noisy-labels">Losses: learning from unreliable annotators</h2>
<p>The images are real, <strong>the annotators are simulated</strong>. Each of the
{results["images"]["train"]} training digits is shown to three of five annotators who are wrong
at the rates below (half of the mistakes are a digit of similar shape, the others any wrong
digit); one of the three labels, drawn at random, is the label to train on. Over the seeds
{percent(results["wrong_labels"]["mean"])} of these labels are wrong. The test set
({results["images"]["test"]} images) has true labels and is used for nothing but the numbers
here.</p>
<p>The same classifier ({results["parameters"]:,} parameters) is trained for
{results["epochs"]} epochs from the same initial weights with the same batches and optimiser:
once with cross-entropy, once with Pi-DUAL through
<code>robustcore.losses.gated_cross_entropy</code>. Pi-DUAL adds a noise network and a gate which
see only the privileged information: who gave the label, how many of the image's other two
annotators agree with it, and a random vector per image. At test time Pi-DUAL uses the classifier
alone. Two further rows put that into context: the majority of the three labels (which the
first two methods do not see), and the true labels.</p>
{_table(accuracy_header, accuracies)}
<p class="soft">Mean ± standard deviation over the seeds. The best epoch is picked on the test set
afterwards: it shows how much memorising costs, nobody could choose it in practice. Learned by
heart: wrong training labels that the trained classifier repeats.</p>
{_figures([accuracy_figure])}
<h3>Finding the wrong labels</h3>
{_table(["score", "area under the ROC curve"], detection)}
<p class="soft">1 is perfect, 0.5 is chance. The last row needs no network at all.</p>
{_figures(score_figures)}
<h3>The simulated annotators</h3>
{_table(["annotator", "wrong, as simulated", "wrong, as drawn"], annotators)}
"""


def _task_vectors(results: dict[str, Any]) -> str:
    mean, stored = results["mean_test_accuracy"], results["bytes"]
    kinds = ("base", "single", "task_arithmetic", "masked")
    task_header = ["task", "base network", "separate model", "task arithmetic", "TALL-masks"]
    task_header += ["λ", "parameters kept"]
    tasks = [
        [
            task["title"],
            *(percent(task["test_accuracy"][kind]) for kind in kinds),
            f"{task['lambda']:.1f}",
            percent(task["kept"]),
        ]
        for task in results["tasks"]
    ]
    tasks.append(["mean", *(percent(mean[kind]) for kind in kinds), "", ""])
    separate = stored["separate_models"]
    storage = [
        [label, percent(mean[kind]), f"{amount:,}", percent(amount / separate)]
        for label, kind, amount in (
            ("separate models", "single", separate),
            ("task arithmetic: one merged model", "task_arithmetic", stored["task_arithmetic"]),
            ("TALL-masks: base, merged vector, masks", "masked", stored["masked"]),
        )
    ]
    images = results["images"]
    return f"""
<h2 id="task-vectors">Merging: eight tasks in one vector</h2>
<p>Nothing is simulated here. One network ({results["parameters"]:,} parameters without its head)
learns the upright digits and is then fine-tuned on {len(results["tasks"])} tasks made from the
same images: four change the picture, four ask another question about it. As in the paper, each
task's classifying head is trained first on the frozen base network, then kept fixed, and stays
outside the merged vector. The task vectors (fine-tuned minus base) are summed.
<em>Task arithmetic</em> adds one multiple of the sum to the base for all tasks; its coefficient
is the best of 20 on the validation images: {results["coefficient"]:g}.
<code>robustcore.merging.tall_masks</code> finds, per task, the parameters of the sum that matter
to that task, one bit each; λ is chosen per task on the validation images. {images["train"]}
images are for training, {images["validation"]} for validation, {images["test"]} for the accuracies
below; one seed.</p>
{_table(task_header, tasks, total=True)}
{_figures(plots.task_vector_figures(results))}
<h3>What has to be stored</h3>
{_table(["", "mean test accuracy", "bytes on disk", "of separate models"], storage)}
<p class="soft">Sizes of real files: {size(stored["base"])} for the base network,
{size(stored["merged_vector"])} for the merged vector, {size(stored["masks"])} for the packed masks
of all tasks. Every way also needs the heads, together {size(stored["heads"])}. A further task
costs a separate model {size(stored["base"])}, and the masks
{size(round(stored["masks"] / len(results["tasks"])))}.</p>
"""


def _sequence_model(results: dict[str, Any]) -> str:
    training, alone = results["training_seconds"], results["recurrence_seconds"]
    steps, channels = results["shape"][1:]
    header = ["recurrence", "whole training", "recurrence alone, forward and backward"]
    header += ["test accuracy", "last training loss"]
    rows = [
        [label, seconds(training[name]), seconds(alone[name]),
         percent(results["test_accuracy"][name]), f"{results['losses'][name][-1]:.6f}"]
        for name, label in (("loop", "Python loop"), ("operator", "linear_recurrence"))
    ]  # fmt: skip
    rows.append(
        [
            "loop / operator",
            f"{results['training_speedup']:.2f}×",
            f"{results['recurrence_speedup']:.1f}×",
            "",
            "",
        ]
    )
    return f"""
<h2 id="sequence-model">PCR: a recurrence inside a sequence model</h2>
<p>Nothing is simulated here. Every digit is read as a sequence of {steps} pixels. Each pixel gives
a gate a<sub>t</sub> = sigmoid(…) and a value in {channels} channels, the state is
h<sub>t</sub> = a<sub>t</sub> h<sub>t−1</sub> + x<sub>t</sub>, and a small network reads the digit
from the last state ({results["parameters"]:,} parameters). The model is trained twice for
{results["epochs"]} epochs, from the same weights with the same batches: once with a Python loop
over the time steps, once with <code>robustcore.pcr.linear_recurrence</code>. The two take turns
epoch by epoch, so that whatever else the machine does slows down both. The largest difference
between the two loss curves is {results["largest_loss_difference"]:.1e}.</p>
{_table(header, rows, total=True)}
<p class="soft">Whole training: everything but the evaluation, on one thread; the projections, the
loss and the optimiser take the same time in both runs. The recurrence alone: median at the
training's shape ({", ".join(str(length) for length in results["shape"])}: batch, time,
channels).</p>
{_figures(plots.sequence_model_figures(results))}
"""


def _cards(results: dict[str, Any]) -> str:
    noisy, merging = results["noisy_labels"], results["task_vectors"]
    sequence = results["sequence_model"]
    mean, stored = merging["mean_test_accuracy"], merging["bytes"]
    cards = (
        (
            f"{with_spread(noisy['methods']['pi_dual']['test_accuracy'])} %",
            f"test accuracy of Pi-DUAL with {percent(noisy['wrong_labels']['mean'])} wrong labels "
            f"(simulated); cross-entropy: "
            f"{with_spread(noisy['methods']['cross_entropy']['test_accuracy'])} %",
        ),
        (
            percent(mean["masked"]),
            f"mean accuracy of {len(merging['tasks'])} tasks from one masked vector in "
            f"{percent(stored['masked'] / stored['separate_models'])} of the bytes; separate "
            f"models {percent(mean['single'])}, task arithmetic {percent(mean['task_arithmetic'])}",
        ),
        (
            f"{sequence['recurrence_speedup']:.1f}×",
            f"the speed of a Python loop for the recurrence with its gradient, "
            f"{sequence['training_speedup']:.2f}× for the whole training; losses differ by at most "
            f"{sequence['largest_loss_difference']:.0e}",
        ),
    )
    cells = (f'<div class="card"><b>{escape(big)}</b>{escape(text)}</div>' for big, text in cards)
    return f'<div class="cards">{"".join(cells)}</div>'


def render(results: dict[str, Any]) -> str:
    """The whole report as one HTML document."""
    machine = [[name, value] for name, value in results["machine"].items()]
    quick = (
        "<p><strong>This was a quick run of a few epochs: it shows that everything works, its "
        "numbers mean little.</strong></p>"
        if results["quick"]
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>robustcore demo</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>robustcore demo</h1>
<p class="soft">Three operators at work on the 1797 handwritten digits (8 × 8 pixels) that ship with
scikit-learn. Everything on this page was trained and measured in one run of
{results["seconds"]:.0f} seconds on the machine named at the end.</p>
{quick}
{_cards(results)}
{_noisy_labels(results["noisy_labels"])}
{_task_vectors(results["task_vectors"])}
{_sequence_model(results["sequence_model"])}
<h2 id="machine">Machine and versions</h2>
<div class="machine">{_table(["", ""], machine)}</div>
<p class="soft">All numbers, curves included, are in <code>results.json</code> beside this file.
The same seeds on one thread give the same accuracies again on the same machine and versions;
times vary.</p>
</main>
</body>
</html>
"""
