"""A graph around ONNX files of any origin: images in as this toolkit takes them, the data's classes out.

A teacher that is such a file, or several teachers of which one is, becomes one file like any other: uint8 (N, S, S, 3)
→ logits and probabilities (N, C). N images, S px their side, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from toolkit.data.answer_file import LEAST_PROBABILITY
from toolkit.errors import ArtifactError, one_line
from toolkit.graphs.build import BATCH_AXIS, INPUT, OUTPUTS, build_graph
from toolkit.networks.class_map import UNKNOWN
from toolkit.networks.classifier import Classifier
from toolkit.networks.ensemble import Ensemble
from toolkit.networks.of_onnx import OnnxNetwork
from toolkit.networks.onnx_file import ONE, ZERO, describe_content
from toolkit.networks.registry import NEVER, NetworkSpec, has_file

Normalisation = tuple[list[float], list[float]]
"""Mean and standard deviation, of RGB in 0..1."""


def make_graph(classifier: Classifier, image_size: int, opset: int) -> onnx.ModelProto:
    """`build_graph`, or the composed graph of a classifier that has an ONNX file in it. Raises ArtifactError."""
    if not has_file(classifier.network):
        return build_graph(classifier, image_size, opset)
    parts = _Parts(opset)
    network = classifier.network
    mean, std = (values.flatten().tolist() for values in (classifier.mean, classifier.std))
    if isinstance(network, Ensemble):
        logits = _add_members(parts, network, image_size)
    else:
        assert isinstance(network, OnnxNetwork)
        logits = parts.add_file(network, (mean, std), image_size, image_size, "")
    parts.node("Identity", [logits], OUTPUTS[0])
    parts.node("Softmax", [OUTPUTS[0]], OUTPUTS[1], axis=1)
    return parts.to_model(image_size)


def _add_members(parts: "_Parts", network: Ensemble, image_size: int) -> str:
    answers = []
    for number, (member, size) in enumerate(zip(network.classifiers, network.sizes, strict=True)):
        prefix = f"member{number}/"
        if isinstance(member.network, OnnxNetwork):
            mean, std = (values.flatten().tolist() for values in (member.mean, member.std))
            answers.append(parts.add_file(member.network, (mean, std), image_size, size, prefix))
        else:
            alone = Classifier(Ensemble([member], [size], "logits"), ZERO, ONE)
            answers.append(parts.add_graph(build_graph(alone, image_size, parts.opset), prefix))
    if network.combine == "logits":
        return parts.node("Mean", answers, "mean_logits")
    shares = [parts.node("Softmax", [answer], f"{answer}/softmax", axis=1) for answer in answers]
    average = parts.node("Mean", shares, "mean_probabilities")
    least = parts.constant("least", np.float32(np.finfo(np.float32).tiny))
    return parts.node("Log", [parts.node("Max", [average, least], "positive")], "mean_logits")


@dataclass
class _Parts:
    """Nodes and weights that gather for one graph of ONNX `opset`; `count` is C, of whatever was added last."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    domains: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}/{output}", **attributes))
        return output

    def constant(self, name: str, value: object) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add_graph(self, model: onnx.ModelProto, prefix: str) -> str:
        """A graph of build.py; the name of its logits."""
        self.node("Identity", [INPUT], f"{prefix}{INPUT}")
        self._take(onnx.compose.add_prefix(model, prefix))
        self.count = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        return f"{prefix}{OUTPUTS[0]}"

    def add_file(self, network: OnnxNetwork, normalisation: Normalisation, shown: int, size: int, prefix: str) -> str:
        """A file of any origin behind the images' preparation, and before the choice of classes; its logits' name."""
        described = describe_content(network.content)
        if described.batch is not None:
            raise ArtifactError(
                f"the teacher's ONNX file takes {described.batch} image(s) at a time, no other number",
                "export it again with a free first axis, or go on without a row for the teacher",
            )
        model = self._convert(onnx.load_model_from_string(described.content))
        own = f"{prefix}file/"
        weights = {tensor.name for tensor in model.graph.initializer}
        taken = next(value.name for value in model.graph.input if value.name not in weights)
        planes = self._prepare(prefix, shown, size, normalisation, whole=described.takes_whole_numbers)
        if network.settings.layout == "nhwc":
            planes = self.node("Transpose", [planes], f"{prefix}last", perm=[0, 2, 3, 1])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(described.element))
        self.node("Cast", [planes], f"{own}{taken}", to=kind)
        self._take(onnx.compose.add_prefix(model, own))
        answer = self.node("Flatten", [f"{own}{described.outputs[0]}"], f"{prefix}flat", axis=1)
        answer = self.node("Cast", [answer], f"{prefix}float", to=TensorProto.FLOAT)
        if network.settings.output == "probabilities":
            least = self.constant(f"{prefix}least_probability", np.float32(LEAST_PROBABILITY))
            answer = self.node("Log", [self.node("Max", [answer, least], f"{prefix}positive")], f"{prefix}log")
        return self._choose(answer, vars(network)["spec"], prefix)

    def to_model(self, image_size: int) -> onnx.ModelProto:
        square = [BATCH_AXIS, image_size, image_size, 3]
        inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, square)]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH_AXIS, self.count]) for name in OUTPUTS]
        graph = helper.make_graph(self.nodes, "teacher", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
        return model

    def _prepare(self, prefix: str, shown: int, size: int, normalisation: Normalisation, *, whole: bool) -> str:
        """uint8 (N, S, S, 3) → float32 (N, 3, size, size), normalised; in 0..255 if the file takes whole numbers."""
        planes = self.node("Cast", [INPUT], f"{prefix}cast", to=TensorProto.FLOAT)
        planes = self.node("Transpose", [planes], f"{prefix}planes", perm=[0, 3, 1, 2])
        if size != shown:
            scales = self.constant(f"{prefix}scales", np.array([1, 1, size / shown, size / shown], np.float32))
            planes = self.node(
                "Resize", [planes, "", scales], f"{prefix}resized", mode="linear", antialias=1,
                coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
        if whole:
            half = self.constant(f"{prefix}half", np.float32(0.5))
            return self.node("Floor", [self.node("Add", [planes, half], f"{prefix}up")], f"{prefix}rounded")
        mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in normalisation)
        unit = self.node("Div", [planes, self.constant(f"{prefix}white", np.float32(255))], f"{prefix}unit")
        centred = self.node("Sub", [unit, self.constant(f"{prefix}mean", mean)], f"{prefix}centred")
        return self.node("Div", [centred, self.constant(f"{prefix}std", std)], f"{prefix}normalised")

    def _choose(self, answer: str, spec: NetworkSpec, prefix: str) -> str:
        columns = spec.columns
        self.count = len(columns) or spec.outputs
        if not columns:
            return answer
        places = self.constant(f"{prefix}places", np.array([max(column, 0) for column in columns], np.int64))
        answer = self.node("Gather", [answer, places], f"{prefix}chosen", axis=1)
        if UNKNOWN not in columns:
            return answer
        unknown = self.constant(f"{prefix}unknown", np.array([column == UNKNOWN for column in columns]))
        never = self.constant(f"{prefix}never", np.float32(NEVER))
        return self.node("Where", [unknown, never, answer], f"{prefix}known")

    def _convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The same graph in the operators of `opset`."""
        version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), self.opset)
        if version == self.opset:
            return model
        if version > self.opset:
            raise ArtifactError(
                f"the teacher's ONNX file is of opset {version}, export.opset is {self.opset}",
                f"use --set export.opset={version}",
            )
        try:
            return version_converter.convert_version(model, self.opset)
        except Exception as error:  # onnx's C++ raises RuntimeError, and more
            raise ArtifactError(
                f"the teacher's ONNX file cannot be brought from opset {version} to {self.opset}: {one_line(error)}",
                "export it again with that opset, or go on without a row for the teacher",
            ) from None

    def _take(self, model: onnx.ModelProto) -> None:
        self.nodes += model.graph.node
        self.weights += model.graph.initializer
        for entry in model.opset_import:
            if entry.domain not in ("", "ai.onnx"):
                self.domains[entry.domain] = max(entry.version, self.domains.get(entry.domain, 0))
