"""OpenAI's client through the Unix socket argv[1]: what it was answered, as JSON."""

import json
import sys

import openai
from through_socket import connected, refusal

client = connected(sys.argv[1])
embed = client.embeddings.create
cat, both = (embed(model="words", input=text) for text in ("cat", ["dog", "cat"]))
floats = embed(model="words", input="cat", encoding_format="float")
own = {"tokenizer": "words"}
tokens = embed(model="words", input=[[1], [2, 3]], extra_body=own)
json.dump(
    {
        "models": sorted(model.id for model in client.models.list()),
        "words": client.models.retrieve("words").owned_by,
        "cat": cat.data[0].embedding,
        "floats": floats.data[0].embedding,
        "both": [item.embedding for item in both.data],
        "tokens": [item.index for item in tokens.data],
        "usage": both.usage.total_tokens,
        "unknown": refusal(embed, openai.NotFoundError, model="nobody", input="cat"),
        "empty": refusal(embed, openai.BadRequestError, model="words", input=""),
        "slow": refusal(
            embed,
            openai.InternalServerError,
            model="words",
            input=["cat"] * 2000,
            extra_headers={"timeout": "1us"},
        ),
    },
    sys.stdout,
)
