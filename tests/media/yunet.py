"""A network with YuNet's input and outputs whose faces can be told by hand: a red cell of its grid.

YuNet gives, for the cells of grids of 8, 16 and 32 pixels, whether there is a face (`cls`, `obj`),
its box relative to the cell (`bbox`) and five points (`kps`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

CELL = 32  # pixels; finer grids see nothing here
OUTPUTS = (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
RED = 2  # OpenCV's pictures are BGR
STEEPNESS = 0.2  # of the score, for each level of red above the middle
NEVER = -20.0  # a score of nothing, before the sigmoid


def save(path: Path) -> Path:
    """A face is each cell that is red to more than a half; its box is the cell."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []
    for name, count in OUTPUTS:
        for stride in (8, 16, CELL):
            output = f"{name}_{stride}"
            weight, bias = _convolution(name, count, stride)
            shape = np.array([1, -1, count], np.int64)
            for kind, array in (("weight", weight), ("bias", bias), ("shape", shape)):
                constants.append(numpy_helper.from_array(array, f"{output}_{kind}"))
            last = f"{output}_flat" if count == 1 else output
            inputs = ["input", f"{output}_weight", f"{output}_bias"]
            grid = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
            nodes += [
                helper.make_node("Conv", inputs, [f"{output}_conv"], **grid),
                helper.make_node(
                    "Transpose", [f"{output}_conv"], [f"{output}_turned"], perm=[0, 2, 3, 1]
                ),
                helper.make_node("Reshape", [f"{output}_turned", f"{output}_shape"], [last]),
            ]
            if count == 1:
                nodes.append(helper.make_node("Sigmoid", [last], [output]))
            size = [1, (640 // stride) ** 2, count]
            outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, size))
    taken = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])]
    graph = helper.make_graph(nodes, "yunet", taken, outputs, constants)
    version = {"opset_imports": [helper.make_opsetid("", 13)], "ir_version": 8}
    onnx.save(helper.make_model(graph, **version), path)
    return path


def save_other(path: Path) -> Path:
    """A network, but no detector."""
    import onnx
    from onnx import TensorProto, helper

    ends = []
    for name in ("input", "output"):
        ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]))
    node = helper.make_node("Relu", ["input"], ["output"])
    graph = helper.make_graph([node], "other", ends[:1], ends[1:])
    version = {"opset_imports": [helper.make_opsetid("", 13)], "ir_version": 8}
    onnx.save(helper.make_model(graph, **version), path)
    return path


def _convolution(name: str, count: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    weight = np.zeros((count, 3, stride, stride), np.float32)
    bias = np.zeros(count, np.float32)
    if name == "bbox":  # the centre in cells, then the logarithm of the size in cells
        bias[:2] = 0.5
    elif count == 1 and stride == CELL:
        weight[:, RED] = STEEPNESS / stride**2
        bias[:] = -STEEPNESS * 128
    elif count == 1:
        bias[:] = NEVER
    return weight, bias
