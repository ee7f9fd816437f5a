"""OpenAI's client through the Unix socket argv[1]: what it made of texts, as JSON."""

import json
import sys

from through_socket import connected, refusal

client = connected(sys.argv[1])
messages = [{"role": "user", "content": "Where is the lamp?"}]
# 502 would end the text.
manner = {"model": "gen", "max_tokens": 8, "temperature": 0, "logit_bias": {"502": -100}}
chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **manner)
pieces = client.chat.completions.create(
    messages=messages, stream=True, stream_options={"include_usage": True}, **manner
)
streamed, used = "", None
for piece in pieces:
    for choice in piece.choices:
        streamed += choice.delta.content or ""
    used = piece.usage or used
completion = client.completions.create(prompt="the lamp", **manner)
parts = client.completions.create(prompt="the lamp", stream=True, **manner)
json.dump(
    {
        "chat": chat.choices[0].message.content,
        "streamed": streamed,
        "completion": completion.choices[0].text,
        "streamed_completion": "".join(part.choices[0].text for part in parts),
        "reasons": [chat.choices[0].finish_reason, completion.choices[0].finish_reason],
        "usage": [chat.usage.completion_tokens, used.completion_tokens],
        "logprobs": len(chat.choices[0].logprobs.content),
        "raised": refusal(
            client.chat.completions.create, model="raise", messages=messages, max_tokens=1
        ),
        "long": refusal(client.completions.create, model="gen", prompt="word " * 2000),
    },
    sys.stdout,
)
