"""Judges a fake of an upstream with the official SDK: what it answers must be what the SDK reads.

    python3 upstream_judge.py BASE_URL KEY [--model MODEL] [--wrong-key KEY] [--refused-prompt TEXT]

Tests rely on the fake, so it must not be kinder than the real thing: images come as
base64 only, and a response_format is an unknown parameter. With the options, a wrong key must be refused, and
so must that prompt, by the safety system.
"""

import argparse
import base64
import json

import openai
from openai import OpenAI

import image_files


def judge(answer, count):
    assert isinstance(answer.created, int), f"no time of creation: {answer}"
    assert answer.data and len(answer.data) == count, f"{count} images expected: {answer.data}"
    for image in answer.data:
        assert image.url is None, f"a link, where the upstream answers with base64 only: {image.url}"
    return [image_files.describe(base64.b64decode(image.b64_json, validate=True)) for image in answer.data]


def judge_error(exception, action):
    try:
        answer = action()
    except exception as error:
        missing = {"message", "type", "param", "code"} - error.body.keys()
        assert not missing, f"an error without {missing}: {error.body}"
        return {"status": error.status_code, "type": error.type, "code": error.code, "param": error.param}
    raise AssertionError(f"{exception.__name__} expected, got {answer}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base_url")
    parser.add_argument("key")
    parser.add_argument("--model", default="gpt-image-2")
    parser.add_argument("--wrong-key")
    parser.add_argument("--refused-prompt")
    arguments = parser.parse_args()

    client = OpenAI(base_url=f"{arguments.base_url}/v1", api_key=arguments.key, max_retries=0)
    first = ("first.png", image_files.make(), "image/png")
    second = ("second.png", image_files.make(64, 64, (60, 60, 220)), "image/png")

    def generate(client=client, prompt="a heron", **more):
        return client.images.generate(model=arguments.model, prompt=prompt, size="1024x1024", **more)

    def edit(image):
        return client.images.edit(model=arguments.model, prompt="the same at night", image=image, size="1024x1024")

    facts = {
        "generate": judge(generate(), 1),
        "generate_two": judge(generate(n=2), 2),
        "edit_one": judge(edit(first), 1),
        "edit_list": judge(edit([first, second]), 1),
        "unknown_parameter": judge_error(openai.BadRequestError, lambda: generate(response_format="b64_json")),
    }
    assert facts["unknown_parameter"]["code"] == "unknown_parameter", facts
    if arguments.wrong_key:
        stranger = client.with_options(api_key=arguments.wrong_key)
        facts["wrong_key"] = judge_error(openai.AuthenticationError, lambda: generate(client=stranger))
    if arguments.refused_prompt:
        refused = judge_error(openai.BadRequestError, lambda: generate(prompt=arguments.refused_prompt))
        assert refused["code"] == "moderation_blocked", refused
        facts["refused"] = refused
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
