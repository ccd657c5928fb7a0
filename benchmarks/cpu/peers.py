"""What a user would pick instead: the same product by other libraries."""

import numpy as np
import torch


def onnxruntime_matmul(w, threads):
    """w int8 [out, in] -> call(x uint8 [samples, in]) -> int32 [samples, out] about zero-point 128

    None where onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "zero_point"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", types.UINT8, [None, w.shape[1]])],
        [helper.make_tensor_value_info("y", types.INT32, [None, w.shape[0]])],
        [
            onnx.numpy_helper.from_array(np.ascontiguousarray(w.T), "w"),
            onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads would go on spinning through the turns of the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})[0]


def torch_mv(w):
    """w float32 [out, in] NumPy -> call(x [in]) with torch's matrix-vector product"""
    weight = torch.from_numpy(np.ascontiguousarray(w))
    return lambda x: torch.mv(weight, x)
