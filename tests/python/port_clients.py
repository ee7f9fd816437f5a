"""Programs that know nothing of us but the URL argv[1], and the token argv[2] where one is asked for:
what they were answered, as JSON."""

import json
import sys
import urllib.request

import numpy
import openai
import tritonclient.http as triton
from prometheus_client.parser import text_string_to_metric_families

url, token = sys.argv[1], "".join(sys.argv[2:])


def bearer():
    """Headers, made anew: Triton's client adds its own to what it is given, and leaves them there."""
    return {"Authorization": f"Bearer {token}"} if token else {}



embeddings = openai.OpenAI(base_url=f"{url}/v1", api_key=token or "none is asked for")
cat = embeddings.embeddings.create(model="words", input="cat")

server = triton.InferenceServerClient(url.removeprefix("http://"))
x = triton.InferInput("x", [1, 1, 4], "FP32")
x.set_data_from_numpy(numpy.array([[[1, 2, 3, 4]]], "float32"))
answer = server.infer("linear", [x], headers=bearer())
as_text = triton.InferInput("x", [1, 1, 4], "FP32")
as_text.set_data_from_numpy(numpy.array([[[1, 2, 3, 4]]], "float32"), binary_data=False)
output = triton.InferRequestedOutput("y", binary_data=False)
in_text = server.infer("linear", [as_text], outputs=[output], headers=bearer())
try:
    server.load_model("linear", headers=bearer())
    load = "it was loaded"
except triton.InferenceServerException as error:
    load = error.message()

# The scraper's own headers.
scrape = urllib.request.Request(f"{url}/metrics", headers={
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
    "Accept-Encoding": "gzip",
    "User-Agent": "Prometheus/3.0.0",
    **bearer(),
})  # fmt: skip
with urllib.request.urlopen(scrape) as reply:
    kind, text = reply.headers["Content-Type"], reply.read().decode()
families = {family.name: family for family in text_string_to_metric_families(text)}
times = families["hermes_http_request_duration_seconds"].samples

json.dump(
    {
        "cat": cat.data[0].embedding,
        "ready": [
            server.is_server_live(headers=bearer()),
            server.is_server_ready(headers=bearer()),
            server.is_model_ready("linear", headers=bearer()),
        ],
        "server": server.get_server_metadata(headers=bearer())["name"],
        "inputs": server.get_model_metadata("linear", headers=bearer())["inputs"][0]["name"],
        "y": answer.as_numpy("y").tolist(),
        "y_in_text": in_text.as_numpy("y").tolist(),
        "load": load,
        "kind": kind,
        "types": {name: family.type for name, family in families.items()},
        "timed": sum(sample.value for sample in times if sample.name.endswith("_count")),
    },
    sys.stdout,
)
