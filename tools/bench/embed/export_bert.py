"""A BERT encoder's safetensors to ONNX: export_bert.py FOLDER writes FOLDER/onnx/model.onnx.

The graph is that of BertModel without its pooler, from input_ids, attention_mask and token_type_ids
to last_hidden_state. It needs numpy and onnx, and none of what the model was trained with.
"""

import json
import pathlib
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
layers, heads, width = (
    config[name] for name in ["num_hidden_layers", "num_attention_heads", "hidden_size"]
)
assert config["model_type"] == "bert" and config["hidden_act"] == "gelu", "a BERT with GELU"

with open(folder / "model.safetensors", "rb") as file:
    index = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    data = file.read()

nodes, constants = [], {}


def weight(name, transposed=False):
    entry = index[name]
    assert entry["dtype"] == "F32", name
    begin, end = entry["data_offsets"]
    array = numpy.frombuffer(data[begin:end], numpy.float32).reshape(entry["shape"])
    constants[name] = array.T.copy() if transposed else array
    return name


def constant(name, value, kind):
    constants[name] = numpy.array(value, kind)
    return name


def op(kind, inputs, output, **attributes):
    nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
    return output


def linear(x, name):
    matrix, bias = weight(f"{name}.weight", transposed=True), weight(f"{name}.bias")
    return op("Add", [op("MatMul", [x, matrix], f"{name}/matmul"), bias], f"{name}/linear")


def norm(x, name):
    parts = [x, weight(f"{name}.weight"), weight(f"{name}.bias")]
    epsilon = config["layer_norm_eps"]
    return op("LayerNormalization", parts, f"{name}/norm", axis=-1, epsilon=epsilon)


def split(x, name, order):
    x = op("Reshape", [x, "heads"], f"{name}/split")
    return op("Transpose", [x], f"{name}/heads", perm=order)


constant("heads", [0, 0, heads, width // heads], numpy.int64)
constant("whole", [0, 0, width], numpy.int64)
constant("axes", [1, 2], numpy.int64)
constant("one", 1.0, numpy.float32)
constant("half", 0.5, numpy.float32)
constant("root", 2.0**0.5, numpy.float32)
constant("scale", (width // heads) ** -0.5, numpy.float32)
constant("least", -1e9, numpy.float32)
constant("first", 0, numpy.int64)
constant("step", 1, numpy.int64)
constant("second", [1], numpy.int64)
constant("scalar", [], numpy.int64)

shape = op("Shape", ["input_ids"], "shape")
length = op("Reshape", [op("Gather", [shape, "second"], "lengths"), "scalar"], "length")
places = op("Range", ["first", length, "step"], "places")
x = op("Gather", [weight("embeddings.word_embeddings.weight"), "input_ids"], "words")
kinds = op("Gather", [weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "kinds")
where = op("Gather", [weight("embeddings.position_embeddings.weight"), places], "where")
x = norm(op("Add", [op("Add", [x, kinds], "typed"), where], "placed"), "embeddings.LayerNorm")

mask = op("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
mask = op("Mul", [op("Sub", ["one", mask], "hidden"), "least"], "hiding")
mask = op("Unsqueeze", [mask, "axes"], "wide")

for number in range(layers):
    layer = f"encoder.layer.{number}"
    own = f"{layer}.attention.self"
    query = split(linear(x, f"{own}.query"), f"{own}.query", [0, 2, 1, 3])
    key = split(linear(x, f"{own}.key"), f"{own}.key", [0, 2, 3, 1])
    value = split(linear(x, f"{own}.value"), f"{own}.value", [0, 2, 1, 3])
    scores = op("Mul", [op("MatMul", [query, key], f"{own}/products"), "scale"], f"{own}/scaled")
    shares = op("Softmax", [op("Add", [scores, mask], f"{own}/masked")], f"{own}/shares", axis=-1)
    mixed = op("MatMul", [shares, value], f"{own}/mixed")
    mixed = op("Transpose", [mixed], f"{own}/back", perm=[0, 2, 1, 3])
    mixed = linear(op("Reshape", [mixed, "whole"], f"{own}/whole"), f"{layer}.attention.output.dense")
    x = norm(op("Add", [mixed, x], f"{own}/added"), f"{layer}.attention.output.LayerNorm")
    inner = linear(x, f"{layer}.intermediate.dense")
    error = op("Erf", [op("Div", [inner, "root"], f"{layer}/over")], f"{layer}/erf")
    inner = op("Mul", [inner, op("Add", [error, "one"], f"{layer}/above")], f"{layer}/gated")
    inner = linear(op("Mul", [inner, "half"], f"{layer}/gelu"), f"{layer}.output.dense")
    x = norm(op("Add", [inner, x], f"{layer}/added"), f"{layer}.output.LayerNorm")

op("Identity", [x], "last_hidden_state")
tokens = ["batch_size", "sequence_length"]
graph = helper.make_graph(
    nodes,
    "bert",
    [
        helper.make_tensor_value_info(name, TensorProto.INT64, tokens)
        for name in ["input_ids", "attention_mask", "token_type_ids"]
    ],
    [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, width])],
    [numpy_helper.from_array(array, name) for name, array in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
(folder / "onnx").mkdir(exist_ok=True)
onnx.save(model, folder / "onnx" / "model.onnx")
