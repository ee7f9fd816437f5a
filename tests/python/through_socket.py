"""What the programs here that use OpenAI's client have in common."""

import httpx2
import openai


def connected(socket):
    """OpenAI's client through a Unix socket."""
    transport = httpx2.HTTPTransport(uds=socket)
    return openai.OpenAI(
        base_url="http://hermes/v1",
        api_key="none is asked for",
        http_client=httpx2.Client(transport=transport),
    )


def refusal(call, kind=openai.APIStatusError, **arguments):
    """How a call is refused, by an error of a kind."""
    try:
        call(**arguments)
    except kind as error:
        return {"status": error.status_code, "code": error.code, "param": error.param}
    raise AssertionError(f"{arguments} was answered")
