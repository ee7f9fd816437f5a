"""OpenAI's client through the Unix socket argv[1]: what it was answered, as JSON."""

import json
import sys

import httpx2
import openai

transport = httpx2.HTTPTransport(uds=sys.argv[1])
client = openai.OpenAI(
    base_url="http://hermes/v1",
    api_key="none is asked for",
    http_client=httpx2.Client(transport=transport),
)


def refusal(kind, **arguments):
    try:
        client.embeddings.create(**arguments)
    except kind as error:
        return {"status": error.status_code, "code": error.code, "param": error.param}
    raise AssertionError(f"{arguments} was answered")


cat, both = (client.embeddings.create(model="words", input=text) for text in ("cat", ["dog", "cat"]))
floats = client.embeddings.create(model="words", input="cat", encoding_format="float")
own = {"tokenizer": "words"}
tokens = client.embeddings.create(model="words", input=[[1], [2, 3]], extra_body=own)
json.dump(
    {
        "models": sorted(model.id for model in client.models.list()),
        "words": client.models.retrieve("words").owned_by,
        "cat": cat.data[0].embedding,
        "floats": floats.data[0].embedding,
        "both": [item.embedding for item in both.data],
        "tokens": [item.index for item in tokens.data],
        "usage": both.usage.total_tokens,
        "unknown": refusal(openai.NotFoundError, model="nobody", input="cat"),
        "empty": refusal(openai.BadRequestError, model="words", input=""),
        "slow": refusal(
            openai.InternalServerError,
            model="words",
            input=["cat"] * 2000,
            extra_headers={"timeout": "1us"},
        ),
    },
    sys.stdout,
)
