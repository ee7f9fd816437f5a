"""Binary tensors through the Unix socket argv[1]: what was answered, as JSON.

Triton's own client (tritonclient) makes TCP connections and no others, so that its messages are
made here, by the text of its protocol's binary tensor data extension.
"""

import json
import struct
import sys

import httpx2

LENGTH = "Inference-Header-Content-Length"

client = httpx2.Client(transport=httpx2.HTTPTransport(uds=sys.argv[1]), base_url="http://hermes")


def infer(values):
    data = struct.pack(f"<{len(values)}f", *values)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, len(values) // 4, 4],
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    reply = client.post("/v2/models/linear/infer", content=head + data, headers=headers)
    reply.raise_for_status()
    split = int(reply.headers[LENGTH])
    output = json.loads(reply.content[:split])["outputs"][0]
    binary = reply.content[split:]
    assert output["parameters"]["binary_data_size"] == len(binary)
    return {"shape": output["shape"], "data": struct.unpack(f"<{len(binary) // 4}f", binary)}


def repository(verb):
    reply = client.post(f"/v2/repository/models/linear/{verb}")
    reply.raise_for_status()
    return reply.json()["state"]


wrong = client.post("/v2/models/linear/infer", json={"inputs": []})
json.dump(
    {
        "server": client.get("/v2").json()["name"],
        "load": repository("load"),
        "one": infer([1, 2, 3, 4]),
        "many": infer([1, 0, 0, 0] * 5000),
        "unload": repository("unload"),
        "wrong": [wrong.status_code, wrong.json()["error"]],
        "unknown": client.get("/v2/models/nobody").status_code,
    },
    sys.stdout,
)
