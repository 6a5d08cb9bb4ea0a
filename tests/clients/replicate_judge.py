"""Judges a fake of Replicate with the official SDK: what it answers must be what the SDK reads.

    python3 replicate_judge.py BASE_URL KEY SCENE

SCENE says how the fake plays: generates, refuses, knows_no_key, limits_rate, finds_invalid, hangs.
"""

import json
import sys
import urllib.request

import replicate
from replicate.exceptions import ModelError, ReplicateError

MODEL = "black-forest-labs/flux-2-pro"
INPUT = {"prompt": "a heron", "aspect_ratio": "16:9", "seed": 7}
STATUSES = {"knows_no_key": 401, "limits_rate": 429, "finds_invalid": 422}


def generates(client):
    prediction = client.models.predictions.create(model=MODEL, input=INPUT)
    assert prediction.status == "starting" and prediction.output is None, prediction
    prediction.wait()
    assert prediction.status == "succeeded" and prediction.error is None, prediction
    assert prediction.metrics["predict_time"] > 0, prediction
    ran = client.run(MODEL, input=INPUT, use_file_output=False)
    outputs = [prediction.output, ran]
    # A link, or a list of them: models differ.
    assert {type(output) for output in outputs} == {str, list}, outputs
    for output in outputs:
        url = output if isinstance(output, str) else output[0]
        with urllib.request.urlopen(url) as image:
            assert image.read(4) == b"\x89PNG", url
    return {"output": outputs}


def refuses(client):
    try:
        client.run(MODEL, input=INPUT)
    except ModelError as error:
        assert error.prediction.status == "failed", error.prediction
        return {"error": error.prediction.error}
    raise AssertionError("a ModelError expected")


def hangs(client):
    prediction = client.models.predictions.create(model=MODEL, input=INPUT)
    prediction.cancel()
    assert prediction.status in ("starting", "canceled"), prediction
    return {"cancelled": prediction.id}


def errs(client, status):
    try:
        client.models.predictions.create(model=MODEL, input=INPUT)
    except ReplicateError as error:
        assert error.status == status and error.title and error.detail, error
        return {"title": error.title, "detail": error.detail}
    raise AssertionError("a ReplicateError expected")


def main():
    base_url, key, scene = sys.argv[1:]
    client = replicate.Client(api_token=key, base_url=base_url)
    client.poll_interval = 0.05
    if scene in STATUSES:
        facts = errs(client, STATUSES[scene])
    else:
        facts = {"generates": generates, "refuses": refuses, "hangs": hangs}[scene](client)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
