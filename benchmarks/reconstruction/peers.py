"""The same networks, images and multiply-accumulates by other tools, one-shot and without labels.

    python benchmarks/reconstruction/peers.py --data cifar10-jpeg.zip --models MODELS --work FOLDER
        [--workflows torch_kirigami-0.2.1/examples/workflows] [--networks ...] [--shares 0.5] [--ways ...]
    python benchmarks/reconstruction/peers.py --time --work FOLDER       # on an idle machine

Needs onnxsim, torch-pruning, torch-kirigami and tqdm beside GraphPrune. OSSCAR is no part of torch-kirigami's wheel:
its source distribution has it as an example, and `--workflows` is that folder.

Every tool sees the 1,000 images of `train/` that run.py draws and is used as its own documentation says. A ratio is
halved until the slim file has the share of multiply-accumulates that is asked for (counted for all tools by
`graphprune.formats.onnx_cost`), and the seconds are of the run at that ratio alone: of the processor, one thread, from
the dense network in memory to the slim one. What is judged is the slim ONNX file, on all of `val/`. Rows go to
results/peers.json as they come, and are not repeated; those of `--time` go to results/times.json. Files stay in FOLDER.

    graphprune             `reconstruction` of run.py
    torch-pruning          magnitude of groups, ranked over the whole network; BatchNorm re-estimated on the images
    kirigami magnitude     greedy removal by magnitude of groups, the same share of every layer's channels
    kirigami OSSCAR        its example, with widths and removals in steps of one, on all images
    onnxsim l2, wanda      structured pruning, after its own simplification
    ... + blocks           then `apply_block_finetune_all_blocks`
    ... + BatchNorm        then `insert_identity_bn`, calibrated node by node to what the dense network gives, where a
                           convolution still has as many channels (of the others there is nothing to be calibrated to)
"""

import argparse
import contextlib
import copy
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "cifar10"), str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from experiments import ARCHITECTURES, find  # noqa: E402
from rows import Rows  # noqa: E402
from torch import nn  # noqa: E402

import graphprune as gp  # noqa: E402
from graphprune.formats.onnx_cost import onnx_cost  # noqa: E402
from graphprune.passes.fx.cut import cut_graph, named_tensors  # noqa: E402
from graphprune.reconstruction.reconstruct import Reconstruction  # noqa: E402

SHARES = {"resnet56": (0.5, 0.4), "vgg_small": (0.5, 0.3)}
_POOL, _IMAGES, _SEED, _BATCH = 10_000, 1000, 0, 250
_NEAR = 0.005  # of the multiply-accumulates
_HALVINGS = 9

Made = nn.Module | onnx.ModelProto
Way = Callable[["Subject", float], tuple[Made, float]]


