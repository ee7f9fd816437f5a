"""A file of texts to vectors by ONNX Runtime, as its users do it: batches, padded to their longest.

onnxruntime_embed.py MODEL.onnx TOKENIZER.json TEXTS TOKENS THREADS BATCH file|length VECTORS.npy

TOKENS is the length that texts are cut to. Batches are of texts as they stand in the file, or of
all texts sorted by length. Prints seconds, tokenizing included and loading not, those of the
processor, and the most memory that the process held, as JSON.
"""

import json
import os
import sys
import time

model, tokenizer, texts, most, threads, size, order, output = sys.argv[1:]
os.environ["RAYON_NUM_THREADS"] = threads
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy
import onnxruntime
from tokenizers import Tokenizer

with open(texts, encoding="utf-8") as file:
    texts = file.read().splitlines()
tokenizer = Tokenizer.from_file(tokenizer)
tokenizer.no_padding()
tokenizer.enable_truncation(int(most))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [port.name for port in session.get_inputs()]


def embed(encodings):
    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    ids, mask = numpy.zeros(shape, numpy.int64), numpy.zeros(shape, numpy.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
    hidden = session.run(None, {name: given[name] for name in names})[0]
    weights = mask[:, :, None].astype(numpy.float32)
    vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


embed(tokenizer.encode_batch(["one text, so that all is loaded"]))
began, worked = time.perf_counter(), time.process_time()
encodings = tokenizer.encode_batch(texts)
rows = list(range(len(texts)))
if order == "length":
    rows.sort(key=lambda row: len(encodings[row].ids))
vectors = None
for start in range(0, len(rows), int(size)):
    batch = rows[start : start + int(size)]
    found = embed([encodings[row] for row in batch])
    if vectors is None:
        vectors = numpy.empty((len(texts), found.shape[1]), numpy.float32)
    vectors[batch] = found
seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
numpy.save(output, vectors)

with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
tokens = sum(len(encoding.ids) for encoding in encodings)
version = onnxruntime.__version__
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": int(peak) << 10,
                  "tokens": tokens, "version": version}))
