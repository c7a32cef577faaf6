"""Writes testdata/external: a model whose weights are beside it, as the reference
implementation writes it (onnx 1.12, Debian python3-onnx).

    cd onnx/testdata && python3 external.py
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

w = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2) / 4, "w")
b = numpy_helper.from_array(np.array([1, -2], dtype=np.float32), "b")
two = numpy_helper.from_array(np.array([2], dtype=np.float32), "two")
graph = helper.make_graph(
    [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Constant", [], ["c"], value=two),
        helper.make_node("Mul", ["h", "c"], ["z"]),
    ],
    "external",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
    [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])],
    [w, b],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
model.ir_version = 8
onnx.checker.check_model(model)
onnx.save_model(model, "external/model.onnx", save_as_external_data=True, all_tensors_to_one_file=True,
                location="weights.bin", size_threshold=0, convert_attribute=True)