class Subject:
    """A dense network, as a module and as a file, with its images."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.work = options.work / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.workflows = options.workflows
        train = gp.load_images(f"{options.data}::train", limit=_POOL)
        self.train, self.val = train, gp.load_images(f"{options.data}::val")
        sample = train.sample(_IMAGES, _SEED)
        self.batches = [torch.from_numpy(batch) for batch in sample.batches(_BATCH)]
        self.dense = gp.load_model(find(options.models, name), arch=ARCHITECTURES[name]).eval()
        self.example = torch.zeros(1, *train.preprocess.input_shape)
        self.file = self.work / "dense.onnx"
        if not self.file.exists():
            gp.export_onnx(self.dense, (self.example,), self.file)
        self.macs = onnx_cost(self.file).macs
        self.answers = self.run(self.file)

    def module(self) -> nn.Module:
        """A copy of the dense network."""
        return copy.deepcopy(self.dense)

    def run(self, file: Path) -> np.ndarray:
        """What a file answers on `val/`. Shapes: (images, classes)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {feed: batch})[0] for batch in self.val.batches(_BATCH)])

    def fed(self, model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
        """The images as onnxsim takes them."""
        return [{model.graph.input[0].name: batch.numpy()} for batch in self.batches]

    def write(self, made: Made, file: Path) -> None:
        """Write what a tool made as an ONNX file."""
        if isinstance(made, onnx.ModelProto):
            onnx.save(made, file)
        else:
            gp.export_onnx(made.eval(), (self.example,), file, force=True)

    def near(self, share: float, make: Callable[[float], Made]) -> float:
        """The ratio at which `make` leaves the share of multiply-accumulates that is closest to `share`."""
        low, high, found = 0.0, 1.0, []
        for _ in range(_HALVINGS):
            ratio = (low + high) / 2
            made = make(ratio)
            is_file = isinstance(made, onnx.ModelProto)
            left = (onnx_cost(made.SerializeToString()).macs if is_file else self.macs_of(made)) / self.macs
            found.append((abs(left - share), ratio))
            if abs(left - share) < _NEAR / 2:
                break
            low, high = (ratio, high) if left > share else (low, ratio)
        return min(found)[1]

    @torch.no_grad()
    def macs_of(self, model: nn.Module) -> int:
        """Multiply-accumulates of convolutions and linear layers, without an export: to look for a ratio by."""
        counted = []

        def count(part: nn.Module, _: object, given: torch.Tensor) -> None:
            counted.append(part.weight[0].numel() * (given[0, 0].numel() if given.ndim > 2 else 1) * given.shape[1])

        parts = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        hooks = [part.register_forward_hook(count) for part in parts]
        model(self.example)
        for hook in hooks:
            hook.remove()
        return sum(counted)

    def judged(self, file: Path, made: Made) -> dict[str, Any]:
        """Agreement, accuracy and multiply-accumulates of a file, and how far it is from the tool's own model."""
        found, labels = self.run(file), self.val.labels
        own = None
        if isinstance(made, nn.Module):
            with torch.no_grad():
                batches = self.val.batches(_BATCH)
                answers = np.concatenate([made.eval()(torch.from_numpy(batch)).numpy() for batch in batches])
            own = float(np.abs(answers - found).max() / np.abs(answers).max())
        return {
            "macs": onnx_cost(file).macs / self.macs,
            "agreement": float((found.argmax(1) == self.answers.argmax(1)).mean()),
            "accuracy": float((found.argmax(1) == labels).mean()),
            "dense_accuracy": float((self.answers.argmax(1) == labels).mean()),
            "file_differs": own,
        }


@contextlib.contextmanager
def clock() -> Iterator[list[float]]:
    """A list that holds the processor seconds of the block once it has ended."""
    seconds: list[float] = []
    start = time.process_time()
    yield seconds
    seconds.append(time.process_time() - start)


def graphprune(subject: Subject, share: float) -> tuple[Made, float]:
    """What run.py calls `reconstruction`."""
    model = subject.module()
    with clock() as seconds:
        graph = gp.trace(model, (subject.example,))
        seen = Reconstruction(graph, subject.train, number=_IMAGES, seed=_SEED)
        seen.look(moments=True)
        plan = gp.plan(graph, macs=share, importance=seen.scores(), images=subject.train, seed=_SEED)
        state, _ = seen.fit(plan)
    graph.front_end.module.load_state_dict(state)
    named = named_tensors(graph.front_end.module)
    return cut_graph(graph, plan, graph.removed_by(plan), named), seconds[0]


def torch_pruning(subject: Subject, share: float) -> tuple[Made, float]:
    """Group magnitude, global, and BatchNorm statistics of the images."""
    import torch_pruning as tp

    def make(ratio: float) -> nn.Module:
        model = subject.module()
        last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        tp.pruner.MagnitudePruner(
            model,
            subject.example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[last, *coupled_by_padding(subject, model)],
        ).step()
        return model

    ratio = subject.near(share, make)
    with clock() as seconds:
        model = make(ratio)
        reestimated(model, subject.batches)
    return model, seconds[0]


@torch.no_grad()
def reestimated(model: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Give every BatchNorm the mean of the batches' statistics."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # a plain mean of all
    model.train()
    for batch in batches:
        model(batch)
    model.eval()


def coupled_by_padding(subject: Subject, model: nn.Module) -> list[nn.Module]:
    """Layers of a residual trunk, where shortcuts pad channels, of which torch-pruning does not know."""
    if not subject.name.startswith("resnet"):
        return []
    return [part for path, part in model.named_modules() if path == "conv1" or path.endswith(".conv2")]


def kirigami_magnitude(subject: Subject, share: float) -> tuple[Made, float]:
    """Greedy removal by magnitude, the same ratio of every axis, as in its examples."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    def make(ratio: float) -> nn.Module:
        model = subject.module()
        pruner = Pruner(model, graph=DependencyGraph.build(model, args=(subject.example,)))
        space = pruner.discover_candidates()
        pruner.apply(pruner.plan(space, budget=ChannelRatio(ratio), strategy=Greedy(GroupMagnitude(p=2))))
        return model

    ratio = subject.near(share, make)
    with clock() as seconds:
        model = make(ratio)
    return model, seconds[0]


def kirigami_osscar(subject: Subject, share: float) -> tuple[Made, float]:
    """Its example's own steps, in its own order and with its own settings but for steps of one channel."""
    for name, parts in {  # what reads ImageNet, and needs its packages
        "imagenet_data": ("evaluate", "load_images"),
        "imagenet_models": ("MODELS", "make_model"),
        "model_metrics": ("measure_model", "add_arguments"),
    }.items():
        sys.modules[name] = types.ModuleType(name)
        for part in parts:
            setattr(sys.modules[name], part, {})
    sys.path.insert(0, str(subject.workflows))
    import osscar_pruning as osscar
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Granularity, ParameterBudget, Pruner

    def started(model: nn.Module) -> tuple[Pruner, dict[str, str]]:
        graph = DependencyGraph.build(model, args=(subject.example,))
        pairs, _ = osscar.discover_reconstruction_pairs(graph)
        return Pruner(model, graph=graph, granularity=Granularity(by_path=dict.fromkeys(pairs, 1))), pairs

    def widths(ratio: float, model: nn.Module) -> tuple[dict[str, int], dict[str, str]]:
        pruner, pairs = started(model)
        return osscar.allocate_widths(pruner, pairs, ParameterBudget.from_ratio(model, ratio), 1), pairs

    def shaped(ratio: float) -> nn.Module:
        model = subject.module()
        left, _ = widths(ratio, model)
        pruner, _ = started(model)
        axes = {path: pruner.graph.parameter(f"{path}.weight").axis(0) for path in left}
        gone = {path: range(model.get_submodule(path).weight.shape[0] - width) for path, width in left.items()}
        pruner.apply(pruner.plan_remove([axes[path].select(gone[path]) for path in left if gone[path]]))
        return model

    ratio = subject.near(share, shaped)
    with clock() as seconds:
        model, teacher = subject.module(), subject.module().requires_grad_(False)
        left, pairs = widths(ratio, model)
        for first, second in pairs.items():
            width = model.get_submodule(first).weight.shape[0]
            if left[first] == width:
                continue
            loader = [(batch, None) for batch in subject.batches]
            moments = osscar.collect_reconstruction(model, teacher, second, loader, "cpu", 0, 4096)
            h, g = moments.system(teacher.get_submodule(second).weight.detach().flatten(1).T, 0.01)
            solution = osscar.solve_osscar(h, g, width, left[first], prune_batch=1, swap_steps=5)
            pruner = Pruner(model, graph=DependencyGraph.build(model, args=(subject.example,)))
            osscar.apply_reconstruction(pruner, first, second, solution)
    return model, seconds[0]


def onnxsim_pruned(subject: Subject, share: float, by: str) -> tuple[onnx.ModelProto, onnx.ModelProto, float]:
    """The simplified dense file, the one that onnxsim prunes, and the seconds of both."""
    import onnxsim

    def simple() -> onnx.ModelProto:
        return onnxsim.simplify(onnx.load(subject.file))[0]

    def make(ratio: float, dense: onnx.ModelProto, fed: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
        if by == "l2":
            return onnxsim.apply_structured_pruning(dense, sparsity=ratio)
        return onnxsim.apply_structured_wanda_pruning(dense, calibration_data=fed, sparsity=ratio)

    dense = simple()
    # How many channels go depends on the rule, but not on how many images it sees.
    few = [{name: batch[:8] for name, batch in subject.fed(dense)[0].items()}]
    ratio = subject.near(share, lambda ratio: make(ratio, dense, few))
    with clock() as seconds:
        dense = simple()
        slim = make(ratio, dense, subject.fed(dense))
    return dense, slim, seconds[0]


def onnxsim_plain(by: str) -> Way:
    """Pruning alone."""

    def way(subject: Subject, share: float) -> tuple[Made, float]:
        _, slim, seconds = onnxsim_pruned(subject, share, by)
        return slim, seconds

    return way


def onnxsim_blocks(by: str) -> Way:
    """Then every block fitted to what it gave."""

    def way(subject: Subject, share: float) -> tuple[Made, float]:
        import onnxsim

        dense, slim, before = onnxsim_pruned(subject, share, by)
        with clock() as seconds:
            slim, results = onnxsim.apply_block_finetune_all_blocks(
                dense,
                slim,
                calibration_data=subject.fed(dense),
                num_iterations=300,
                learning_rate=_RATE,
                batch_size=32,
            )
        for result in results:
            print("   ", result.block.output_name, result.trained, result.skipped_reason, result.final_loss)
        return slim, before + seconds[0]

    return way


def onnxsim_batch_norm(by: str) -> Way:
    """Then a BatchNorm where convolutions kept their channels, from the first to the last."""

    def way(subject: Subject, share: float) -> tuple[Made, float]:
        from onnxsim.bn_recovery import calibrate_recovered_bn, insert_identity_bn

        dense, slim, before = onnxsim_pruned(subject, share, by)
        with clock() as seconds:
            sizes = [
                {node.output[0]: weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}
                for model in (dense, slim)
                for weights in [{tensor.name: tensor.dims[0] for tensor in model.graph.initializer}]
            ]
            whole = [name for name, channels in sizes[1].items() if sizes[0].get(name) == channels]
            slim, recovered = insert_identity_bn(slim, conv_output_names=whole)
            for each in recovered:
                data = subject.fed(slim)
                slim = calibrate_recovered_bn(
                    slim, calibration_data=data, target_model=dense, node_names=[each.node_name]
                )
        print(f"    BatchNorm after {len(whole)} of {len(sizes[1])} convolutions")
        return slim, before + seconds[0]

    return way


_RATE = 1e-3
_TOOLS = ("onnxsim", "torch_pruning", "torch_kirigami", "osscar_pruning")  # as in the names of their sources
WAYS: Mapping[str, Way] = {
    "graphprune": graphprune,
    "torch-pruning": torch_pruning,
    "kirigami magnitude": kirigami_magnitude,
    "kirigami OSSCAR": kirigami_osscar,
    **{f"onnxsim {by}": onnxsim_plain(by) for by in ("l2", "wanda")},
    "onnxsim wanda + BatchNorm": onnxsim_batch_norm("wanda"),
    "onnxsim wanda + blocks": onnxsim_blocks("wanda"),
}


def measured(subject: Subject, share: float, label: str) -> dict[str, Any]:
    """The row of one way, without its key; what a tool raises, or what its network does, is a row of its own."""
    try:
        made, seconds = WAYS[label](subject, share)
    except Exception as error:  # whatever the tool raises; what this script does wrong is no row
        if not any(tool in frame.filename for frame in traceback.extract_tb(error.__traceback__) for tool in _TOOLS):
            raise
        return {"error": said(error)}
    file = subject.work / file_name(label, share)
    try:
        if isinstance(made, nn.Module):
            made.eval()(subject.example)
    except RuntimeError as error:
        return {"error": f"the slim network does not run: {said(error)}"}
    subject.write(made, file)
    return {**subject.judged(file, made), "cpu_seconds": round(seconds, 1)}


def said(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def file_name(label: str, share: float) -> str:
    """Of the slim file in the folder of its network."""
    return f"{label.replace(' + ', '-').replace(' ', '-')}@{share}.onnx"


def timed(options: argparse.Namespace) -> None:
    """Time all files of every network and share in turns, beside the dense one."""
    rows = Rows(options.results / "times.json", ("network", "share", "way"))
    for name in options.networks.split(","):
        for share in shares_of(name, options):
            folder = options.work / name
            files = {label: folder / file_name(label, share) for label in WAYS}
            files = {label: file for label, file in files.items() if file.exists()}
            if not files:
                continue
            report = gp.benchmark({"dense": folder / "dense.onnx", **files}, threads=1, batch=1)
            for label in files:
                timing = report[label]
                row = {
                    "network": name,
                    "share": share,
                    "way": label,
                    "speedup": round(timing.speedup, 3),
                    "interval": [round(end, 3) for end in timing.speedup_interval],
                    "median_ms": round(timing.median_ms, 4),
                    "interference": report.interference,
                }
                rows.add(row)
                print(row, flush=True)


def shares_of(name: str, options: argparse.Namespace) -> tuple[float, ...]:
    """Shares of multiply-accumulates of a network that are asked for."""
    return tuple(map(float, options.shares.split(","))) if options.shares else SHARES[name]


def main() -> None:
    """Measure what has no row yet, or time the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="for the files")
    parser.add_argument("--workflows", type=Path, help="torch-kirigami's examples/workflows")
    parser.add_argument("--networks", default=",".join(SHARES))
    parser.add_argument("--shares", help="of multiply-accumulates; by default those of the table")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.time:
        timed(options)
        return
    rows = Rows(options.results / "peers.json", ("network", "share", "way"))
    for name in options.networks.split(","):
        subject = None
        for share in shares_of(name, options):
            for label in options.ways.split(","):
                if rows.has(network=name, share=share, way=label):
                    continue
                subject = subject or Subject(name, options)
                row = {"network": name, "share": share, "way": label, **measured(subject, share, label)}
                rows.add(row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
