"""Judges a fake of DashScope with the official SDK: what it answers must be what the SDK reads.

    python3 dashscope_judge.py BASE_URL KEY SCENE

SCENE says how the fake plays: generates, refuses, knows_no_key, limits_rate, finds_invalid, hangs.
"""

import json
import sys
import urllib.request

import dashscope
from dashscope import ImageSynthesis
from dashscope.aigc.image_generation import ImageGeneration

ERRORS = {
    "knows_no_key": (401, "InvalidApiKey"),
    "limits_rate": (429, "Throttling.RateQuota"),
    "finds_invalid": (400, "InvalidParameter"),
}
MESSAGES = [{"role": "user", "content": [{"text": "a heron"}]}]


def asked(key):
    """From messages, and from a prompt: the newer API and the older one."""
    size = {"size": "1536*864", "n": 2, "api_key": key}
    generation = ImageGeneration.async_call(model="wan2.6-t2i", messages=MESSAGES, **size)
    synthesis = ImageSynthesis.async_call(model="wan2.5-t2i-preview", prompt="a heron", **size)
    return generation, synthesis


def generates(key):
    generation, synthesis = asked(key)
    for task in (generation, synthesis):
        assert task.status_code == 200 and task.output.task_status == "PENDING", task
    generation = ImageGeneration.wait(generation, api_key=key)
    synthesis = ImageSynthesis.wait(synthesis, api_key=key)
    urls = [choice.message.content[0]["image"] for choice in generation.output.choices]
    urls += [result.url for result in synthesis.output.results]
    assert len(urls) == 4, urls
    for task in (generation, synthesis):
        assert task.output.task_status == "SUCCEEDED" and task.usage.image_count == 2, task
    for url in urls:
        with urllib.request.urlopen(url) as image:
            assert image.read(4) == b"\x89PNG", url
    return {"urls": urls}


def refuses(key):
    task = ImageSynthesis.wait(asked(key)[1], api_key=key)
    assert task.output.task_status == "FAILED", task
    assert task.output.code == "DataInspectionFailed", task
    return {"message": task.output.message}


def hangs(key):
    task = asked(key)[0]
    answer = ImageGeneration.cancel(task, api_key=key)
    assert answer.status_code == 200, answer
    return {"cancelled": task.output.task_id}


def errs(key, status, code):
    for task in asked(key):
        assert (task.status_code, task.code) == (status, code) and task.message, task
    return {"code": code}


def main():
    base_url, key, scene = sys.argv[1:]
    dashscope.base_http_api_url = base_url + "/api/v1"
    if scene in ERRORS:
        facts = errs(key, *ERRORS[scene])
    else:
        facts = {"generates": generates, "refuses": refuses, "hangs": hangs}[scene](key)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
