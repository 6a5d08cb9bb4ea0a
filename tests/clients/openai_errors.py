"""Errors as the official SDK's typed exceptions.

    python3 openai_errors.py BASE_URL KEY [--poor-key KEY] [--limited-key KEY]

The poor key's account has no money left; the limited key may make a few requests a minute. Prints, for each
case, what the exception carries.
"""

import argparse
import json

import openai
from openai import OpenAI

MODEL = "gpt-image-2"


def facts_of(error):
    return {
        "exception": type(error).__name__,
        "status": error.status_code,
        "type": error.type,
        "code": error.code,
        "param": error.param,
        "message": error.body["message"],
        "provider": error.body.get("provider"),
        "request_id": error.request_id,
        "retry_after": error.response.headers.get("retry-after"),
    }


def expect(exception, action):
    try:
        answer = action()
    except exception as error:
        # A subclass would be another error: 402 has no class of its own.
        assert type(error) is exception, f"{type(error).__name__} instead of {exception.__name__}: {error}"
        return facts_of(error)
    raise AssertionError(f"{exception.__name__} expected, got {answer}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("key")
    parser.add_argument("--poor-key")
    parser.add_argument("--limited-key")
    parser.add_argument("--limit", type=int, default=20, help="requests to make with the limited key, at most")
    arguments = parser.parse_args()

    def client(key):
        return OpenAI(base_url=f"{arguments.base_url}/v1", api_key=key, max_retries=0)

    def generate(key, **more):
        return client(key).images.generate(model=MODEL, prompt="a heron", **more)

    def until_limited():
        for _ in range(arguments.limit):
            answer = generate(arguments.limited_key)
        return answer

    good = arguments.key
    unknown_task = "/images/tasks/00000000-0000-7000-8000-000000000000"
    facts = {
        "bad_key": expect(openai.AuthenticationError, lambda: generate(f"{good}x")),
        "bad_size": expect(openai.BadRequestError, lambda: generate(good, size="7:5")),
        "no_such_task": expect(openai.NotFoundError, lambda: client(good).get(unknown_task, cast_to=object)),
    }
    if arguments.poor_key:
        facts["no_money"] = expect(openai.APIStatusError, lambda: generate(arguments.poor_key))
        assert facts["no_money"]["status"] == 402, facts["no_money"]
    if arguments.limited_key:
        facts["too_many"] = expect(openai.RateLimitError, until_limited)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
