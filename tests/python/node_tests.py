"""ONNX's own node tests (package onnx) through hermes-shard and hermesd.

argv: the programs' folder, an empty folder to work in and, to try some, a regular expression.
Prints JSON: how many of the tests got each verdict, and what was said of those that are wrong or
failed. A verdict is

    right    each output is as the test has it
    refused  by hermes-shard
    skipped  inputs are no tensors, or of types that the protocol lacks
    wrong    an output is another
    failed   it was accepted, and the request was not

A test that is refused with all of its inputs open is tried again with all but the first as
initializers, which is how models have axes, shapes and scales.
"""

import json
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

warnings.simplefilter("ignore")

import httpx2
import numpy
import onnx
from onnx.backend.test.loader import load_model_tests

LENGTH = "Inference-Header-Content-Length"
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DATATYPES.items()}

programs, work = Path(sys.argv[1]), Path(sys.argv[2])
store, socket = work / "store", work / "socket"


def is_array(value):
    return isinstance(value, numpy.ndarray)


def shard(name, model):
    """Whether hermes-shard takes the model."""
    path = work / f"{name}.onnx"
    onnx.save(model, path)
    command = [programs / "hermes-shard", "build", path, "--store", store, "--name", name]
    # Small weights stream too.
    built = subprocess.run([*command, "--threshold", "1024"], capture_output=True, text=True)
    path.unlink()
    if built.returncode not in (0, 1):
        raise SystemExit(f"hermes-shard ended with {built.returncode}: {name}: {built.stderr}")
    return built.returncode == 0


def open_inputs(test):
    """Names of the inputs that are left open, or None where the test is refused."""
    names = [port.name for port in test.model.graph.input]
    if shard(test.name, test.model):
        return names
    inputs = test.data_sets[0][0]
    if len(test.data_sets) != 1 or len(names) < 2 or not all(map(is_array, inputs)):
        return None
    fixed = onnx.ModelProto()
    fixed.CopyFrom(test.model)
    try:
        tensors = [onnx.numpy_helper.from_array(x, n) for x, n in zip(inputs[1:], names[1:])]
    except (TypeError, ValueError):
        return None
    fixed.graph.initializer.extend(tensors)
    del fixed.graph.input[1:]
    return names[:1] if shard(test.name, fixed) else None


def start():
    command = [programs / "hermesd", "--store", store, "--socket", socket]
    log = (work / "log").open("ab")
    daemon = subprocess.Popen(
        [*command, "--budget", "256MiB", "--profiles", "false"], stdout=log, stderr=log
    )
    while daemon.poll() is None:
        try:
            client.get("/v2/health/live")
            return daemon
        except httpx2.TransportError:
            time.sleep(0.05)
    raise SystemExit("hermesd does not start: " + (work / "log").read_text())


def infer(model, inputs):
    """The outputs by name, or what was said instead."""
    head, data = [], b""
    for name, array in inputs:
        raw = numpy.ascontiguousarray(array).tobytes()
        data += raw
        parameters = {"binary_data_size": len(raw)}
        datatype = NAMES[str(array.dtype)]
        shape = list(array.shape)
        head.append({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
    text = json.dumps({"inputs": head, "parameters": {"binary_data_output": True}}).encode()
    headers = {LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
    reply = client.post(f"/v2/models/{model}/infer", content=text + data, headers=headers)
    if reply.status_code != 200:
        return f"{reply.status_code} {reply.text}"
    at = int(reply.headers[LENGTH])
    outputs = {}
    for output in json.loads(reply.content[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw = reply.content[at : at + size]
        at += size
        array = numpy.frombuffer(raw, DATATYPES[output["datatype"]])
        outputs[output["name"]] = array.reshape(output["shape"])
    return outputs


def difference(found, expected, tolerance):
    """In what an output is another, or None."""
    if found is None:
        return "missing"
    if found.shape != expected.shape:
        return f"shape {found.shape}, not {expected.shape}"
    if found.dtype != expected.dtype:
        return f"{found.dtype}, not {expected.dtype}"
    if found.dtype.kind != "f":
        differing = (found != expected).sum()
        return f"{differing} of {found.size} values" if differing else None
    found, expected = found.astype("float64"), expected.astype("float64")
    finite = numpy.isfinite(expected)
    if not numpy.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return "not finite elsewhere"
    if not numpy.isfinite(found[finite]).all():
        return "not finite elsewhere"
    size = max(numpy.abs(expected[finite]).max(initial=0), 1e-3)
    off = numpy.abs(found - expected, where=finite, out=numpy.zeros(found.shape)).max(initial=0)
    return f"off by {off:.3g} of {size:.3g}" if off > tolerance * size else None


def verdict(test, names):
    if names is None:
        return "refused", ""
    for inputs, expected in test.data_sets:
        inputs = inputs[: len(names)]
        if not all(is_array(x) and str(x.dtype) in NAMES for x in inputs):
            return "skipped", ""
        outputs = infer(test.name, list(zip(names, inputs)))
        if isinstance(outputs, str):
            return "failed", outputs
        for port, array in zip(test.model.graph.output, expected):
            if not is_array(array):
                continue
            tolerance = max(test.rtol, 1e-2 if array.dtype == numpy.float16 else 2e-3)
            off = difference(outputs.get(port.name), array, tolerance)
            if off:
                return "wrong", f"{port.name}: {off}"
    return "right", ""


pattern = sys.argv[3] if len(sys.argv) > 3 else ""
tests = [test for test in load_model_tests(kind="node") if re.search(pattern, test.name)]
store.mkdir()
with ThreadPoolExecutor(2) as pool:
    taken = list(pool.map(open_inputs, tests))
transport = httpx2.HTTPTransport(uds=str(socket))
client = httpx2.Client(transport=transport, base_url="http://hermes", timeout=60)
daemon = start()
verdicts = {test.name: verdict(test, names) for test, names in zip(tests, taken)}
alive = daemon.poll() is None
daemon.terminate()
daemon.wait()
bad = {name: f"{kind}: {what}"[:300] for name, (kind, what) in verdicts.items() if what}
counts = Counter(kind for kind, _ in verdicts.values())
json.dump({"alive": alive, "tests": len(tests), **counts, "bad": bad}, sys.stdout)
